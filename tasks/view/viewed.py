"""Open a finished result to be viewed: its image, its label images, and what a person should know of either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from slidesam.tasks.errors import OutputError, SlideError
from slidesam.tasks.grid import Region
from slidesam.tasks.report.overlay import display_channels, display_windows, outline_colour, to_rgb
from slidesam.tasks.run.records import Provenance
from slidesam.tasks.run.run import Run
from slidesam.tasks.segmenters.votes import has_classes, name_classes
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.stitch.class_table import choose_colour
from slidesam.tasks.store.image import has_image, has_pyramid
from slidesam.tasks.store.ome_zarr import is_finished
from slidesam.tasks.store.pyramids import ShownLevel, list_slide_levels, open_image_levels, open_label_levels
from slidesam.tasks.view.density_map import choose_cell
from slidesam.tasks.view.image_tiles import ShownChannel, ShownImage
from slidesam.tasks.view.object_rows import ObjectSummary, summarise_objects

# The contrast is chosen from a level that fits into so many pixels.
_SAMPLE_SIDE = 2048
_WHITE = "FFFFFF"
_MOST_SHOWN = 3
# Pure blue is hard to see on black.
_BLUE, _LIGHTER_BLUE = (0, 0, 255), (70, 110, 255)
_MOST_CLASSES = 1000


class ViewedLabels:
    """A finished label image.

    Args:
        run: Its run.
        objects: How many objects it has.

    Attributes:
        levels: Its levels, finest first.

    Raises:
        OutputError: It isn't whole.
    """

    def __init__(self, run: Run, objects: int) -> None:
        if not is_finished(run.store, run.label):
            raise OutputError(
                f"{run.store} has no finished label image {run.label}: segment the slide again to write it"
            )
        self._run, self.objects = run, objects
        self.levels = open_label_levels(run.paths, run.slide)
        if not self.levels or self.levels[0].shape != run.slide.shape:
            raise OutputError(
                f"{run.paths.label_image} isn't whole: `slidesam verify {run.output}` names what is damaged"
            )
        self._stamp = _stamp(run.paths.provenance)

    @property
    def table(self) -> Path:
        """The table of its objects, which may not be there."""
        return self._run.paths.objects("parquet")

    @property
    def way_to_table(self) -> str:
        """What to do for a table."""
        return f"slidesam export {self._run.store} --label {self._run.label} --format table"

    @property
    def is_replaced(self) -> bool:
        """Whether the result was written again since it was opened."""
        return _stamp(self._run.paths.provenance) != self._stamp

    @cached_property
    def summary(self) -> ObjectSummary | None:
        """All objects as a map of them needs them; None where there is no table.

        Raises:
            OutputError: The table is damaged.
        """
        shape = self._run.slide.shape
        return summarise_objects(self.table, shape, choose_cell(shape)) if self.table.is_file() else None

    @property
    def classes(self) -> ObjectSummary | None:
        """The same of a run with classes; None of others, and where the table is damaged."""
        try:
            return self.summary if has_classes(self._run.settings.segmenter) else None
        except OutputError:
            # Outlines are shown in one colour then; who asks for the summary is told why.
            return None

    def colours(self, default: tuple[int, int, int]) -> list[tuple[int, int, int]]:
        """Return the colour of each class; the default where there are no classes."""
        classes = self.classes
        if classes is None or not classes.class_names:
            return [default]
        known = name_classes(self._run.settings.segmenter, _MOST_CLASSES)
        return [choose_colour(known.index(name) if name in known else 0) for name in classes.class_names]


class ViewedResult:
    """A result that is viewed. Its files are opened to be read only.

    Args:
        output: The output folder.
        records: Provenance of its finished label images, by label.

    Attributes:
        slide: Facts on the slide.
        labels: The label images, by name.
        image: The image.
        channels: The channels that can be shown.
        limits: Between which values the window of each can be moved.
        shown: Numbers of those that are shown at first.
        outline: Colour in which outlines are visible on the image.
        notes: What a person should know, one sentence each.

    Raises:
        OutputError: None of the label images can be shown, or there is no image.
    """

    def __init__(self, output: Path, records: Mapping[str, Provenance]) -> None:
        runs = {name: Run.of_record(record, output) for name, record in records.items()}
        self._runs = list(runs.values())
        self.slide: Slide = self._runs[0].slide
        self.notes: list[str] = []
        self.labels = self._open_labels(runs, records)
        self.image = ShownImage(self.slide.shape, self._open_levels(), self.slide.is_rgb)
        self._choose_display()

    @property
    def store(self) -> Path:
        """The OME-Zarr with image and labels."""
        return self._runs[0].store

    def _open_labels(self, runs: Mapping[str, Run], records: Mapping[str, Provenance]) -> dict[str, ViewedLabels]:
        """Open the label images; a damaged one doesn't stop the others."""
        labels, errors = {}, []
        for name, run in runs.items():
            try:
                labels[name] = ViewedLabels(run, records[name].objects)
            except OutputError as error:
                errors.append(error)
        if not labels:
            raise errors[0]
        self.notes += [f"{error}." for error in errors]
        return labels

    def _open_levels(self) -> list[ShownLevel]:
        """Open the whole pyramid in the store, else the slide's levels and the store's overview."""
        for run in self._runs:
            if has_pyramid(run):
                return open_image_levels(run.paths, self.slide)
        overview = next((open_image_levels(run.paths, self.slide) for run in self._runs if has_image(run)), [])
        if overview and overview[0].shape == self.slide.shape:
            # The slide is so small that its overview is all of it.
            return overview
        try:
            self._reader = SlideReader(self.slide)
        except SlideError as error:
            if not overview:
                raise OutputError(
                    f"{self.store} has no image, and the slide can't be read ({error}): put the slide back, or segment it again"
                ) from error
            step = overview[0].place.step[0]
            self.notes.append(
                f"The image is an overview, one pixel for {step:.3g} × {step:.3g} of the slide: the store holds no more, and the "
                f"slide itself can't be read ({error.what or error})."
            )
            return overview
        levels = list_slide_levels(self.slide, self._reader.read)
        usable = [level for level, facts in zip(levels, self.slide.levels, strict=True) if facts.is_faithful]
        self.notes.append(f"Full resolution is read from {self.slide.path}; the store holds an overview.")
        return [*(usable or levels[:1]), *overview]

    def _choose_display(self) -> None:
        """Choose colours and windows from a coarse level, and the colour of outlines from what is seen then."""
        sample = _choose_sample(self.image.levels)
        numbers = tuple(range(self.slide.size_c))
        region = _find_middle(sample.shape)
        # Colours together, since they share a window; else one channel at a time, as there can be many.
        groups = [numbers] if self.slide.is_rgb else [(number,) for number in numbers]
        windows: list[tuple[float, float]] = []
        self.limits: list[tuple[float, float]] = []
        for group in groups:
            pixels = sample.read(region, group)
            windows += display_windows(pixels, is_rgb=self.slide.is_rgb)
            self.limits += [_limits(pixels[..., place], windows[number]) for place, number in enumerate(group)]
        self.channels = [
            ShownChannel(number, colour, (low, high if high > low else low + 1))
            for number, colour, (low, high) in zip(numbers, self._read_colours(), windows, strict=True)
        ]
        # Those that were segmented, and others beside them as far as colours can be told apart.
        chosen = display_channels(self.slide)
        self.shown = (*chosen, *(number for number in numbers if number not in chosen))[:_MOST_SHOWN]
        visible = to_rgb(sample.read(region, chosen), [windows[number] for number in chosen])
        self.outline = outline_colour(visible)

    def _read_colours(self) -> list[tuple[int, int, int]]:
        """Read the channels' colours from the store's image; a single one is grey, unless the slide has a colour for it."""
        attributes: dict[str, Any] = zarr.open_group(self.store, mode="r").attrs.asdict()
        described = attributes.get("ome", attributes).get("omero", {}).get("channels", [])
        stated = [channel.get("color", _WHITE) for channel in described]
        if len(stated) != self.slide.size_c or (len(stated) == 1 and self.slide.display[0].colour is None):
            stated = [_WHITE] * self.slide.size_c
        return [_to_colour(text) for text in stated]


def _choose_sample(levels: Sequence[ShownLevel]) -> ShownLevel:
    """Choose the finest level that is small enough, else the coarsest."""
    by_size = sorted(levels, key=lambda level: -max(level.shape))
    return next((level for level in by_size if max(level.shape) <= _SAMPLE_SIDE), by_size[-1])


def _find_middle(shape: tuple[int, int]) -> Region:
    """Return the middle of a level, or all of one that is small."""
    y0, x0 = (max(0, (size - _SAMPLE_SIDE) // 2) for size in shape)
    return Region(y0, x0, min(y0 + _SAMPLE_SIDE, shape[0]), min(x0 + _SAMPLE_SIDE, shape[1]))


def _limits(pixels: np.ndarray[Any, Any], window: tuple[float, float]) -> tuple[float, float]:
    """Return between which values a window can be moved."""
    if pixels.dtype == np.uint8:
        return 0.0, 255.0
    finite = pixels[np.isfinite(pixels)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else window
    return min(low, window[0]), max(high, window[1], window[0] + 1)


def _to_colour(text: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(text[:6])
    return _LIGHTER_BLUE if (red, green, blue) == _BLUE else (red, green, blue)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what tells whether a file was replaced."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns
