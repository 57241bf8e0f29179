"""The columns of the table of objects: what was measured, in pixels and in µm, and what blocks and classes say of an object."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.export.index import ObjectIndex
from slidesam.tasks.export.measures import list_columns
from slidesam.tasks.run.regions import load_regions
from slidesam.tasks.run.run import Run
from slidesam.tasks.segmenters.votes import has_classes, name_classes
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.stitch.class_table import choose_colour, read_classes

Columns = dict[str, NDArray[Any]]
# As `unmix_stains` returns them.
_STAINS = ("hematoxylin", "eosin")
_LENGTHS = ("perimeter", "axis_major_length", "axis_minor_length")
# As QuPath names measurements, with the unit.
_SHOWN = {
    "area": "Area px^2", "area_um2": "Area µm^2", "perimeter": "Perimeter px", "perimeter_um": "Perimeter µm",
    "axis_major_length": "Major axis px", "axis_major_length_um": "Major axis µm",
    "axis_minor_length": "Minor axis px", "axis_minor_length_um": "Minor axis µm",
    "eccentricity": "Eccentricity", "solidity": "Solidity", "circularity": "Circularity",
    "class_probability": "Class probability",
}  # fmt: skip
_STATISTICS = {"mean": "mean", "std": "std.dev.", "min": "min", "max": "max", "median": "median"}
# More names than a classifier has classes; those without a name are their numbers.
_MOST_CLASSES = 1000


class ObjectClasses(NamedTuple):
    """The classes of a tile's objects.

    Attributes:
        numbers: (n,) place of each object's class in `shown`.
        probability: (n,) of that class; None of a run without classes.
        shown: Name and colour of each class.
    """

    numbers: NDArray[np.int64]
    probability: NDArray[np.float64] | None
    shown: Sequence[tuple[str, tuple[int, int, int]]]

    @classmethod
    def read(cls, run: Run, ids: NDArray[np.int64]) -> ObjectClasses:
        """Read the classes of these objects.

        Raises:
            OutputError: The table of classes is damaged or gone.
        """
        if not has_classes(run.settings.segmenter):
            return cls(np.zeros(ids.size, np.int64), None, [])
        table = read_classes(run.paths.classes)
        rows = table[np.searchsorted(table["object"], ids)]
        names, numbers = np.unique(rows["class"], return_inverse=True)
        known = name_classes(run.settings.segmenter, _MOST_CLASSES)
        shown = [(name, choose_colour(known.index(name))) for name in names.tolist()]
        return cls(numbers, rows["probability"], shown)


def name_channels(slide: Slide) -> list[str]:
    """Name what is measured, each differently: the channels that were segmented, and the stains of a bright-field slide."""
    names = [slide.channel_names[channel] for channel in slide.channels]
    told_apart = [
        name if names.count(name) == 1 else f"{name} {channel}"
        for name, channel in zip(names, slide.channels, strict=True)
    ]
    return [*told_apart, *_STAINS] if slide.is_rgb else told_apart


def complete_columns(
    run: Run, index: ObjectIndex, measured: Mapping[str, NDArray[Any]], classes: ObjectClasses
) -> Columns:
    """Add to what was measured what is known of the slide.

    Returns:
        Columns, (n,) each, in the order of `describe_columns`.
    """
    columns: Columns = {"label": index.ids}
    columns |= measured
    if run.slide.mpp is not None:
        columns |= _in_um(columns, run.slide.mpp)
    height, width = run.grid.block_shape
    rows, positions = columns["centroid-0"] // height, columns["centroid-1"] // width
    columns["block"] = (rows * run.grid.grid_shape[1] + positions).astype(np.int64)
    columns["blocks"] = index.blocks
    columns["fragments"], columns["disputed"] = index.fragments, index.disputed
    edges = (0, 0, *run.grid.shape)
    columns["touches_edge"] = np.logical_or.reduce([index.boxes[:, axis] == edge for axis, edge in enumerate(edges)])
    if (regions := load_regions(run)) is not None:
        columns["region"] = regions.find_points(columns["centroid-0"], columns["centroid-1"])
    if classes.probability is not None:
        columns["class"] = np.array([name for name, _ in classes.shown])[classes.numbers]
        columns["class_probability"] = classes.probability
    return columns


def _in_um(columns: Columns, mpp: tuple[float, float]) -> Columns:
    """Convert to µm; lengths by the mean pixel size where pixels aren't square."""
    area, length = mpp[0] * mpp[1], math.sqrt(mpp[0] * mpp[1])
    converted = {f"centroid_um-{axis}": columns[f"centroid-{axis}"] * mpp[axis] for axis in (0, 1)}
    converted["area_um2"] = columns["area"] * area
    return converted | {f"{name}_um": columns[name] * length for name in _LENGTHS}


def describe_columns(run: Run) -> dict[str, str]:
    """Return what each column of a run's table means, in the order of the table."""
    described = {"label": "Number of the object in the label image."} | list_columns(name_channels(run.slide))
    if run.slide.mpp is not None:
        described |= {
            "centroid_um-0": "Row of the centroid in µm, from the middle of the first pixel.",
            "centroid_um-1": "Column of the centroid in µm, from the middle of the first pixel.",
            "area_um2": "Area in µm².",
            "perimeter_um": "Perimeter in µm.",
            "axis_major_length_um": "Length of the major axis in µm.",
            "axis_minor_length_um": "Length of the minor axis in µm.",
        }
    described |= {
        "block": "Number of the block that owns the centroid, by rows.",
        "blocks": "How many blocks own a part of the object; more than one at a seam.",
        "fragments": "Of how many blocks' fragments the object is put together; 1: its outline is one block's.",
        "disputed": "Whether the object crosses a seam and the other block sees something else there, or nothing.",
        "touches_edge": "Whether the object touches the slide's edge.",
    }
    if run.region_identity is not None:
        described |= {"region": "Name of the region of interest that holds the centroid; empty: none does."}
    if has_classes(run.settings.segmenter):
        described |= {"class": "Its class.", "class_probability": "Share of the votes that the class has, from 0 to 1."}
    return described


def list_measurements(columns: Columns) -> tuple[list[str], NDArray[np.float64]]:
    """Return names and values, (n, k), of what goes along with outlines: in µm where the pixel size is known.

    Names are as QuPath writes them, with the unit.
    """
    has_um = "area_um2" in columns
    chosen = {}
    for name in columns:
        if name.startswith("intensity_"):
            statistic, _, channel = name.removeprefix("intensity_").partition("-")
            chosen[f"{channel}: {_STATISTICS[statistic]}"] = name
        elif name in _SHOWN and not (has_um and (name == "area" or name in _LENGTHS)):
            chosen[_SHOWN[name]] = name
    if not chosen:
        return [], np.zeros((columns["label"].size, 0))
    return list(chosen), np.column_stack([columns[name].astype(np.float64) for name in chosen.values()])
