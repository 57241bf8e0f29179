"""Owns listing slides by files, folders, patterns and CSV manifests, each slide with its name and its settings."""

from __future__ import annotations

import csv
import glob
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.settings.types import clean_path
from slidesam.tasks.slides.facts import EXTENSIONS, slide_name
from slidesam.tasks.slides.zarr.metadata import GROUP_FILES

# Extensions that copying programs use until a file is complete.
_UNFINISHED = (".part", ".partial", ".tmp", ".temp", ".filepart", ".crdownload", ".download", ".!ut", ".aria2")
_MANIFEST_COLUMNS = ("path", "name")


@dataclass(frozen=True)
class Listed:
    """A slide to segment.

    Attributes:
        path: Its file or OME-Zarr folder.
        settings: What to compute for it.
        error: Reason why it can't be run; None if it can.
    """

    path: Path
    settings: Settings
    error: str | None = None

    @property
    def name(self) -> str:
        """Name of the slide, with which the names of its outputs begin."""
        return slide_name(self.path, self.settings.slide.name)


def list_slides(sources: Sequence[str], settings: Settings) -> list[Listed]:
    """List slides, without duplicates and in the order of the arguments.

    A slide that can't be run carries the reason in its `error` and doesn't stop the others.

    Args:
        sources: Slide files, OME-Zarr folders, folders of slides, patterns such as `scans/*.svs` (`**` for subfolders), or CSV
            manifests with a column `path` and optional columns `name` and settings such as `blocks.halo`.
        settings: Settings of slides, unless a manifest overrides them.

    Raises:
        SettingsError: There are no sources.
    """
    if not any(text.strip() for text in sources):
        raise SettingsError("no slides are given: give files, a folder, a pattern or a CSV manifest")
    slides: list[Listed] = []
    # Settings can't be hashed: slides of one file are compared, of which there are few.
    by_path: dict[Path, list[Listed]] = {}
    for text in sources:
        for slide in _list_source(clean_path(text), settings) if text.strip() else ():
            same_file = by_path.setdefault(slide.path, [])
            if slide not in same_file:
                same_file.append(slide)
                slides.append(slide)
    return _refuse_equal_names(slides)


def slides_in(folder: Path) -> list[Path]:
    """List the slides in a folder, sorted by name: files and Zarr folders with a known extension, except unfinished copies."""
    return sorted(path for path in folder.iterdir() if _looks_like_slide(path))


def _looks_like_slide(path: Path) -> bool:
    name = path.name.lower()
    if name.startswith(".") or name.endswith(_UNFINISHED):
        return False
    extension = name.rpartition(".")[2] if "." in name else ""
    return path.is_dir() if extension == "zarr" else extension in EXTENSIONS and path.is_file()


def _list_source(text: str, settings: Settings) -> Iterator[Listed]:
    """List the slides of one source."""
    path = _make_absolute(text)
    if path.suffix.lower() == ".csv" and not path.is_dir():
        yield from _read_manifest(path, settings)
    elif path.is_dir() and not _is_zarr(path):
        slides = slides_in(path)
        # A folder that holds one Zarr store and nothing else is a slide itself.
        if len(slides) == 1 and _is_zarr(slides[0]):
            slides = [path]
        yield from (Listed(slide, settings) for slide in slides)
        if not slides:
            yield Listed(
                path, settings, f"{path} holds no slides: give a folder of TIFF or SVS files or OME-Zarr folders"
            )
    elif not path.exists() and glob.has_magic(text):
        slides = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if _looks_like_slide(Path(match)))  # noqa: PTH207
        yield from (Listed(slide, settings) for slide in slides)
        if not slides:
            yield Listed(path, settings, f"{text} matches no slide")
    else:
        yield Listed(path, settings)


def _make_absolute(text: str) -> Path:
    """Make a path absolute; a file name that only looks like a home folder stays a file name."""
    path = Path(text)
    with suppress(RuntimeError):
        path = path.expanduser()
    return path.absolute()


def _is_zarr(path: Path) -> bool:
    return path.suffix.lower() == ".zarr" or any((path / name).exists() for name in GROUP_FILES)


def _read_manifest(path: Path, settings: Settings) -> Iterator[Listed]:
    """List the slides of a CSV manifest; paths in it may be relative to its folder."""
    try:
        # Spreadsheet programs write a byte order mark first.
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it isn't UTF-8 text"
        yield Listed(path, settings, f"manifest {path} can't be read: {reason}")
        return
    # With their line ends: one in quotes belongs to its cell.
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=_find_delimiter(text))
    header = [name.strip() for name in next(rows, [])]
    if "path" not in header:
        yield Listed(
            path, settings, f"manifest {path} has no column `path` in its first line: {', '.join(header) or 'empty'}"
        )
        return
    slides = 0
    for row in rows:
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=False) if cell.strip()}
        if cells:
            slides += 1
            yield _read_row(path, rows.line_num, cells, settings)
    if not slides:
        yield Listed(path, settings, f"manifest {path} names no slide below its first line")


def _find_delimiter(text: str) -> str:
    """Find the delimiter: in countries with decimal commas, spreadsheet programs write semicolons."""
    header = text.partition("\n")[0]
    return max(",;\t", key=header.count)


def _read_row(manifest: Path, number: int, cells: Mapping[str, str], settings: Settings) -> Listed:
    place = f"manifest {manifest}, line {number}"
    if "path" not in cells:
        return Listed(manifest, settings, f"{place}: there is no path")
    slide = (
        _make_absolute(cells["path"]) if cells["path"].startswith("~") else (manifest.parent / cells["path"]).absolute()
    )
    changes: dict[str, Any] = {"slide.name": cells["name"]} if "name" in cells else {}
    try:
        changes |= {name: yaml.safe_load(cell) for name, cell in cells.items() if name not in _MANIFEST_COLUMNS}
        return Listed(slide, make_settings(settings.model_dump(mode="json"), changes))
    except yaml.YAMLError as error:
        return Listed(slide, settings, f"{place}: {' '.join(str(error).split())}")
    except SettingsError as error:
        return Listed(slide, settings, f"{place}: {error}")


def _refuse_equal_names(slides: list[Listed]) -> list[Listed]:
    """Give an error to slides whose results would have the same name: they would overwrite each other."""
    names = Counter((slide.name, slide.settings.output.label) for slide in slides if slide.error is None)
    message = (
        "{path}: {number} slides are named {name}: run them into different folders, or give each a name in a manifest"
    )
    return [
        replace(slide, error=message.format(path=slide.path, number=number, name=slide.name))
        if slide.error is None and (number := names[slide.name, slide.settings.output.label]) > 1
        else slide
        for slide in slides
    ]
