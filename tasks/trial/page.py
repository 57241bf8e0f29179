"""Write a trial as one self-contained HTML page, and as a table beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from slidesam.tasks.pages.html import write_html
from slidesam.tasks.run.files import write_atomic
from slidesam.tasks.trial.choices import TARGET, write_line
from slidesam.tasks.trial.trial import ChoiceResult, RegionResult, Trial

_COLUMNS = (
    *("choice", "settings", "mpp_um", "region", "row", "column", "height_px", "width_px", "objects", "objects_per_mm2"),
    *("median_diameter_um", "median_diameter_px", "seconds", "slide_seconds"),
)
_STYLE = """
.top{display:flex;gap:28px;align-items:flex-start;flex-wrap:wrap}.top img{border:1px solid var(--line)}
.top>div{flex:1 1 420px}
table{width:100%}tr.base td{background:var(--mark)}tr:hover td{background:var(--soft)}
.bar{position:sticky;top:0;background:var(--paper);padding:10px 0;border-bottom:1px solid var(--line);z-index:2;display:flex;
gap:18px;flex-wrap:wrap;align-items:center}
.bar label{cursor:pointer;white-space:nowrap}
section{scroll-margin-top:56px;padding:14px 0 6px;border-bottom:1px solid var(--line)}
section h3{font-size:15px;margin:0 0 2px}
.line{display:flex;gap:8px;align-items:center;margin:4px 0 8px}
.row{display:flex;gap:12px}figure{flex:1 1 0;max-width:512px;min-width:0}
.view{position:relative;cursor:zoom-in;background-size:100% 100%;border-radius:3px;overflow:hidden}
.view img{display:block;width:100%;height:100%;position:absolute;left:0;top:0}
.pixels .view img,#large.pixels img{visibility:hidden}
figcaption b{font-weight:600}
#large{display:none;position:fixed;inset:0;background:#000c;z-index:9;align-items:center;justify-content:center;cursor:zoom-out}
#large .view{width:min(94vw,94vh);cursor:zoom-out;image-rendering:pixelated}
"""
_SCRIPT = """
const all=(q)=>document.querySelectorAll(q);
all('[name=mpp]').forEach(b=>b.onchange=()=>all('[data-mpp]').forEach(s=>
  s.style.display=b.value==='all'||s.dataset.mpp===b.value?'':'none'));
document.getElementById('outlines').onchange=e=>document.body.classList.toggle('pixels',!e.target.checked);
all('button').forEach(b=>b.onclick=()=>{navigator.clipboard.writeText(b.previousElementSibling.textContent);b.textContent='copied';
  setTimeout(()=>b.textContent='copy',1200)});
const large=document.getElementById('large');
all('main .view').forEach(v=>v.onclick=()=>{large.replaceChildren(v.cloneNode(true));large.style.display='flex'});
large.onclick=()=>large.style.display='none';
document.onkeydown=e=>{if(e.key==='Escape')large.style.display='none'};
"""


def write_trial(trial: Trial, page: Path, given: Sequence[str] = ()) -> Path:
    """Write a trial's page, and its table beside it.

    Args:
        trial: The trial.
        page: The HTML file.
        given: Options that the trial was started with, which a run needs too.

    Returns:
        The table's path.

    Raises:
        OSError: They can't be written.
    """
    table = page.with_suffix(".csv")
    write_atomic(table, make_table(trial).encode())
    write_atomic(page, make_page(trial, given).encode())
    return table


def make_table(trial: Trial) -> str:
    """Write a trial as CSV, a row per choice and region."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for number, result in enumerate(trial.results, 1):
        for (name, region), sight in zip(trial.regions, result.sights, strict=True):
            density = _find_density(trial, region.shape, sight)
            sizes = (_round(density, 1), _round(_micrometres(result, sight), 3), _round(sight.diameter, 3))
            place = (name, region.y0, region.x0, *region.shape)
            times = (f"{sight.seconds:.3f}", f"{result.slide_seconds:.1f}")
            line = write_line(result.changes)
            writer.writerow([number, line, _round(result.mpp, 5), *place, sight.count, *sizes, *times])
    return buffer.getvalue()


