"""Tables of the command line: a slide and its plan, the status of an output folder, a run's seams, the settings as YAML."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import yaml
from pydantic import BaseModel
from rich.console import Group
from rich.table import Table
from rich.text import Text

from slidesam.flows.cluster.cluster import ssh_line
from slidesam.flows.cluster.links import find_page_link
from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.plan import describe_unpermitted, explain
from slidesam.tasks.report.provenance import read_finished
from slidesam.tasks.run.records import Provenance, SeamReport
from slidesam.tasks.run.regions import list_region_blocks
from slidesam.tasks.run.status import RunState
from slidesam.tasks.segmenters import segmenter_identity
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.stitch.report import AMONG_OBJECTS, COLUMNS, count_disagreements, locate_seam, rank_seams

_COLOURS = {"finished": "green", "running": "yellow", "stopped": "yellow", "failed": "red", "unfinished": "red"}
# How many seams `slidesam seams` shows.
_WORST = 10


def slide_table(slide: Slide, settings: Settings, output: Path | None, allowed: Collection[str] = ()) -> Table:
    """Describe a slide, and what `segment` would do with it.

    Args:
        slide: The slide.
        settings: What to compute.
        output: Where to look for existing results.
        allowed: Code that the person allows the segmenter to load.
    """
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in [*_slide_rows(slide), *_plan_rows(slide, settings, output, allowed)]:
        table.add_row(name, Text(value))
    return table


def _slide_rows(slide: Slide) -> list[tuple[str, str]]:
    height, width = slide.shape
    pixel = (
        "unknown: sizes in µm are taken as pixels; set slide.mpp"
        if slide.mpp is None
        else f"{slide.mpp[1]:.4g} × {slide.mpp[0]:.4g} µm"
    )
    if slide.mpp is not None:
        origin = f" ({slide.mpp_origin})" if slide.mpp_origin else ""
        pixel += f"{origin}, the slide {width * slide.mpp[1] / 1000:.2f} × {height * slide.mpp[0] / 1000:.2f} mm"
    segmented = ", ".join(slide.channel_names[channel] for channel in slide.channels)
    levels = ", ".join(f"{level.shape[1]} × {level.shape[0]}" for level in slide.levels)
    return [
        ("slide", f"{slide.path}"),
        ("format", f"{slide.format}, image {slide.series} of {slide.n_series}"),
        ("size", f"{width} × {height} px (width × height), {slide.dtype}"),
        ("levels", levels),
        ("pixel", pixel),
        ("channels", f"{', '.join(slide.channel_names)}; segmented: {segmented}"),
        ("planes", f"{slide.size_t} time points, {slide.size_z} focal planes; segmented: t = {slide.t}, z = {slide.z}"),
        *(("note", warning) for warning in slide.warnings),
    ]


def _plan_rows(
    slide: Slide, settings: Settings, output: Path | None, allowed: Collection[str]
) -> list[tuple[str, str]]:
    run = describe_unpermitted(slide, output or Path(), settings)
    (height, width), halo = run.settings.blocks.sizes
    segmenter, regions = run.settings.segmenter, list_region_blocks(run)
    rows, columns = run.grid.grid_shape
    outer = " × ".join(map(str, reversed(run.segmented_grid.outer_shape)))
    plan = [
        ("pixels", f"{run.image_plan.mode}: {run.image_plan.reason}"),
        ("blocks", f"{len(run.grid)} ({columns} × {rows}) of {width} × {height} px; "
                   f"with a halo of {halo} px the segmenter sees {outer} px"),
        *([] if regions is None else [("", f"{len(regions)} of them see a region of {run.settings.blocks.region}")]),
    ]  # fmt: skip
    try:
        identity = segmenter_identity(segmenter, slide.is_rgb, allowed)
    except SegmenterError as error:
        return [*plan, ("segmenter", f"{segmenter.kind}, not ready: {error}")]
    plan.append(("segmenter", f"{segmenter.kind}: {identity}"))
    if output is None:
        return plan
    # Another one: what was asked of the first stays in it, and hangs on its segmenter.
    run = describe_unpermitted(slide, output, settings).model_copy(update={"segmenter_identity": identity})
    if read_finished(run) is not None:
        return [*plan, ("to do", "nothing: finished with these settings")]
    return [*plan, *(("to do", line) for line in explain(run))]


def status_table(states: list[RunState], output: Path) -> Group:
    """Make a table with a row per run of an output folder, and the warnings and errors below it.

    Args:
        states: As `read_states` returns them.
        output: The output folder.
    """
    table = Table(box=None, pad_edge=False)
    for name in ("slide", "label", "status", "blocks", "objects", "updated"):
        table.add_column(name, justify="right" if name in ("blocks", "objects") else "left", overflow="fold")
    for run in states:
        state = run.state
        blocks = "" if run.blocks is None else f"{run.blocks_done} of {run.blocks}"
        objects = "" if state.objects is None else f"{state.objects:,}"
        updated = state.updated[:16].replace("T", " ")
        status = Text(state.status, _COLOURS.get(state.status, ""))
        table.add_row(Text(run.slide), Text(run.label), status, blocks, objects, updated)
    pages = {page for run in states if run.state.status == "running" for page in run.state.dashboards.values()}
    dashboards = (
        Text(f"\nDask dashboard: {find_page_link(output, page) or page} (from elsewhere: {ssh_line(page)})")
        for page in sorted(pages)
    )
    notes = [
        Text.assemble("\n", ("note: ", "yellow"), f"{run.slide}: {warning}")
        for run in states
        for warning in run.state.warnings
    ]
    errors = (Text(f"\n{run.state.error}") for run in states if run.state.error is not None)
    return Group(table, *dashboards, *notes, *errors)


def seams_view(record: Provenance, *, everything: bool = False) -> Group:
    """Show what happened at the seams of a finished run: totals, warnings, and the seams with most disagreements.

    Args:
        record: The provenance, as in `<name>.<label>.run.json`, with its report on seams.
        everything: Whether to list all seams at which objects lie.
    """
    report, blocks = record.seams or SeamReport(), record.settings["blocks"]
    grid = BlockGrid(record.slide.shape, tuple(blocks["block_shape"]), blocks["halo"])
    height, width = grid.block_shape
    parts: list[Text | Table] = [
        Text(f"{record.slide.name}: {record.objects:,} {record.label} in {len(grid):,} blocks "
             f"of {width} × {height} px with a halo of {grid.halo} px", "bold"),
    ]  # fmt: skip
    if len(grid) == 1:
        return Group(Text(f"{record.slide.name}: the slide is one block, so it has no seams"))
    if report.rows:
        parts += [Text(), _totals_table(report.totals)]
    elif grid.halo:
        parts.append(Text("no object lies at a seam"))
    parts += [Text.assemble("\n", ("note: ", "yellow"), warning) for warning in report.warnings]
    return Group(*parts, *_seam_parts(report, grid, everything=everything))


def _totals_table(totals: dict[str, int]) -> Table:
    """Make a table of the slide's counts, their share of the objects at seams, and their meaning."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    for name, meaning in COLUMNS.items():
        share = f"{100 * totals[name] / max(totals['objects'], 1):.3g} %" if name in AMONG_OBJECTS else ""
        table.add_row(_hyphenate(name), f"{totals[name]:,}", share, meaning)
    return table


