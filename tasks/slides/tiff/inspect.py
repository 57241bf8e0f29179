"""Owns the inspection of TIFF files: Aperio SVS, OME-TIFF, ImageJ, generic pyramids and all other formats that tifffile knows.

tifffile parses the file; this package decides whether the file can be trusted.

1. `_check_header` and `_count_directories` refuse files that are no TIFF, or whose directories run in a circle.
2. `levels` finds where each plane, tile and strip lies in the file (`layout`), and refuses incomplete files.
3. `metadata` reads pixel size, channel names and other metadata.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tifffile

from slidesam.tasks.errors import SlideAwayError, SlideError, in_one_line
from slidesam.tasks.slides.choice import ImageInFile, choose_image
from slidesam.tasks.slides.ome_xml import MAX_PLANES, OmeDocument, read_ome_xml
from slidesam.tasks.slides.source import ImageChoice, SourceFacts, digest_missing, errors_as_slide_errors, one_line_name
from slidesam.tasks.slides.tiff.holes import describe_holes, find_whole_levels
from slidesam.tasks.slides.tiff.layout import TiffLevel
from slidesam.tasks.slides.tiff.levels import read_levels
from slidesam.tasks.slides.tiff.metadata import read_facts
from slidesam.tasks.slides.tiff.one_file import forget_file_names, open_alone, refuse_other_files
from slidesam.tasks.slides.tiff.pages import find_meaning
from slidesam.tasks.slides.tiff.quiet import quiet_tifffile
from slidesam.tasks.slides.tiff.source import TiffSpec
from slidesam.tasks.slides.tiff.text import correct_description
from slidesam.tasks.slides.tiff.ventana import refuse_overlapping_tiles

TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# tifffile takes some 70 µs for each; the longest stacks have some ten thousand planes.
MAX_DIRECTORIES = 2**16
_PAGE_NAME, _MAX_NAME = 285, 80
_OTHER_FILES = {
    b"version https://git-lfs": "is a Git LFS pointer, not the image itself; run `git lfs pull`",
    b"\x89PNG": "is a PNG image, not a slide; save it as TIFF",
    b"\xff\xd8\xff": "is a JPEG image, not a slide; save it as TIFF",
    b"\x89HDF": "is an HDF5 file, which isn't read; convert it to OME-TIFF or OME-Zarr",
    b"ZISRAWFILE": "is a Zeiss CZI file, which isn't read; convert it with bioformats2raw",
    b"PK\x03\x04": "is a ZIP archive; unpack it first",
}


def inspect_tiff(path: Path, choice: ImageChoice) -> tuple[SourceFacts, TiffSpec]:
    """Inspect one image of a TIFF file; no pixel is read.

    Args:
        path: The file.
        choice: Which of its images, and how to read it.

    Raises:
        SlideError: The file can't be read, or declares what can't be true.
        SettingsError: It has no image of that number.
    """
    file = one_line_name(path)
    _check_header(path, file)
    with (
        quiet_tifffile(),
        errors_as_slide_errors(file, "isn't a TIFF file that can be read", "get it again or leave it out"),
        open_alone(path) as stream,
        tifffile.TiffFile(stream) as tiff,
    ):
        return _inspect_open(tiff, path, file, choice)


def _check_header(path: Path, file: str) -> None:
    with path.open("rb") as stream:
        start = stream.read(32)
    if not start:
        raise SlideError(f"{file}: is empty (0 bytes); copy it again")
    if start[:4] in TIFF_MAGICS:
        return
    for magic, explanation in _OTHER_FILES.items():
        if start.startswith(magic):
            raise SlideError(f"{file}: {explanation}")
    raise SlideError(
        f"{file}: isn't a TIFF file (it starts with {start[:4]!r}); slides are read from SVS, TIFF, OME-TIFF and OME-Zarr"
    )


def _inspect_open(tiff: tifffile.TiffFile, path: Path, file: str, choice: ImageChoice) -> tuple[SourceFacts, TiffSpec]:
    count, cut = _count_directories(tiff, file)
    if count:
        correct_description(tiff.pages.first)
    ome = _read_ome(tiff, file, path.name)
    refuse_other_files(tiff, path, file)
    if count and ome is not None:
        forget_file_names(tiff.pages.first)
    all_series = tiff.series
    if not all_series:
        raise SlideError(
            f"{file}: holds no image; it is {'cut short, copy it again' if cut else 'damaged, get it again'}"
        )
    number, choice_remarks = choose_image([_summarise(series) for series in all_series], choice.series, file)
    series = all_series[number]
    refuse_overlapping_tiles(tiff, series, file)
    meaning = find_meaning(series, choice.pages)
    levels, holes, warnings = read_levels(series, meaning.pages, count, file, path.stat().st_size)
    masks, mask_remarks = _find_masks(tiff, series, levels, count, file)
    warnings += mask_remarks
    if masks:
        # Without its mask a level would show other pixels than the finer ones.
        count_masked = next((number for number, mask in enumerate(masks) if mask is None), len(masks))
        if count_masked < len(masks):
            number = holes[count_masked].level
            warnings.append(
                f"level {number} and later ones have no mask and aren't used; make them again, with the mask"
            )
        levels, holes, masks = levels[:count_masked], holes[:count_masked], masks[:count_masked]
    warnings += [*choice_remarks, *meaning.remarks, *describe_holes(levels, holes, series.kind)]
    if cut:
        warnings.append(
            "the file is cut short after its last directory; smaller levels or further images may be missing"
        )
    facts = read_facts(tiff, series, levels, ome, meaning, warnings, path)
    whole = find_whole_levels(levels, holes, series.kind)
    facts = replace(
        facts,
        missing_chunks=sum(each.missing for each in holes),
        missing_digest=digest_missing(each.planes for each in holes),
        can_have_gaps=facts.can_have_gaps or bool(masks),
        whole_levels=whole,
    )
    return facts, TiffSpec(levels=levels, masks=tuple(mask for mask in masks if mask is not None))


def _find_masks(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, levels: Sequence[TiffLevel], directories: int, file: str
) -> tuple[list[TiffLevel | None], list[str]]:
    """Find the transparency mask of each level, as GDAL stores them beside the image; empty if level 0 has none.

    A mask that is damaged costs nobody the slide; it is said.

    Returns:
        The masks, and remarks for people.

    References:
        TIFF Revision 6.0 (Adobe, 1992), NewSubfileType and PhotometricInterpretation 4: 1 is inside, 0 is hidden.
    """
    remarks = []
    for other in tiff.series:
        if other is series or not other.keyframe.is_mask or levels[0].shape[0] * levels[0].shape[2] > 1:
            continue
        try:
            with errors_as_slide_errors(file, "it can't be read", "get the file again"):
                masks, _, _ = read_levels(other, None, directories, file, tiff.filehandle.size)
        except SlideAwayError:
            raise
        except SlideError as error:
            reason = in_one_line(str(error).removeprefix(f"{file}: "), _MAX_NAME)
            remarks.append(f"its transparency mask can't be read ({reason}) and isn't applied; get the file again")
            continue
        by_size = {mask.shape[3:]: mask for mask in masks}
        if levels[0].shape[3:] in by_size:
            remarks.append("its transparency mask is applied: what it hides wasn't scanned and is read as background")
            return [by_size.get(level.shape[3:]) for level in levels], remarks
    return [], remarks


def _summarise(series: tifffile.TiffPageSeries) -> ImageInFile:
    """Describe an image for the choice: its own name, otherwise those of its page."""
    sizes = dict(zip(series.get_axes(False), series.get_shape(False), strict=True))
    page = series.keyframe
    name = series.name or str(page.tags.valueof(_PAGE_NAME, ""))
    return ImageInFile(
        in_one_line(name or page.description[:_MAX_NAME].partition("\n")[0], _MAX_NAME),
        (sizes["Y"], sizes["X"]),
        len(series.levels),
        is_reduced=page.is_reduced or page.is_mask,
        is_described=not name,
    )


def _count_directories(tiff: tifffile.TiffFile, file: str) -> tuple[int, bool]:
    """Count the image file directories, and tell whether their chain ends outside the file.

    Raises:
        SlideError: They run in a circle, or there are too many.
    """
    if not tiff.pages:
        return 0, True
    layout, stream = tiff.tiff, tiff.filehandle
    size, offset = stream.size, int(tiff.pages.first.offset)
    visited: set[int] = set()
    while offset:
        if offset in visited:
            raise SlideError(f"{file}: its image directories run in a circle; the file is damaged, get it again")
        if len(visited) >= MAX_DIRECTORIES:
            raise SlideError(
                f"{file}: has more than {MAX_DIRECTORIES} image directories, too many to read; convert it to OME-Zarr"
            )
        visited.add(offset)
        try:
            stream.seek(offset)
            tags = struct.unpack(layout.tagnoformat, stream.read(layout.tagnosize))[0]
            stream.seek(offset + layout.tagnosize + tags * layout.tagsize)
            offset = struct.unpack(layout.offsetformat, stream.read(layout.offsetsize))[0]
        except (struct.error, OSError):
            return len(visited), True
        if offset >= size:
            return len(visited), True
    return len(visited), False


def _read_ome(tiff: tifffile.TiffFile, file: str, name: str) -> OmeDocument | None:
    """Read the OME-XML of the file; none if it has none that can be parsed.

    Raises:
        SlideError: Planes are in other files, or more are declared than possible.
    """
    text = tiff.ome_metadata
    if not text:
        return None
    try:
        ome = read_ome_xml(text, name)
    except ValueError:
        return None
    if ome.other_files:
        other_files = in_one_line(", ".join(ome.other_files[:3])) + (", ..." if len(ome.other_files) > 3 else "")
        raise SlideError(
            f"{file}: is one of several files of a stack (others: {other_files}), whose planes would be lost; "
            "join them first with bfconvert, or convert them to OME-Zarr with bioformats2raw"
        )
    if ome.span > MAX_PLANES:
        raise SlideError(f"{file}: declares {ome.span} planes; the file is damaged, get it again")
    return ome
