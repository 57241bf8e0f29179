"""Results of finished runs: labels and pixels that are read as they are indexed, objects, settings, provenance."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from numpy.typing import DTypeLike, NDArray

from slidesam.lazy_arrays import LazyArray
from slidesam.object_tables import read_objects
from slidesam.tasks.errors import OutputError
from slidesam.tasks.grid import Region
from slidesam.tasks.run.layout import STORE_SUFFIX, RunPaths, find_provenance, list_provenance
from slidesam.tasks.run.records import FileList, Provenance
from slidesam.tasks.run.run import Run
from slidesam.tasks.run.stage_folders import PaintFolder
from slidesam.tasks.run.status import read_states
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.stitch.class_table import read_classes
from slidesam.tasks.store import ome_zarr
from slidesam.tasks.store.file_list import find_metadata_damage
from slidesam.tasks.store.groups import read_group
from slidesam.tasks.store.image import has_pyramid
from slidesam.tasks.store.multiscales import LevelPlace
from slidesam.tasks.store.pyramids import (
    ShownLevel,
    list_slide_levels,
    open_image_levels,
    open_label_levels,
    word_damaged_metadata,
)
from slidesam.tasks.store.verify import Depth, check_image, check_result

# Of a level: shape, dtype, what reads a region of it, and where its pixels lie.
_Described = tuple[tuple[int, ...], DTypeLike, Callable[[Region], NDArray[Any]], LevelPlace]


class Result:
    """A finished run: one slide, one label image. `segment` and `open_result` make it.

    Args:
        output: The output folder.
        record: The provenance, as in `<name>.<label>.run.json`.

    Attributes:
        run: The provenance: how the result was made, with which settings, versions and devices.
        settings: The settings, with numbers where they said auto.
        slide: Facts on the slide.
    """

    def __init__(self, output: Path, record: Provenance) -> None:
        self.run = record.model_dump(mode="json")
        self._run = Run.of_record(record, output)
        self.slide, self.settings = self._run.slide, self._run.settings

    def __repr__(self) -> str:
        height, width = self.slide.shape
        return f"<Result {self.name} ({self.label}): {self.run['objects']} objects on {height} × {width} px in {self.store}>"

    @property
    def name(self) -> str:
        """The slide's name."""
        return self._run.name

    @property
    def label(self) -> str:
        """The label image's name."""
        return self._run.label

    @property
    def store(self) -> Path:
        """The OME-Zarr with image and labels."""
        return self._run.store

    @property
    def overlay(self) -> Path:
        """The picture of the result."""
        return self._run.paths.overlay

    @cached_property
    def labels(self) -> LazyArray:
        """(y, x) ids on the grid of the slide's level 0, 0 = background; `levels` has the coarser ones, with their places."""
        self._refuse_if_replaced()
        levels = open_label_levels(self._run.paths, self.slide)
        return _pyramid([(level.shape, level.dtype, partial(_read_labels, level), level.place) for level in levels])

    @cached_property
    def image(self) -> LazyArray:
        """(y, x, c) pixels of all channels, of the plane that was segmented, on the same grid as `labels`.

        They come from the store where the slide was converted, else from the slide's own file.

        Raises:
            OutputError: The store has another image by now.
        """
        slide = self.slide
        if self.run["image"]["mode"] == "convert":
            if not has_pyramid(self._run):
                raise OutputError(
                    f"{self.store} has another image by now: segment the slide again with the same settings"
                )
            levels = open_image_levels(self._run.paths, slide)
        else:
            levels = list_slide_levels(slide, partial(_read_slide, slide))
        channels = range(slide.size_c)
        return _pyramid(
            [
                ((*level.shape, slide.size_c), level.dtype, partial(_read_channels, level, channels), level.place)
                for level in levels
            ]
        )

    @cached_property
    def objects(self) -> NDArray[Any]:
        """One row per object, by id: `id`, `area` (px), centroid `y`, `x`, and box `y0`, `x0`, `y1`, `x1` (half open).

        A structured array: `objects["area"]` is a column, `pandas.DataFrame(objects)` a table.
        """
        self._refuse_if_replaced()
        fingerprint = self.run["fingerprints"]["export"]
        return read_objects(self._run, self.labels, PaintFolder(self._run.paths.work / f"paint-{fingerprint}"))

    @cached_property
    def classes(self) -> NDArray[Any]:
        """One row per object, by id: `object`, `class`, `probability`; of a run with `segmenter.classes`.

        Raises:
            OutputError: The run gave its objects no classes, or the table is damaged.
        """
        self._refuse_if_replaced()
        return read_classes(self._run.paths.classes)

    def as_run(self) -> Run:
        """Return the run, as functions of `slidesam.tasks` take it.

        Raises:
            OutputError: A later run wrote over the result.
        """
        self._refuse_if_replaced()
        return self._run

    def verify(self, *, whole: bool = True) -> list[str]:
        """Compare the result's files with the checksums that were noted, as `slidesam verify` does.

        Args:
            whole: Whether to read all files; else some of them, and the sizes of all.

        Returns:
            What is wrong, a sentence per file; nothing if the result is as it was written.
        """
        depth: Depth = "whole" if whole else "sample"
        is_listed = self.run.get("file_list") is not None
        findings = [check_image(self._run.paths, depth, is_listed=is_listed), check_result(self._run.paths, depth)]
        return [str(damage) for finding in findings for damage in finding.damages]

    def _refuse_if_replaced(self) -> None:
        """Refuse to read what a later run wrote over this result."""
        record = Provenance.read(self._run.paths.provenance)
        if record is None or record.fingerprints != self.run["fingerprints"]:
            raise OutputError(
                f"{self.name} ({self.label}) in {self._run.output} was segmented again with other settings: open the new result, "
                "and give runs that you want to keep names of their own (output.label)"
            )


