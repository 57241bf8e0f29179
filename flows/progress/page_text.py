"""Makes the markdown page of a slide that is finished or failed, from the files on disk."""

from __future__ import annotations

import base64
import io
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from pydantic import BaseModel

from slidesam.flows.progress.markdown import block, code, table, text
from slidesam.flows.progress.pace import duration_words
from slidesam.tasks.errors import (
    BlockFailure,
    BlockFailures,
    SettingsError,
    SlideError,
    SlideGoneError,
    SlidesamError,
    in_one_line,
)
from slidesam.tasks.pages.html import write_number
from slidesam.tasks.pages.sheet_slides import summarise_areas
from slidesam.tasks.pages.slide_page import find_density
from slidesam.tasks.run.layout import EXPORTS, jobs_folder
from slidesam.tasks.run.links import list_job_logs
from slidesam.tasks.run.records import Provenance, SeamReport
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.facts import slide_name
from slidesam.tasks.stitch.report import AMONG_OBJECTS, COLUMNS

# The picture is stored in the server's database twice: as the run's artifact and as the key's latest.
_PICTURE_BYTES, _PICTURE_SIDES = 220_000, (1600, 1280, 1024, 800, 640, 480, 320)
_MOST_BLOCKS, _ERROR_LENGTH = 50, 400


def result_markdown(run: Run, provenance: Provenance, picture: str | None = None, notes: Sequence[str] = ()) -> str:
    """Make the page of a finished run.

    Args:
        run: The run.
        provenance: Its provenance.
        picture: URI of the overlay; None = no picture.
        notes: What a person should know of how the run went, one sentence each.
    """
    seams: SeamReport = provenance.seams or SeamReport()
    warnings = [*run.slide.warnings, *provenance.warnings, *seams.warnings, *notes]
    parts = [f"# {text(run.name)}: {provenance.objects:,} {text(run.label)}"]
    parts += [f"**Note:** {text(warning)}" for warning in warnings]
    parts.append(table(("", ""), [(f"**{name}**", value) for name, value in _overview(run, provenance, len(warnings))]))
    if picture is not None:
        parts.append(f"![The slide with its blocks, and places where blocks meet]({picture})")
    parts += _seams_part(run, seams)
    parts += _provenance_part(run, provenance)
    return "\n\n".join([*parts, _where_part(run)])


def _overview(run: Run, provenance: Provenance, n_warnings: int) -> list[tuple[str, str]]:
    height, width = run.slide.shape
    block_height, block_width = run.grid.block_shape
    n_empty = len(provenance.blocks_without_tissue)
    blocks = f"{len(run.grid) - n_empty:,} of {block_width} × {block_height} px, with a halo of {run.grid.halo} px"
    mpp = run.slide.mpp
    pixel = "unknown: sizes in µm were taken as pixels" if mpp is None else f"{mpp[1]:.4g} × {mpp[0]:.4g} µm"
    pixel += f" ({run.slide.mpp_origin})" if run.slide.mpp_origin else ""
    return [
        ("objects", _describe_objects(run, provenance)),
        ("blocks", f"{blocks}; {n_empty:,} more {provenance.reason_left_out}" if n_empty else blocks),
        ("computing", _computing(provenance.task_seconds)),
        ("segmenter", _segmenter(run)),
        ("slide", f"{width:,} × {height:,} px ({text(run.slide.format)})"),
        ("pixel size", pixel),
        ("warnings", f"{n_warnings}, see above" if n_warnings else "none"),
    ]


def _describe_objects(run: Run, provenance: Provenance) -> str:
    """Return the number of objects, how dense they lie and how large they are, as far as that is known."""
    words = [f"{provenance.objects:,} {text(run.label)}"]
    if (density := find_density(provenance, run)) is not None:
        words.append(f"{write_number(density)} per mm² of segmented blocks")
    if (areas := summarise_areas(run.paths)) is not None:
        first, median, third = map(write_number, areas.quartiles)
        words.append(f"median area {median} {areas.unit}, half lie between {first} and {third}")
    return "; ".join(words)


