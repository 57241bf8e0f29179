"""The contact sheet of an output folder: its slides side by side, those that stand out marked, and what failed with its cure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from slidesam.tasks.pages.html import escape_text, tabulate, write_html, write_number
from slidesam.tasks.pages.sheet_slides import FAR, FEWEST, SheetSlide, find_far, read_slides
from slidesam.tasks.run.files import write_atomic
from slidesam.tasks.run.layout import list_provenance
from slidesam.tasks.run.service_folders import contact_sheet
from slidesam.tasks.run.status import RunState, read_states

# Sides of the pictures in pixels: smaller ones where there are many, so that the page stays small.
_SIDE, _SMALL_SIDE, _MANY = 300, 160, 150
_STYLE = """
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,230px),1fr));gap:14px}
article{border:1px solid var(--line);border-radius:6px;padding:10px;overflow-wrap:anywhere;break-inside:avoid}
article.far{border:2px solid var(--bad);padding:9px}article h3{margin:0 0 6px}
article .picture{height:200px;display:flex;align-items:center;justify-content:center;background:var(--soft);margin-bottom:8px}
article img{max-width:100%;max-height:200px;display:block}
article p{font-size:13px;margin:2px 0;font-variant-numeric:tabular-nums}article b{font-weight:600}
.mark{color:var(--bad);font-weight:600}article .note{background:var(--note);padding:3px 6px;border-radius:4px}
.bar{margin:10px 0}
@media print{.bar{display:none}.sheet{grid-template-columns:repeat(4,1fr)}}
"""
_SCRIPT = """
const sheet=document.querySelector('.sheet');
document.getElementById('by').onchange=e=>{const key=e.target.value;
 [...sheet.children].sort((a,b)=>key==='name'?a.dataset.name.localeCompare(b.dataset.name):
  (b.dataset[key]===''?-1:+b.dataset[key])-(a.dataset[key]===''?-1:+a.dataset[key])).forEach(card=>sheet.append(card))};
"""


def write_contact_sheet(output: Path) -> Path:
    """Write the page that shows all slides of an output folder.

    Args:
        output: The folder.

    Returns:
        The page.

    Raises:
        OutputError: It can't be written.
    """
    path = contact_sheet(output)
    write_atomic(path, make_contact_sheet(output).encode())
    return path


def make_contact_sheet(output: Path) -> str:
    """Make the page that shows all slides of an output folder.

    Args:
        output: The folder.
    """
    n_results = len(list_provenance(output))
    slides = list(read_slides(output, _SIDE if n_results <= _MANY else _SMALL_SIDE))
    unfinished = [run for run in read_states(output) if run.state.status != "finished"]
    far_density, far_area = _find_far(slides)
    cards = [
        _write_card(slide, is_far_density=density, is_far_area=area)
        for slide, density, area in zip(slides, far_density, far_area, strict=True)
    ]
    n_far = sum(density or area for density, area in zip(far_density, far_area, strict=True))
    title = f"{output.resolve().name}: {len(slides)} result{'s'[: len(slides) - 1]}"
    body = [
        f"<h1>{escape_text(title)}</h1>",
        *_write_top(slides, unfinished, n_far),
        *_write_unfinished(unfinished, output),
        '<div class="bar"><label>order <select id="by"><option value="name">by name</option>'
        '<option value="far">those that stand out first</option><option value="objects">by number of objects</option>'
        '<option value="density">by density</option><option value="area">by median area</option></select></label></div>',
        f'<div class="sheet">{"".join(cards)}</div>',
    ]
    return write_html(title, body, _STYLE, _SCRIPT)


def _find_far(slides: Sequence[SheetSlide]) -> tuple[list[bool], list[bool]]:
    """Find the slides whose density, and whose median area, stands out among the results of their label, in the same unit."""
    density, area = [False] * len(slides), [False] * len(slides)
    for group in {_kind(slide) for slide in slides}:
        places = [place for place, slide in enumerate(slides) if _kind(slide) == group]
        for found, values in (
            (density, [slides[place].density for place in places]),
            (area, [_median_area(slides[place]) for place in places]),
        ):
            for place, is_far in zip(places, find_far(values), strict=True):
                found[place] = is_far
    return density, area


def _kind(slide: SheetSlide) -> tuple[str, bool]:
    return slide.label, slide.density is not None


def _median_area(slide: SheetSlide) -> float | None:
    return None if slide.areas is None else slide.areas.quartiles[1]


def _write_top(slides: Sequence[SheetSlide], unfinished: Sequence[RunState], n_far: int) -> Iterator[str]:
    densities = [slide.density for slide in slides if slide.density is not None]
    parts = [f"{sum(slide.objects for slide in slides):,} objects"]
    if densities:
        parts.append(f"median density {write_number(float(np.median(densities)))} per mm² of segmented blocks")
    parts.append(f"{len(unfinished)} not finished")
    yield f'<p class="dim">{", ".join(parts)}.</p>'
    yield (
        f'<p class="dim">{n_far} stand out: density or median area is more than {FAR:.0f} scaled median absolute deviations '
        f"(1.4826 × MAD) from the median of the folder's results of the same name; of fewer than {FEWEST} none does.</p>"
    )


def _write_unfinished(unfinished: Sequence[RunState], output: Path) -> Iterator[str]:
    if not unfinished:
        return
    rows = []
    for run in unfinished:
        blocks = "" if run.blocks is None else f"{run.blocks_done:,} of {run.blocks:,}"
        cells = (run.slide, run.label, run.state.status, blocks, run.state.error or "")
        rows.append(tuple(map(escape_text, cells)))
    yield "<h2>Not finished</h2>"
    yield tabulate(("slide", "label", "status", "blocks", "why, and what to do"), rows, left=5)
    yield (
        f"<p>Once the cause is removed, <code>slidesam retry {escape_text(shlex.quote(str(output)))}</code> continues from what "
        "is there.</p><h2>Finished</h2>"
    )


def _write_card(slide: SheetSlide, *, is_far_density: bool, is_far_area: bool) -> str:
    name = escape_text(slide.name)
    drawn = "" if slide.picture is None else f'<img alt="" src="{slide.picture}">'
    picture = f'<div class="picture">{drawn}</div>'
    if slide.report is not None:
        link = escape_text(quote(slide.report))
        name, picture = f'<a href="{link}">{name}</a>', f'<a href="{link}">{picture}</a>'
    lines = [f"<p><b>{slide.objects:,}</b> {escape_text(slide.label)}</p>"]
    if slide.density is not None:
        lines.append(f"<p{_mark(is_far_density)}><b>{write_number(slide.density)}</b> per mm²</p>")
    if slide.areas is not None:
        first, median, third = map(write_number, slide.areas.quartiles)
        lines.append(
            f"<p{_mark(is_far_area)}>area <b>{median}</b> {slide.areas.unit}, half lie between {first} and {third}</p>"
        )
    lines += [f'<p class="note">{escape_text(note)}</p>' for note in slide.notes]
    values = {
        "name": escape_text(slide.name),
        "objects": slide.objects,
        "density": "" if slide.density is None else slide.density,
        "area": "" if slide.areas is None else slide.areas.quartiles[1],
        "far": int(is_far_density) + int(is_far_area),
    }
    data = " ".join(f'data-{key}="{value}"' for key, value in values.items())
    kind = ' class="far"' if is_far_density or is_far_area else ""
    return f"<article{kind} {data}><h3>{name}</h3>{picture}{''.join(lines)}</article>"


def _mark(is_far: bool) -> str:
    return ' class="mark"' if is_far else ""
