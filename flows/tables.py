"""What the command line shows: a slide and its plan, the state of an output folder, the settings as YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from rich.console import Group
from rich.table import Table
from rich.text import Text

from slidesam.tasks.config import Settings
from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.plan import explain, finished_facts
from slidesam.tasks.segmenters import segmenter_identity
from slidesam.tasks.slide import Slide
from slidesam.tasks.work import Run

_COLOURS = {"finished": "green", "running": "yellow", "stopped": "yellow", "failed": "red"}


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
    blocks, segmenter = settings.blocks, settings.segmenter
    run = Run(slide=slide, output=(output or Path()).resolve(), settings=settings, segmenter_identity="")
    rows, columns = run.grid.grid_shape
    outer = " × ".join(map(str, reversed(run.grid.outer_shape)))
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
    return Group(table, *(Text(f"\n{state['error']}") for state in states if "error" in state))


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