def _segmenter(run: Run) -> str:
    """Return the segmenter's kind, and its model or function if it has one."""
    kind, identity = run.settings.segmenter.kind, run.segmenter_identity.partition(", ")[0]
    return text(kind if identity in ("", kind) else f"{kind}: {identity}")


def _computing(seconds: Mapping[str, float]) -> str:
    """Return the seconds of all workers together, and of each stage."""
    stages = ", ".join(f"{text(stage)} {duration_words(value)}" for stage, value in seconds.items())
    return f"{duration_words(sum(seconds.values()))} of all workers together ({stages})" if seconds else "unknown"


def _seams_part(run: Run, seams: SeamReport) -> list[str]:
    """Make the part with the totals of the report on seams."""
    if len(run.grid) == 1:
        return ["## Seams", "The slide is one block, so it has none."]
    totals = seams.totals
    if not totals:
        return []
    if not totals["objects"]:
        return ["## Seams", "No object lies at a seam."]
    rows = []
    for name, meaning in COLUMNS.items():
        share = f"{100 * totals[name] / totals['objects']:.3g}&nbsp;%" if name in AMONG_OBJECTS else ""
        rows.append((f"**{name.replace('_', '-')}**", f"{totals[name]:,}", share, text(meaning)))
    command = f"slidesam seams {shlex.quote(str(run.store))} --label {run.label}"
    return [
        "## Seams",
        table(("at seams", "objects", "share", "what it means"), rows, "lrrl"),
        f"Seam by seam:\n\n{block(command)}",
    ]


def _provenance_part(run: Run, provenance: Provenance) -> list[str]:
    """Make the part on what made the result: it shows how two runs of a slide differ."""
    devices, threads = ", ".join(provenance.segmenter.devices), ", ".join(provenance.segmenter.threads)
    versions = " · ".join(f"{name} {version}" for name, version in provenance.versions.items())
    prints = " · ".join(f"{stage} {code(digest)}" for stage, digest in run.fingerprints.items())
    changes = changed_settings(run.settings)
    rows = [
        ("finished", text(provenance.finished)),
        ("device", text(f"{devices or 'unknown'}; threads: {threads or 'unknown'}")),
        ("identity", text(run.segmenter_identity)),
        ("image", text(f"{run.image_plan.mode}: {run.image_plan.reason}")),
        ("versions", text(versions)),
        ("fingerprints", prints),
    ]
    settings = block("\n".join(f"{name}: {value}" for name, value in changes.items())) if changes else "None."
    return [
        "## How it was made",
        table(("", ""), [(f"**{name}**", value) for name, value in rows]),
        "Settings that differ from the defaults:",
        settings,
    ]


def _where_part(run: Run) -> str:
    paths = {
        "labels": run.paths.label_image,
        "image and labels": run.store,
        "picture": run.paths.overlay,
        **{name: path for name, path in _list_exports(run).items() if path.exists()},
        "how it was made": run.paths.provenance,
    }
    return "## Where it is\n\n" + "\n".join(f"- {name}: {code(str(path))}" for name, path in paths.items())


def _list_exports(run: Run) -> dict[str, Path]:
    return {name: run.paths.export(ending) for ending, name in EXPORTS.items()}


def changed_settings(settings: Settings) -> dict[str, str]:
    """Return the settings that differ from the defaults, by their dotted names."""
    changes = {}
    for section in Settings.model_fields:
        model = getattr(settings, section)
        assert isinstance(model, BaseModel)
        values = model.model_dump(mode="json")
        for name, field in type(model).model_fields.items():
            if getattr(model, name) != field.get_default(call_default_factory=True):
                value = values[name]
                if isinstance(value, list) and len(set(map(str, value))) == 1 and name.endswith("shape"):
                    value = value[0]
                changes[f"{section}.{name}"] = in_one_line(str(value), 200)
    return changes