def _seam_parts(report: SeamReport, grid: BlockGrid, *, everything: bool) -> list[Text | Table]:
    """Make a table of seams, those with most disagreements first, below a sentence on their number."""
    seams = rank_seams(report)
    if not seams:
        return []
    disagreeing = [seam for seam in seams if count_disagreements(seam)]
    seam_rows = seams if everything else disagreeing[:_WORST]
    sentence = f"\nobjects lie at {len(seams):,} of {sum(1 for _ in grid.seams()):,} seams"
    if not seam_rows:
        return [Text(f"{sentence}, and blocks agree at all of them (--all lists them)")]
    limit_note = f", most at these {_WORST}" if len(disagreeing) > _WORST else ""
    if not everything:
        sentence += f"; at {len(disagreeing):,} blocks disagree or see only fragments{limit_note} (--all lists all)"
    return [Text(f"{sentence}:"), _seams_table(seam_rows, grid)]


def _seams_table(seams: list[dict[str, int]], grid: BlockGrid) -> Table:
    """Make a table with a row per seam, as wide as necessary: numbers must not be cut."""
    names = ["block", "and block", "lie", *map(_hyphenate, COLUMNS)]
    rows = [[*locate_seam(grid, seam), *(f"{seam[name]:,}" for name in COLUMNS)] for seam in seams]
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(zip(names, *rows, strict=True)):
        table.add_column(column[0], justify="left" if number < 3 else "right", min_width=max(map(len, column)))
    for row in rows:
        table.add_row(*row)
    return table


def _hyphenate(name: str) -> str:
    return name.replace("_", "-")


def settings_yaml(settings: Settings) -> str:
    """Return the settings as YAML, each below its explanation."""
    lines = []
    for section in Settings.model_fields:
        model = getattr(settings, section)
        assert isinstance(model, BaseModel)
        lines.append(f"# {(type(model).__doc__ or '').strip().splitlines()[0]}\n{section}:")
        for name, field in type(model).model_fields.items():
            value = yaml.safe_dump(model.model_dump(mode="json").get(name), default_flow_style=True, width=1000)
            lines.append(f"  # {field.description}\n  {name}: {value.removesuffix('...' + chr(10)).strip()}")
        lines.append("")
    return "\n".join(lines)
