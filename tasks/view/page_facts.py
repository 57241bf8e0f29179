"""What the page is told of a result, as JSON has it."""

from __future__ import annotations

from typing import Any

from slidesam.tasks.view.image_tiles import TILE
from slidesam.tasks.view.object_rows import find_row
from slidesam.tasks.view.object_shapes import surround, trace_rings
from slidesam.tasks.view.outline_tiles import FINENESS
from slidesam.tasks.view.viewed import ViewedLabels, ViewedResult


def describe_result(viewed: ViewedResult) -> dict[str, Any]:
    """Describe a result for the page."""
    slide = viewed.slide
    names = slide.channel_names
    return {
        "name": slide.name, "height": slide.shape[0], "width": slide.shape[1], "mpp": slide.mpp, "tile": TILE,
        "fineness": FINENESS, "is_rgb": slide.is_rgb, "notes": viewed.notes, "outline": _to_hex(viewed.outline),
        "channels": [
            {
                "number": channel.number, "name": names[channel.number], "colour": _to_hex(channel.colour),
                "low": channel.window[0], "high": channel.window[1], "limits": limits,
                "is_shown": channel.number in viewed.shown,
            }
            for channel, limits in zip(viewed.channels, viewed.limits, strict=True)
        ],
        "labels": [{"name": name, "objects": labels.objects} for name, labels in viewed.labels.items()],
    }  # fmt: skip


def summarise_label(labels: ViewedLabels) -> dict[str, Any]:
    """Describe all objects of a label image: their classes and their usual size; without a table, how to make one.

    Raises:
        OutputError: The table is damaged.
    """
    summary = labels.summary
    if summary is None:
        return {"classes": [], "diameter": None, "way_to_table": labels.way_to_table}
    classes = [
        {"name": name, "colour": _to_hex(colour), "objects": int(density.counts.sum())}
        for name, density, colour in zip(
            summary.class_names, summary.densities, labels.colours((0, 0, 0)), strict=False
        )
    ]
    return {"classes": classes, "diameter": summary.diameter, "way_to_table": None}


def describe_object(labels: ViewedLabels, number: int, at: tuple[int, int] | None = None) -> dict[str, Any]:
    """Describe an object for the page.

    Args:
        labels: The label image.
        number: The object; 0 = none.
        at: Row and column of a pixel of it, where it was found by that.

    Raises:
        OutputError: The table or the label image is damaged.
    """
    if number == 0 or not (has_table := labels.table.is_file()):
        box = surround(labels.levels, *at) if number and at else None
        rings = trace_rings(labels.levels, number, box) if box else []
        way = labels.way_to_table if number else None
        return {"number": number, "row": None, "box": None, "rings": rings, "way_to_table": way}
    row = find_row(labels.table, number) if has_table else None
    if row is None:
        return {"number": number, "row": None, "box": None, "rings": [], "way_to_table": None}
    rings = trace_rings(labels.levels, number, row.box)
    return {"number": number, "row": row.cells, "box": row.box, "rings": rings, "way_to_table": None}


def _to_hex(colour: tuple[int, int, int]) -> str:
    return bytes(colour).hex()