def failure_markdown(
    run: Run | None,
    slide: Path,
    error: Exception,
    *,
    output: Path | None = None,
    name: str | None = None,
    can_retry: bool = False,
) -> str:
    """Make the page of a failed run.

    Args:
        run: The run; None if it couldn't be planned.
        slide: The slide.
        error: What ended the run.
        output: The output folder, if known.
        name: The slide's name; None = the name of its file.
        can_retry: Whether the page has a Retry button.
    """
    name = name or (slide_name(slide) if run is None else run.name)
    output = output if run is None else run.output
    if isinstance(error, BlockFailures):
        title, explanation = count(error), _blocks_failed(run, error)
    else:
        title = "failed" if run is not None else "can't be segmented"
        explanation = [text(in_one_line(error, 2000))]
        if not isinstance(error, SlidesamError):
            explanation.append("slidesam doesn't expect this failure: the log on this page has its traceback.")
    return "\n\n".join(
        [
            f"# {text(name)}: {title}",
            *explanation,
            *_next_part(output, error, can_retry=can_retry),
            *_logs_part(run, slide),
        ]
    )


def count(error: BlockFailures) -> str:
    """Return how many blocks failed, as a title."""
    return f"{len(error.failures):,} of {error.n_blocks:,} blocks failed"


def _blocks_failed(run: Run | None, error: BlockFailures) -> list[str]:
    """Make the part on failed blocks: how many are done, and a row for each of the first failures."""
    n_done = error.n_blocks - len(error.failures) - error.untried
    summary = f"{n_done:,} blocks are done and kept."
    if error.untried:
        summary += f" {error.untried:,} weren't tried after so many failures in a row."
    failures = list(error.failures.items())[:_MOST_BLOCKS]
    rows = [_block_row(run, block_id, failure) for block_id, failure in failures]
    parts = [summary, table(("block", "row", "column", "pixel (x,&nbsp;y)", "what happened"), rows, "rrrrl")]
    if (n_omitted := len(error.failures) - len(failures)) > 0:
        parts.append(f"… and {n_omitted:,} more.")
    return parts


def _block_row(run: Run | None, block_id: int, failure: BlockFailure) -> tuple[str, ...]:
    message = text(in_one_line(failure.message, _ERROR_LENGTH))
    if failure.log_tail:
        # The last lines say how it ended.
        lines = [line.strip() for line in failure.log_tail.split(" | ")][-5:]
        message += "<br>its log ends with:<br>" + "<br>".join(text(in_one_line(line, _ERROR_LENGTH)) for line in lines)
    if run is None or not 0 <= block_id < len(run.grid):
        return str(block_id), "", "", "", message
    block = run.grid[block_id]
    row, column = block.block_index
    return str(block_id), str(row), str(column), f"{block.inner.x0},&nbsp;{block.inner.y0}", message


def _next_part(output: Path | None, error: Exception, *, can_retry: bool) -> list[str]:
    """Make the part on what to do."""
    if isinstance(error, SettingsError):
        return ["## What to do", "Start a new run with other settings: a retry would use the same settings."]
    if isinstance(error, BlockFailures):
        advice = "Once the cause is removed, a retry computes only the missing blocks:"
    elif isinstance(error, SlideError) and not isinstance(error, SlideGoneError):
        advice = "Repair or replace the file. A retry skips the slide until the file changes:"
    else:
        advice = "Once the cause is removed, a retry continues from what is finished:"
    ways = ["**Retry** in this run's menu"] if can_retry else []
    ways.append("the same command again" if output is None else code(f"slidesam retry {shlex.quote(str(output))}"))
    return ["## What to do", advice, "\n".join(f"- {way}" for way in ways)]


def _logs_part(run: Run | None, slide: Path) -> list[str]:
    lines = [f"- slide: {code(str(slide if run is None else run.slide.path))}"]
    if run is not None:
        lines.append(f"- intermediate results: {code(str(run.paths.work))}")
        if list_job_logs(run.output):
            lines.append(f"- logs of jobs: {code(str(jobs_folder(run.output)))}")
    return ["## Where to look", "\n".join(lines)]


def picture_uri(path: Path) -> str | None:
    """Return a picture as a data URI, reduced to some hundred kilobytes; None if there is no picture."""
    if not path.is_file():
        return None
    with Image.open(path) as picture:
        reduced = picture.convert("RGB")
    data = b""
    for side in _PICTURE_SIDES:
        reduced.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        reduced.save(buffer, "JPEG", quality=80, optimize=True)
        data = buffer.getvalue()
        if len(data) <= _PICTURE_BYTES:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