def open_result(path: str | os.PathLike[str], label: str | None = None) -> Result:
    """Open the result of a finished run; pixels and labels are read later.

    Args:
        path: The store `<name>.ome.zarr`, the record `<name>.<label>.run.json`, or an output folder with one result.
        label: Name of the label image, where there are several.

    Raises:
        OutputError: There is no finished result, or more than one.
    """
    place = Path(path)
    if not place.exists():
        raise OutputError(f"{place} isn't there: correct the path")
    is_store = place.name.endswith(STORE_SUFFIX)
    output = place.parent if is_store or place.is_file() else place
    of_store = find_provenance(output, place.name.removesuffix(STORE_SUFFIX)).values()
    files = of_store if is_store else [place] if place.is_file() else list_provenance(output)
    results, unreadable = _read_results(output, files)
    if label is not None:
        results = [result for result in results if result.label == label]
    if not results and unreadable:
        raise unreadable[0]
    if not results:
        raise OutputError(_nothing_finished(place, output, label))
    if len(results) > 1:
        names = ", ".join(f"{result.store.name} ({result.label})" for result in results[:5])
        raise OutputError(
            f"{place} has {len(results)} results ({names}): open one store, with label= where it has several"
        )
    _refuse_damaged(results[0])
    if not ome_zarr.is_finished(results[0].store, results[0].label):
        raise OutputError(
            f"{results[0].store} has no finished label image {results[0].label}: segment the slide again to write it"
        )
    return results[0]


def _refuse_damaged(result: Result) -> None:
    """Refuse a result whose metadata can't be read: zarr's own words would say neither what to do nor which result it is."""
    paths = RunPaths.of_store(result.store, result.label)
    if not paths.label_image.is_dir():
        # It was begun again, or removed: no damage.
        return
    groups = [result.store, result.store / "labels", paths.label_image]
    damaged = [folder for folder in groups if folder.is_dir() and read_group(folder) is None]
    lists = [listed for path in (paths, paths.image) if (listed := FileList.read(path.file_list)) is not None]
    damaged += [damage.path for listed in lists for damage in find_metadata_damage(listed, paths.output)]
    if damaged:
        raise OutputError(word_damaged_metadata(damaged[0], paths.output))


def _read_results(output: Path, files: Iterable[Path]) -> tuple[list[Result], list[OutputError]]:
    """Read the records of finished runs; one that can't be read doesn't stop the others."""
    results, errors = [], []
    for file in files:
        try:
            record = Provenance.read(file)
            if record is None:
                errors.append(OutputError(f"{file} is damaged: segment the slide again with the same settings"))
            elif record.status == "finished":
                results.append(Result(output, record))
        except OutputError as error:
            errors.append(error)
    return results, errors


def _nothing_finished(place: Path, output: Path, label: str | None) -> str:
    """Describe a path without a finished result: what is there instead, and what to do."""
    result_name = f"{place}" + (f" (label {label})" if label else "")
    states = [state for state in read_states(output) if label in (None, state.label)]
    if place.name.endswith(STORE_SUFFIX):
        states = [state for state in states if f"{state.slide}{STORE_SUFFIX}" == place.name]
    if not states:
        return f"{result_name} has no finished result of slidesam: segment a slide into this folder first"
    standing = "; ".join(f"{state.slide} ({state.label}) is {state.state.status}" for state in states[:5])
    return f"{result_name} has no finished result: {standing}. Call segment with the same settings again to finish it"


def _pyramid(levels: Sequence[_Described]) -> LazyArray:
    """Return the first of several levels, which knows the coarser ones."""
    return LazyArray(*levels[0], tuple(LazyArray(*level) for level in levels[1:]))


def _read_labels(level: ShownLevel, region: Region) -> NDArray[Any]:
    labels: NDArray[Any] = level.read(region, (0,))[..., 0]
    return labels


def _read_channels(level: ShownLevel, channels: Sequence[int], region: Region) -> NDArray[Any]:
    return level.read(region, channels)


def _read_slide(slide: Slide, region: Region, level: int, channels: Sequence[int]) -> NDArray[Any]:
    with SlideReader(slide) as reader:
        return reader.read(region, level, channels)
