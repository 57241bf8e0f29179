"""What the command line shows: a slide and its plan, the state of an output folder, a run's seams, the settings as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from rich.console import Group
from rich.table import Table
from rich.text import Text

from slidesam.flows.cluster.cluster import ssh_line
from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.plan import explain, with_sizes
from slidesam.tasks.report.provenance import finished_facts
from slidesam.tasks.run.run import Run
from slidesam.tasks.segmenters import segmenter_identity
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.stitch.report import COLUMNS

_COLOURS = {"finished": "green", "running": "yellow", "stopped": "yellow", "failed": "red"}
# By what a seam is worth a look; the first of these are the ones that `slidesam seams` shows.
_DISAGREEMENTS, _WORST = ("contested", "one_sided", "united", "dropped"), 10
# Those that are counted among the objects at seams; of the others a share would say nothing.
_AMONG_OBJECTS = ("matched", "contested", "one_sided", "united")
_ADJACENT = {(0, 1): "side by side", (1, 0): "above and below", (1, 1): "at a corner", (1, -1): "at a corner"}


def slide_table(slide: Slide, settings: Settings, output: Path | None) -> Table:
    """What a slide is, and what `segment` would do with it.

    Args:
        slide: The slide's facts.
        settings: The settings that it would be segmented with.
        output: Where to look for results that are there already.
    """
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, words in [*_slide_rows(slide), *_plan_rows(slide, settings, output)]:
        table.add_row(name, Text(words))
    return table


def _slide_rows(slide: Slide) -> list[tuple[str, str]]:
    height, width = slide.shape
    pixel = (
        "unknown: sizes in µm are taken as pixels; set slide.mpp"
        if slide.mpp is None
        else f"{slide.mpp[1]:.4g} × {slide.mpp[0]:.4g} µm"
    )
    if slide.mpp is not None:
        pixel += f", the slide {width * slide.mpp[1] / 1000:.2f} × {height * slide.mpp[0] / 1000:.2f} mm"
    chosen = ", ".join(slide.channel_names[channel] for channel in slide.channels)
    levels = ", ".join(f"{level.shape[1]} × {level.shape[0]}" for level in slide.levels)
    return [
        ("slide", f"{slide.path}"),
        ("format", f"{slide.format}, image {slide.series} of {slide.n_series}"),
        ("size", f"{width} × {height} px (width × height), {slide.dtype}"),
        ("levels", levels),
        ("pixel", pixel),
        ("channels", f"{', '.join(slide.channel_names)}; segmented: {chosen}"),
        ("planes", f"{slide.size_t} time points, {slide.size_z} focal planes; segmented: t = {slide.t}, z = {slide.z}"),
        *(("note", warning) for warning in slide.warnings),
    ]


def _plan_rows(slide: Slide, settings: Settings, output: Path | None) -> list[tuple[str, str]]:
    settings = with_sizes(slide, settings)
    blocks, segmenter = settings.blocks, settings.segmenter
    run = Run(slide=slide, output=(output or Path()).resolve(), settings=settings, segmenter_identity="")
    rows, columns = run.grid.grid_shape
    outer = " × ".join(map(str, reversed(run.segmented_grid.outer_shape)))
    plan = [
        ("pixels", f"{run.image_plan.mode}: {run.image_plan.reason}"),
        ("blocks", f"{len(run.grid)} ({columns} × {rows}) of {blocks.block_shape[1]} × {blocks.block_shape[0]} px; "
                   f"with a halo of {blocks.halo} px the segmenter sees {outer} px"),
    ]  # fmt: skip
    try:
        identity = segmenter_identity(segmenter, slide.is_rgb)
    except SegmenterError as error:
        return [*plan, ("segmenter", f"{segmenter.kind}, not ready: {error}")]
    plan.append(("segmenter", f"{segmenter.kind}: {identity}"))
    if output is None:
        return plan
    run = run.model_copy(update={"segmenter_identity": identity})
    if finished_facts(run) is not None:
        return [*plan, ("to do", "nothing: finished with these settings")]
    return [*plan, *(("to do", line) for line in explain(run))]


def status_table(states: list[dict[str, Any]]) -> Group:
    """One row per run of an output folder, and below them what went wrong.

    Args:
        states: As `read_states` returns them.
    """
    table = Table(box=None, pad_edge=False)
    for name in ("slide", "label", "status", "blocks", "objects", "updated"):
        table.add_column(name, justify="right" if name in ("blocks", "objects") else "left", overflow="fold")
    for state in states:
        status = state["status"]
        blocks = f"{state['blocks_done']} of {state['blocks']}" if "blocks" in state else ""
        objects = f"{state['objects']:,}" if "objects" in state else ""
        updated = state.get("updated", "")[:16].replace("T", " ")
        shown = Text(status, _COLOURS.get(status, ""))
        table.add_row(Text(state["slide"]), Text(state["label"]), shown, blocks, objects, updated)
    pages = {page for state in states if state["status"] == "running" for page in state.get("dashboards", {}).values()}
    watched = (Text(f"\nDask dashboard: {page} (from elsewhere: {ssh_line(page)})") for page in sorted(pages))
    return Group(table, *watched, *(Text(f"\n{state['error']}") for state in states if "error" in state))


def seams_view(facts: dict[str, Any], *, everything: bool = False) -> Group:
    """What happened at the seams of a finished run: totals, warnings, and the seams at which blocks disagree most.

    Args:
        facts: The provenance, as in `<name>.<label>.run.json`, with its report on seams.
        everything: Whether to list all seams at which objects lie.
    """
    report, blocks = facts["seams"], facts["settings"]["blocks"]
    grid = BlockGrid(tuple(facts["slide"]["levels"][0]["shape"]), tuple(blocks["block_shape"]), blocks["halo"])
    height, width = grid.block_shape
    parts: list[Text | Table] = [
        Text(f"{facts['slide']['name']}: {facts['objects']:,} {facts['label']} in {len(grid):,} blocks "
             f"of {width} × {height} px with a halo of {grid.halo} px", "bold"),
    ]  # fmt: skip
    if len(grid) == 1:
        return Group(Text(f"{facts['slide']['name']}: the slide is one block, so it has no seams"))
    if report["rows"]:
        parts += [Text(), _totals_table(report["totals"])]
    elif grid.halo:
        parts.append(Text("no object lies at a seam"))
    parts += [Text.assemble("\n", ("note: ", "yellow"), warning) for warning in report["warnings"]]
    return Group(*parts, *_seam_parts(report, grid, everything=everything))


def _totals_table(totals: dict[str, int]) -> Table:
    """Counts for the slide, their share of the objects at seams, and what they mean."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    for name, words in COLUMNS.items():
        share = f"{100 * totals[name] / max(totals['objects'], 1):.3g} %" if name in _AMONG_OBJECTS else ""
        table.add_row(_in_words(name), f"{totals[name]:,}", share, words)
    return table