def make_page(trial: Trial, given: Sequence[str] = ()) -> str:
    """Write a trial as a page that needs no other file.

    Args:
        trial: The trial.
        given: Options that the trial was started with, which a run needs too.
    """
    choices = (_write_choice(trial, number, result, given) for number, result in enumerate(trial.results, 1))
    body = [
        _write_top(trial),
        _write_summary(trial),
        _write_bar(trial),
        f"<main>{''.join(choices)}</main>",
        '<div id="large"></div>',
    ]
    return write_html(f"{trial.slide.name}: settings tried", body, _STYLE + _style_regions(trial), _SCRIPT)


def _style_regions(trial: Trial) -> str:
    """Put each region's pixels into the page once, as the background of all views of it."""
    return "".join(
        f".r{number}{{background-image:url({picture.uri});aspect-ratio:{region.shape[1]}/{region.shape[0]}}}"
        for number, ((_, region), picture) in enumerate(zip(trial.regions, trial.pictures, strict=True), 1)
    )


def _write_top(trial: Trial) -> str:
    slide = trial.slide
    height, width = slide.shape
    pixel = "pixel size unknown" if slide.mpp is None else f"{slide.mpp[1]:.3g} µm per pixel"
    regions = "".join(
        f"<li><b>{number}</b> {escape(name)}: row {region.y0}, column {region.x0}, {region.shape[1]} × {region.shape[0]} px"
        f"{_in_micrometres(trial, region.shape[1])}</li>"
        for number, (name, region) in enumerate(trial.regions, 1)
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in trial.notes)
    model = escape(trial.segmenter.partition(",")[0].partition(" sha256")[0])
    return (
        f'<div class="top"><div><h1>{escape(slide.name)}: which settings?</h1>'
        f'<p class="dim">{width:,} × {height:,} px, {pixel}. {model} on {escape(trial.device)}; '
        f"all of this took {_duration(trial.seconds)}.</p>"
        f"<h2>Regions</h2><ul>{regions}</ul>"
        "<p>Each choice was computed on each region with its surroundings and with the intensities of the whole slide, as a run "
        "does it. Objects are counted where their centre lies in the region. Look for objects that are missing, joined or in "
        "pieces, then copy the line of the choice that you like behind <code>slidesam segment SLIDE --output FOLDER</code>.</p>"
        f"{f'<ul>{notes}</ul>' if notes else ''}</div>"
        f'<img alt="the slide with the regions" src="{trial.places}"></div>'
    )


def _write_summary(trial: Trial) -> str:
    heads = "".join(
        f"<th>{escape(name)} {number}<br>objects</th><th><br>median {_unit(trial)}</th>"
        for number, (name, _) in enumerate(trial.regions, 1)
    )
    rows = []
    for number, result in enumerate(trial.results, 1):
        cells = "".join(f"<td>{sight.count:,}</td><td>{_size(result, sight)}</td>" for sight in result.sights)
        rows.append(
            f'<tr{_mark(result)} data-mpp="{_mpp(result)}"><td class="l"><a href="#c{number}">{number}</a></td>'
            f'<td class="l">{_describe(result)}</td><td>{_mpp(result)}</td>{cells}'
            f"<td>{_seconds_per_region(result):.1f}</td><td>{_duration(result.slide_seconds)}</td></tr>"
        )
    return (
        '<h2>All choices</h2><div class="scroll"><table>'
        '<tr><th class="l">#</th><th class="l">what differs from the settings given</th>'
        f"<th>µm per<br>pixel</th>{heads}<th>seconds<br>per region</th><th>whole slide,<br>one worker</th></tr>"
        f'{"".join(rows)}</table></div><p class="dim">Whole slide: all blocks with tissue, one after the other on this machine '
        f"({escape(trial.device)}); n workers take an n-th of it. Time to write and stitch isn't in it.</p>"
    )


