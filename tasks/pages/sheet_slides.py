"""What a contact sheet says of each slide: a small picture with the objects' density, some numbers, notes, and what failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from slidesam.tasks.errors import OutputError, SlidesamError
from slidesam.tasks.pages.density import DensityMap, choose_side, draw_density
from slidesam.tasks.pages.html import encode_picture
from slidesam.tasks.pages.slide_map import read_thumbnail
from slidesam.tasks.pages.slide_page import find_density
from slidesam.tasks.report.overlay import display_channels
from slidesam.tasks.run.layout import RunPaths, list_provenance
from slidesam.tasks.run.records import Provenance
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings

# Far from the folder's median: so many times the scaled median absolute deviation, among so many slides at least.
# Iglewicz & Hoaglin, How to Detect and Handle Outliers, 1993, take 3.5 of the unscaled score, which is 2.4 here.
FAR, FEWEST = 3.0, 5
_SCALE = 1.4826
_AREAS = ("area_um2", "area")


class AreaSummary(NamedTuple):
    """The areas of a result's objects.

    Attributes:
        quartiles: Lower quartile, median, upper quartile.
        unit: µm², or px² where the pixel size isn't known.
    """

    quartiles: tuple[float, float, float]
    unit: str


class SheetSlide(NamedTuple):
    """A finished result.

    Attributes:
        name: The slide.
        label: Name of the label image.
        objects: How many there are.
        density: Objects per mm² of segmented blocks, 0 where none was; None where the pixel size isn't known.
        areas: Of the objects; None where there is no table of them, or no object.
        notes: What a person should know, one sentence each.
        report: Name of its report; None where there is none.
        picture: Data URI; None where it can't be drawn.
    """

    name: str
    label: str
    objects: int
    density: float | None
    areas: AreaSummary | None
    notes: tuple[str, ...]
    report: str | None
    picture: str | None


def summarise_areas(paths: RunPaths) -> AreaSummary | None:
    """Summarise the areas of a result's objects, from their table; None where there is none, or no object."""
    # Imported here: most who import this draw no sheet.
    import pyarrow.parquet as pq

    table = paths.objects("parquet")
    if not table.is_file():
        return None
    names = pq.read_schema(table).names
    name = next(name for name in _AREAS if name in names)
    areas = pq.read_table(table, columns=[name])[name].to_numpy()
    if not areas.size:
        return None
    first, median, third = np.percentile(areas, (25, 50, 75)).tolist()
    return AreaSummary((first, median, third), "µm²" if name == "area_um2" else "px²")


def read_slides(output: Path, side: int) -> Iterator[SheetSlide]:
    """Read the finished results of an output folder, one after the other, by slide and label.

    Args:
        output: The folder.
        side: Height and width of the pictures at most, in pixels.
    """
    for path in list_provenance(output):
        paths = RunPaths.of_provenance(path)
        # A record of another version is no slide that can be compared.
        with suppress(OutputError):
            record = Provenance.read(path)
            if record is not None:
                yield _read_slide(paths, record, side)


def _read_slide(paths: RunPaths, record: Provenance, side: int) -> SheetSlide:
    notes = [*record.slide.warnings, *record.warnings, *(record.seams.warnings if record.seams else ())]
    picture, density = None, None
    try:
        run = Run(
            slide=record.slide,
            output=paths.output,
            settings=make_settings(record.settings),
            segmenter_identity=record.segmenter.identity,
        )
        density = find_density(record, run)
        picture = _draw(run, side)
    except (SlidesamError, OSError, KeyError) as error:
        notes.append(f"it can't be drawn: {error}")
    report = paths.export("report.html")
    return SheetSlide(
        paths.name, paths.label, record.objects, density, summarise_areas(paths), tuple(dict.fromkeys(notes)),
        report.name if report.is_file() else None, picture,
    )  # fmt: skip


def _draw(run: Run, side: int) -> str:
    """Draw a slide with the density of its objects, if there is a table of them."""
    import pyarrow.parquet as pq

    thumbnail = read_thumbnail(run, display_channels(run.slide), side)
    picture = Image.fromarray(thumbnail.picture).convert("RGBA")
    table = run.paths.objects("parquet")
    if table.is_file():
        mpp = run.slide.mpp
        found = DensityMap.empty(run.slide.shape, choose_side(run.slide.shape, None if mpp is None else mpp[1]))
        for batch in pq.ParquetFile(table).iter_batches(columns=["centroid-0", "centroid-1"]):
            found.add(*(batch.column(axis).to_numpy() for axis in range(2)))
        cells = draw_density(found)
        height, width = (size * found.side for size in found.counts.shape)
        y0, x0 = thumbnail.corner
        step_y, step_x = thumbnail.step
        box = (0, 0, round((width - x0) / step_x), round((height - y0) / step_y))
        layer = Image.new("RGBA", picture.size)
        layer.paste(cells.resize((max(1, box[2]), max(1, box[3])), Image.Resampling.NEAREST), (0, 0))
        picture.alpha_composite(layer)
    return encode_picture(picture.convert("RGB"), "JPEG", quality=78)


def find_far(values: Sequence[float | None]) -> list[bool]:
    """Find the values far from the median of all, by `FAR` scaled median absolute deviations; none among very few.

    Args:
        values: None counts as not there.

    Example:
        >>> find_far([10.0, 11.0, 9.0, 10.5, None, 30.0])
        [False, False, False, False, False, True]
        >>> find_far([1.0, 1.0, 9.0])
        [False, False, False]
    """
    known = np.array([value for value in values if value is not None])
    if known.size < FEWEST:
        return [False] * len(values)
    median = float(np.median(known))
    reach = FAR * _SCALE * float(np.median(np.abs(known - median)))
    return [value is not None and reach > 0 and abs(value - median) > reach for value in values]