def _seam_parts(report: dict[str, Any], grid: BlockGrid, *, everything: bool) -> list[Text | Table]:
    """The seams, those with most disagreements first, under a sentence that says which of them these are."""
    seams = [dict(zip(report["columns"], row, strict=True)) for row in report["rows"]]
    if not seams:
        return []
    seams.sort(key=_disagreements, reverse=True)
    telling = [seam for seam in seams if _disagreements(seam)]
    shown = seams if everything else telling[:_WORST]
    where = f"\nobjects lie at {len(seams):,} of {sum(1 for _ in grid.seams()):,} seams"
    if not shown:
        return [Text(f"{where}, and at all of them blocks agree (--all lists them)")]
    most = f", most at these {_WORST}" if len(telling) > _WORST else ""
    if not everything:
        where += f"; at {len(telling):,} blocks disagree or see only fragments{most} (--all lists all)"
    return [Text(f"{where}:"), _seams_table(shown, grid)]


def _disagreements(seam: dict[str, int]) -> int:
    return sum(seam[name] for name in _DISAGREEMENTS)


def _seams_table(seams: list[dict[str, int]], grid: BlockGrid) -> Table:
    """A row per seam; as wide as it must be, since numbers that are cut say nothing."""
    names = ["block", "and block", "lie", *map(_in_words, COLUMNS)]
    rows = [[*_place(grid, seam["first"], seam["second"]), *(f"{seam[name]:,}" for name in COLUMNS)] for seam in seams]
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(zip(names, *rows, strict=True)):
        table.add_column(column[0], justify="left" if number < 3 else "right", min_width=max(map(len, column)))
    for row in rows:
        table.add_row(*row)
    return table


def _place(grid: BlockGrid, first: int, second: int) -> tuple[str, str, str]:
    """Row and column of two blocks, and how they lie to each other."""
    (row, column), (other_row, other_column) = grid[first].block_index, grid[second].block_index
    # Where the halo is wider than a block, blocks that don't touch see the same pixels.
    lie = _ADJACENT.get((other_row - row, other_column - column), "apart")
    return f"row {row}, column {column}", f"row {other_row}, column {other_column}", lie


def _in_words(name: str) -> str:
    return name.replace("_", "-")


def settings_yaml(settings: Settings) -> str:
    """The settings as YAML, each with its explanation above it."""
    lines = []
    for section in Settings.model_fields:
        model = getattr(settings, section)
        assert isinstance(model, BaseModel)
        lines.append(f"# {(type(model).__doc__ or '').strip().splitlines()[0]}\n{section}:")
        for name, field in type(model).model_fields.items():
            value = yaml.safe_dump(model.model_dump(mode="json")[name], default_flow_style=True, width=1000)
            lines.append(f"  # {field.description}\n  {name}: {value.removesuffix('...' + chr(10)).strip()}")
        lines.append("")
    return "\n".join(lines)
