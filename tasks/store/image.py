"""Own the image in the output store: what it shows, and its coarse levels if the slide isn't converted.

Without conversion the store holds the source's first level that fits in `OVERVIEW_SIDE` pixels, all channels, and averages of it
further down; with it the whole pyramid, which `convert` writes. Either is described last, so that until then there is no image.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from slidesam.tasks.errors import OutputError
from slidesam.tasks.grid import Region
from slidesam.tasks.pixels.percentiles import common_window, nearest_percentiles
from slidesam.tasks.pixels.plan import level_shapes
from slidesam.tasks.pixels.pyramid import halve, is_coarse, overview_level, overview_step, read_overview
from slidesam.tasks.run.files import remove_synced
from slidesam.tasks.run.layout import list_runs, slide_folder
from slidesam.tasks.run.lock import holder
from slidesam.tasks.run.marks import remove_stage
from slidesam.tasks.run.records import FileList
from slidesam.tasks.run.run import Run
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.zarr.metadata import METADATA_FILES
from slidesam.tasks.store.arrays import FORMATS, ArrayPlan, open_level, read_region, write_array_metadata, write_planes
from slidesam.tasks.store.file_list import Files, has_all, read_metadata, vouch_for
from slidesam.tasks.store.groups import read_group, set_attribute
from slidesam.tasks.store.multiscales import LevelPlace, place_averages, read_places
from slidesam.tasks.store.ome_zarr import create_store, listed_labels, remove_image, remove_label, write_image_metadata

_RGB_COLOURS = ("FF0000", "00FF00", "0000FF")
_CHANNEL_COLOURS = ("0000FF", "00FF00", "FF0000", "00FFFF", "FF00FF", "FFFF00", "FFFFFF")
_SHOWN_KEY = "slidesam_image"
# Memory for the overviews of channels that are decoded together.
_GROUP_BYTES = 512 * 2**20


def is_shown(run: Run) -> bool:
    """Whether the store has the image that this run needs: a converted pyramid also serves runs that read in place.

    Pixels that another version read, for other colours or from other levels, don't serve: the run's tissue and parameters come
    from them.
    """
    facts = _read_ready(run)
    if not facts or facts.get("reading") != run.reading:
        return False
    return run.image_plan.mode != "convert" or facts.get("converted") == run.fingerprints["image"]


def has_image(run: Run) -> bool:
    """Whether the store has an image for this run's labels, whichever settings and version wrote it; a pyramid if it converts."""
    return has_pyramid(run) if run.image_plan.mode == "convert" else bool(_read_ready(run))


def check_shown(run: Run) -> None:
    """Refuse to use the store's image if it isn't this run's.

    Raises:
        OutputError: It shows another slide or plane, or isn't there.
    """
    if not is_shown(run):
        raise OutputError(f"{run.store}: its image was taken away or replaced: run the same command again")


def has_pyramid(run: Run) -> bool:
    """Whether the store has the whole pyramid of this run's plane, whichever settings and version wrote it."""
    return bool(_read_ready(run).get("converted"))


def is_filling(run: Run) -> bool:
    """Whether the store's arrays are those that this run's conversion fills."""
    return bool(_read_shown(run.store).get("filling") == run.fingerprints["image"])


def record_filling(run: Run, root: zarr.Group) -> None:
    """Record that the store has the empty arrays for this run's conversion."""
    set_attribute(root, _SHOWN_KEY, {**_read_shown(run.store), "filling": run.fingerprints["image"]})


def prepare_store(run: Run) -> zarr.Group:
    """Open the output store and remove its image, so that another can be written.

    Raises:
        OutputError: The store can't be written, isn't slidesam's, holds labels of another slide or plane, or its image is just
            being used by the run of another label.
    """
    root = create_store(run.store, run.settings.image, run.slide.path)
    old_facts = _read_shown(run.store)
    _refuse_to_mix(run, root, old_facts)
    if old_facts.get("ready"):
        _refuse_to_remove(run)
    if not _is_same(old_facts, run):
        _withdraw_label(run, root)
    # First what says that there is an image, then the image. What it showed stays noted while there are labels of it.
    new_facts = old_facts if listed_labels(root) and old_facts else _describe_shown(run)
    set_attribute(root, _SHOWN_KEY, {**new_facts, "ready": False, "filling": None, "converted": None})
    remove_synced(run.paths.image.file_list)
    remove_image(root)
    return root


def _withdraw_label(run: Run, root: zarr.Group) -> None:
    """Remove the run's label image of another slide or plane, which would be listed over the new image; its record first."""
    run.paths.provenance.unlink(missing_ok=True)
    run.paths.overlay.unlink(missing_ok=True)
    run.paths.classes.unlink(missing_ok=True)
    for path in run.paths.exports:
        path.unlink(missing_ok=True)
    remove_stage(run.paths.spatialdata)
    remove_label(root, run.label)