def _write_bar(trial: Trial) -> str:
    sizes = list(dict.fromkeys(_mpp(result) for result in trial.results))
    buttons = "".join(
        f'<label><input type="radio" name="mpp" value="{size}"> {size} µm per pixel</label>' for size in sizes
    )
    all_sizes = f'<label><input type="radio" name="mpp" value="all" checked> all</label>{buttons}' if sizes[1:] else ""
    return (
        f'<div class="bar"><label><input type="checkbox" id="outlines" checked> outlines</label>{all_sizes}'
        '<span class="dim">click a picture to enlarge it</span></div>'
    )


def _write_choice(trial: Trial, number: int, result: ChoiceResult, given: Sequence[str]) -> str:
    figures = "".join(
        f'<figure><div class="view r{place}"><img alt="outlines" src="{sight.outlines}"></div>'
        f"<figcaption><b>{sight.count:,}</b> objects, median {_size(result, sight)} {_unit(trial)}"
        f"{'' if result.mpp is None or sight.diameter is None else f' ({sight.diameter:.1f} px)'}, {sight.seconds:.1f} s "
        f'<span class="dim">· {escape(name)} {place}</span></figcaption></figure>'
        for place, ((name, _), sight) in enumerate(zip(trial.regions, result.sights, strict=True), 1)
    )
    line = escape(" ".join([*given, *filter(None, [write_line(result.changes)])]))
    paste = f"<code>{line}</code><button>copy</button>" if line else '<span class="dim">no option is needed</span>'
    return (
        f'<section id="c{number}" data-mpp="{_mpp(result)}"><h3>{number} · {_describe(result)}</h3>'
        f'<div class="line">{paste}<span class="dim">whole slide {_duration(result.slide_seconds)}</span></div>'
        f'<div class="row">{figures}</div></section>'
    )


def _describe(result: ChoiceResult) -> str:
    """Describe a choice in words."""
    parts = [
        f"{escape(name.rpartition('.')[2].replace('_', ' '))} {'auto' if value is None else escape(str(value))}"
        for name, value in result.changes.items()
        if name != TARGET
    ]
    scale = f"at {result.mpp:.3g} µm" if result.mpp is not None and TARGET in result.changes else ""
    return ", ".join(filter(None, [scale, *parts])) or "the settings as given"


def _mark(result: ChoiceResult) -> str:
    return "" if result.changes else ' class="base"'


def _micrometres(result: ChoiceResult, sight: RegionResult) -> float | None:
    return None if sight.diameter is None or result.mpp is None else sight.diameter * result.mpp


def _size(result: ChoiceResult, sight: RegionResult) -> str:
    size = _micrometres(result, sight) if result.mpp is not None else sight.diameter
    return "–" if size is None else f"{size:.1f}"


def _unit(trial: Trial) -> str:
    return "px" if trial.slide.mpp is None else "µm"


def _mpp(result: ChoiceResult) -> str:
    return "–" if result.mpp is None else f"{result.mpp:.3g}"


def _in_micrometres(trial: Trial, pixels: int) -> str:
    return "" if trial.slide.mpp is None else f" ({pixels * trial.slide.mpp[1]:.0f} µm wide)"


def _find_density(trial: Trial, shape: tuple[int, int], sight: RegionResult) -> float | None:
    """Return objects per mm²."""
    if trial.slide.mpp is None:
        return None
    return sight.count / (shape[0] * shape[1] * trial.slide.mpp[0] * trial.slide.mpp[1] / 1e6)


def _seconds_per_region(result: ChoiceResult) -> float:
    return sum(sight.seconds for sight in result.sights) / len(result.sights)


def _round(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
