"""Owns the inspection of slides: it finds the image and planes that the settings mean, and the file's identity.

`tiff` and `zarr` inspect the files; a new kind of file is a new package beside them. Everything that is wrong with a file becomes
one `SlideError` on one line. No pixel is read, unless a file doesn't say whether three channels are colours (`bright_field`).
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

from slidesam.tasks.errors import SettingsError, SlideError
from slidesam.tasks.settings.sections import SlideSettings
from slidesam.tasks.slides.bright_field import settle_colours
from slidesam.tasks.slides.facts import Level, Slide, SlideIdentity, slide_name
from slidesam.tasks.slides.pixel_size import PixelSize
from slidesam.tasks.slides.source import (
    RGB_NAMES,
    ImageChoice,
    Pages,
    SourceFacts,
    SourceSpec,
    downsample,
    errors_as_slide_errors,
    file_states,
    missing_as_slide_errors,
    one_line_name,
)
from slidesam.tasks.slides.tiff.inspect import inspect_tiff
from slidesam.tasks.slides.zarr.inspect import inspect_zarr

_NUCLEAR_STAIN = re.compile(r"dapi|hoechst|nucle|draq", re.IGNORECASE)
_DIGEST_BYTES = 2**20
MAX_CARRIED_BYTES = (
    2**18
)  # bytes of a description that travels with each task; if it is larger, tasks inspect the file again


def inspect_slide(path: str | os.PathLike[str], settings: SlideSettings = SlideSettings()) -> Slide:  # noqa: B008 (frozen)
    """Inspect a slide; no pixel is read.

    Args:
        path: SVS, TIFF or OME-TIFF file, OME-Zarr folder, or a folder that holds one Zarr store.
        settings: Which of its images and planes to use.

    Raises:
        SlideError: It can't be read, isn't an image, is damaged, or lays claim to sizes that can't be true.
        SettingsError: It doesn't have the series, time point, plane or channel that the settings ask for.
    """
    file = one_line_name(Path(path))
    with errors_as_slide_errors(file, "can't be opened", "check that it exists and can be read"):
        location = Path(os.path.abspath(path))  # noqa: PTH100 (a link keeps its name)
        choice = ImageChoice(
            series=None if settings.series == "auto" else settings.series,
            pages=_choose_pages(settings),
            is_rgb=None if settings.rgb == "auto" else settings.rgb,
        )
        facts, source = inspect_source(location, file, choice)
        return _make_slide(location, file, facts, source, settings)


def inspect_source(path: Path, file: str, choice: ImageChoice) -> tuple[SourceFacts, SourceSpec]:
    """Inspect a TIFF file or a Zarr folder.

    Args:
        path: The file or folder.
        file: Name for messages.
        choice: Which of its images, and how to read it.

    Raises:
        SlideError: It isn't there, may not be read, or is no slide.
        SettingsError: It has no image of that number.
    """
    with missing_as_slide_errors(path, file):
        path.stat()
        if not path.is_dir() and not path.is_file():
            raise SlideError(f"{file}: is no regular file; give a slide file or an OME-Zarr folder")
        facts, source = inspect_zarr(path, choice) if path.is_dir() else inspect_tiff(path, choice)
        return settle_colours(path, file, facts, source, choice.is_rgb)


def _choose_pages(settings: SlideSettings) -> Pages | None:
    """Return what the settings say that pages are: whoever asks for a focal plane beyond the first says that they are these."""
    if settings.pages != "auto":
        return settings.pages
    return "z" if isinstance(settings.z, int) and settings.z > 0 else None


def _make_slide(path: Path, file: str, facts: SourceFacts, source: SourceSpec, settings: SlideSettings) -> Slide:
    finest, whole = facts.shapes[0], facts.whole_levels or (True,) * len(facts.shapes)
    levels = tuple(
        Level(shape=(y, x), downsample=downsample((y, x), finest[3:]), chunks=chunks, is_whole=is_whole)
        for (*_, y, x), chunks, is_whole in zip(facts.shapes, facts.chunks, whole, strict=True)
    )
    size, remarks = _choose_pixel_size(facts, settings.mpp)
    return Slide(
        path=path,
        name=slide_name(path, settings.name),
        format=facts.format,
        kind=source.kind,
        series=facts.series,
        n_series=facts.n_series,
        size_t=finest[0],
        size_c=finest[1],
        size_z=finest[2],
        dtype=facts.dtype.name,
        levels=levels,
        mpp=None if size is None else size.mpp,
        mpp_origin=None if size is None else size.origin,
        origin=facts.origin,
        channel_names=facts.channel_names,
        display=facts.display,
        is_rgb=bool(facts.is_rgb),
        has_gaps=facts.can_have_gaps or facts.missing_chunks > 0,
        pages=facts.pages,
        t=_choose_plane(file, "t", settings.t, finest[0], "time points"),
        z=_choose_plane(file, "z", settings.z, finest[2], "focal planes"),
        channels=_choose_channels(file, settings.channels, facts),
        identity=_identify(path, facts),
        warnings=(*facts.warnings, *remarks),
        source=source if len(pickle.dumps(source)) <= MAX_CARRIED_BYTES else None,
    )


def _choose_pixel_size(facts: SourceFacts, setting: float | None) -> tuple[PixelSize | None, list[str]]:
    """Return the pixel size by the settings, otherwise by the file, and remarks."""
    size = facts.pixel_size
    if setting is None:
        return size, [] if size else ["its pixel size isn't known; setting slide.mpp can state it"]
    remarks = []
    if size is not None and any(abs(side / setting - 1) > 0.02 for side in size.mpp):
        remarks.append(
            f"its pixel size of {size.mpp[1]:g} × {size.mpp[0]:g} µm in the {size.origin} is replaced by {setting:g} µm "
            "from setting slide.mpp"
        )
    return PixelSize((setting, setting), "setting slide.mpp"), remarks


def _choose_plane(file: str, axis: str, setting: str | int, size: int, plural: str) -> int:
    number = 0 if isinstance(setting, str) else setting
    if number >= size:
        raise SettingsError(f"setting slide.{axis}: {file} has {plural} 0 to {size - 1}, not {number}")
    return number


def _choose_channels(file: str, setting: str | Sequence[int | str], facts: SourceFacts) -> tuple[int, ...]:
    names = facts.channel_names
    if isinstance(setting, str):
        if facts.is_rgb:
            return tuple(range(len(RGB_NAMES)))
        return (next((number for number, name in enumerate(names) if _NUCLEAR_STAIN.search(name)), 0),)
    if not setting:
        raise SettingsError("setting slide.channels: it is empty; give at least one channel, or auto")
    return tuple(_find_channel(file, channel, names) for channel in setting)


def _find_channel(file: str, channel: int | str, names: Sequence[str]) -> int:
    if isinstance(channel, str):
        lower_names = [name.lower() for name in names]
        if channel.lower() in lower_names:
            return lower_names.index(channel.lower())
    number = int(channel) if isinstance(channel, int) or channel.isdecimal() else -1
    if 0 <= number < len(names):
        return number
    listing = ", ".join(f"{index} {name}" for index, name in enumerate(names[:12])) + (
        ", ..." if len(names) > 12 else ""
    )
    raise SettingsError(f"setting slide.channels: {file} has no channel {channel!r}; it has {listing}")


def _identify(path: Path, facts: SourceFacts) -> SlideIdentity:
    files = facts.identity_files
    digest, states = hashlib.blake2b(digest_size=32), file_states(files)
    for name, (size, _) in zip(files, states, strict=True):
        if len(files) > 1 or path.is_dir():
            digest.update(os.fsencode(os.path.relpath(name, path)) + b"\0")
        with name.open("rb") as stream:
            digest.update(stream.read(_DIGEST_BYTES))
            stream.seek(max(_DIGEST_BYTES, size - _DIGEST_BYTES))
            digest.update(stream.read(_DIGEST_BYTES))
    if facts.missing_digest:  # otherwise labels of an incomplete copy would count as those of another copy
        background = b"white" if facts.is_rgb else b"dark"
        digest.update(b"\0missing chunks, read as %s background: %s" % (background, facts.missing_digest.encode()))
    return SlideIdentity(
        path=str(path.resolve()),
        size=sum(size for size, _ in states),
        modified=max(modified for _, modified in states),
        files=states,
        digest=digest.hexdigest(),
    )