def _refuse_to_remove(run: Run) -> None:
    """Refuse to replace an image that the run of another label reads: it would continue with empty pixels."""
    for sibling in list_runs(slide_folder(run.output, run.name)):
        if sibling.label != run.label and (owner := holder(sibling.lock)) is not None:
            raise OutputError(
                f"{run.name} ({run.label}) needs the image in {run.store} written anew, and {sibling.label} reads it now, "
                f"run by {owner}: wait for that, or give both the same slide and image settings"
            )


def publish_image(run: Run) -> None:
    """Write coarse levels as the store's image, unless it has an image of this slide and plane.

    Raises:
        OutputError: As `prepare_store`.
        SlideError: The slide's pixels can't be read.
    """
    create_store(run.store, run.settings.image, run.slide.path)
    if is_shown(run) and has_whole_image(run):
        return
    root = prepare_store(run)
    n_levels = _write_levels(run)
    y, x = overview_step(run.slide)
    written = [path for level in range(n_levels) for path in (run.store / str(level)).rglob("*")]
    shards = [path for path in written if path.is_file() and path.name not in METADATA_FILES]
    units = {"overview": vouch_for(shards, run.output)}
    places = [place_averages((y * 2.0**level, x * 2.0**level)) for level in range(n_levels)]
    show_image(run, root, places, units)


def has_whole_image(run: Run) -> bool:
    """Whether the files of the store's image are listed, and there with their sizes."""
    listed = FileList.read(run.paths.image.file_list)
    return listed is not None and has_all(listed.files, run.output)


def list_image_files(run: Run, path: Path, folder: Path, units: dict[str, Files]) -> None:
    """Write the list of an image's files, which vouches for them.

    Args:
        run: The run.
        path: The list.
        folder: The group that has the levels.
        units: The files that hold pixels, by what is written at once.
    """
    levels = sorted(level for level in folder.iterdir() if level.name.isdigit())
    metadata = read_metadata([folder, *levels], run.output)
    ordered_units = dict(sorted(units.items()))
    FileList(fingerprint=run.fingerprints["image"], metadata=metadata, units=ordered_units).write(path)


def show_image(run: Run, root: zarr.Group, levels: list[LevelPlace], units: dict[str, Files]) -> None:
    """Make the store's arrays an image, and record what it shows.

    Args:
        run: The run.
        root: The store, whose levels are written.
        levels: Where their pixels lie.
        units: The files that hold pixels, by what is written at once.
    """
    _refuse_to_mix(run, root, _read_shown(run.store))
    number = _find_level(run)
    windows = [_window(_read_plane(run, number, channel)) for channel in range(run.slide.size_c)]
    write_image_metadata(root, run.name, levels, run.slide.mpp, _omero(run.slide, windows), run.slide.position)
    converted = run.fingerprints["image"] if run.image_plan.mode == "convert" else None
    progress = {"ready": True, "filling": None, "converted": converted}
    set_attribute(root, _SHOWN_KEY, {**_describe_shown(run), **progress, "reading": run.reading})
    list_image_files(run, run.paths.image.file_list, run.store, units)


def read_published(run: Run, channels: tuple[int, ...], side: int | None = None) -> tuple[NDArray[Any], LevelPlace]:
    """Read the store's image at the first level that is coarse enough.

    Args:
        run: A run whose image is written.
        channels: The channels to read.
        side: Height and width at most, in pixels, if there is such a level, else the last one; None = `OVERVIEW_SIDE`.

    Returns:
        (y, x, c) pixels, and where they lie.
    """
    root = zarr.open_group(run.store, mode="r")
    places = read_places(root, run.slide.mpp, run.slide.position, place_averages)
    number = _find_level(run, side)
    return np.stack([_read_plane(run, number, channel) for channel in channels], axis=-1), places[number]


def read_slide_overview(run: Run) -> NDArray[Any]:
    """Read the (y, x, c) overview of the channels to segment: the same however pixels are stored, since labels depend on it."""
    converted = _read_shown(run.store).get("converted")
    # Both ways halve level 0 alike; reading it all again would take minutes.
    if converted is None or overview_level(run.slide)[0] == 0:
        return read_published(run, run.slide.channels)[0]
    return read_overview(run.slide, run.slide.channels)


def _describe_shown(run: Run) -> dict[str, Any]:
    """Describe what the store's image shows: one plane of one slide."""
    slide = run.slide
    mpp = None if slide.mpp is None else list(slide.mpp)
    return {
        "slide": slide.identity.model_dump(mode="json"),
        "plane": [slide.series, slide.t, slide.z, mpp, *run.pages.values()],
    }


def _read_shown(store: Path) -> dict[str, Any]:
    """Read what is recorded of the store's image; empty if nothing is.

    It says what the image shows (`slide`, `plane`), how it was read (`reading`), how far it is (`ready`, `filling`, `converted`).
    """
    group = read_group(store)
    facts: Any = None if group is None else group.attributes.get(_SHOWN_KEY)
    return facts if isinstance(facts, dict) else {}


def _read_ready(run: Run) -> dict[str, Any]:
    """Read what is recorded of the store's image if it is whole and of this slide and plane; else empty."""
    group = read_group(run.store)
    if group is None or group.zarr_format != FORMATS[run.settings.image.ome_zarr]:
        return {}
    facts = _read_shown(run.store)
    return facts if facts.get("ready") and (run.store / "0").is_dir() and _is_same(facts, run) else {}


def _is_same(facts: dict[str, Any], run: Run) -> bool:
    """Whether a store's image is of this slide and plane."""
    return all(facts.get(key) == value for key, value in _describe_shown(run).items())


def _refuse_to_mix(run: Run, root: zarr.Group, old_facts: dict[str, Any]) -> None:
    """Refuse labels of another slide or plane than the store's image: their grid would be another."""
    other_labels = [label for label in listed_labels(root) if label != run.label]
    if not old_facts or not other_labels or _is_same(old_facts, run):
        return
    raise OutputError(
        f"{run.store} holds labels ({', '.join(other_labels)}) of {old_facts['slide']['path']} as it was, or of another "
        "plane of it: choose another output folder, or move this one away"
    )


def _read_plane(run: Run, number: int, channel: int) -> NDArray[Any]:
    """Read a channel of a level of the store's image, (y, x)."""
    array = open_level(run.store / str(number), run.settings.image.ome_zarr)
    return read_region(array, Region(0, 0, *array.shape[3:]), channel)


def _find_level(run: Run, side: int | None = None) -> int:
    """Return the first of the store's levels that fits into so many pixels, or into `OVERVIEW_SIDE`; else the last one."""
    number = 0
    while (run.store / str(number + 1)).is_dir():
        shape = zarr.open_array(run.store / str(number), mode="r").shape[3:]
        if is_coarse(shape) if side is None else max(shape) <= side:
            break
        number += 1
    return number


def _write_levels(run: Run) -> int:
    """Write all levels, some channels at a time so that memory stays bounded; return their number."""
    slide = run.slide
    arrays: list[zarr.Array[Any]] = []
    for group in _group_channels(slide):
        pixels = read_overview(slide, group).transpose(2, 0, 1)
        shapes = level_shapes((pixels.shape[1], pixels.shape[2]))
        if not arrays:
            together = len(group) if slide.is_rgb else 1
            plans = [
                ArrayPlan(str(level), (1, slide.size_c, 1, *shape), pixels.dtype, _shard(shape), together)
                for level, shape in enumerate(shapes)
            ]
            write_array_metadata(run.store, plans, run.settings.image)
            arrays = [zarr.open_array(run.store / plan.name, mode="r+") for plan in plans]
        for array in arrays:
            write_planes(array, Region(0, 0, *pixels.shape[1:]), pixels, group[0])
            pixels = halve(pixels)
    return len(arrays)


def _group_channels(slide: Slide) -> list[tuple[int, ...]]:
    """Group the channels that are decoded together, as far as their overviews fit into `_GROUP_BYTES`."""
    number, halvings = overview_level(slide)
    level = slide.levels[number]
    plane_bytes = -(-math.prod(level.shape) // 4**halvings) * np.dtype(slide.dtype).itemsize
    together = slide.size_c if slide.is_rgb else max(1, min(level.chunks[1], _GROUP_BYTES // plane_bytes))
    return [tuple(range(slide.size_c))[start : start + together] for start in range(0, slide.size_c, together)]


def _shard(shape: tuple[int, int]) -> tuple[int, int]:
    """Return the shape of one shard for the whole plane: whole chunks of 256 and more."""
    height, width = (-(-size // 512) * 512 for size in shape)
    return height, width


def _window(pixels: NDArray[Any]) -> tuple[float, float]:
    low, high = nearest_percentiles(pixels[::4, ::4], (0.1, 99.9))
    return low, high if high > low else low + 1


def _omero(slide: Slide, windows: list[tuple[float, float]]) -> dict[str, Any]:
    """Make channel names, colours and display windows for viewers: the source's own if it has them."""
    colours = _RGB_COLOURS if slide.is_rgb else _CHANNEL_COLOURS
    windows = common_window(windows) if slide.is_rgb else windows
    dtype = np.dtype(slide.dtype)
    integer = np.issubdtype(dtype, np.integer)
    low, high = (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)) if integer else (0.0, 1.0)
    channels = []
    for channel, (name, window) in enumerate(zip(slide.channel_names, windows, strict=True)):
        display = slide.display[channel]
        start, end = display.window or ((low, high) if slide.is_rgb and dtype == np.uint8 else window)
        channels.append(
            {
                "label": name,
                "color": display.colour or colours[channel % len(colours)],
                "active": channel < len(colours),
                "window": {"min": min(low, start), "max": max(high, end), "start": start, "end": end},
            }
        )
    return {"channels": channels, "rdefs": {"model": "color"}}
