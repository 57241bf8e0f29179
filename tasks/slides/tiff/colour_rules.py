"""Owns the decision what the samples of a level mean, by the tags of its page and by its compression.

A level is read as it is stored, converted as TIFF 6.0 says, or refused by the name of its colour space or by what contradicts
what.

1. `read_colour` finds the colour space and the samples beside colours (ExtraSamples).
2. `_FINDERS` holds a function for each colour space, which reads what its conversion needs.
3. `find_packing` finds how Y, Cb and Cr are packed where colours have fewer pixels than brightness.

References:
    TIFF Revision 6.0 (Adobe, 1992), sections 16 (CMYK), 18 (Associated Alpha), 20 and 21 (YCbCr), and ColorMap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tifffile

from slidesam.tasks.errors import SlideError
from slidesam.tasks.slides.source import check_dtype, find_white
from slidesam.tasks.slides.tiff.colour import Colour

_JPEGS = (6, 7, 33007, 34892)  # their decoder converts, if Y, Cb and Cr are interleaved
_APERIO_YCBCR = 33003  # JPEG 2000 of Y, Cb and Cr, whatever PhotometricInterpretation says
_APERIO_RGB = 33005  # JPEG 2000 of red, green and blue, whatever it says
_JPEG_2000 = (_APERIO_YCBCR, 33004, _APERIO_RGB, 34712)
_OF_OWN_COLOURS = {
    22610: "JPEG XR", 34927: "WebP", 34933: "PNG", 34934: "JPEG XR", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _MASK, _CMYK, _YCBCR = 0, 1, 2, 3, 4, 5, 6
_NEEDED_SAMPLES = {_RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_NAMES = {
    _RGB: "RGB", _PALETTE: "palette colours", _CMYK: "CMYK", _YCBCR: "YCbCr", _MASK: "a transparency mask", 8: "CIELab",
    9: "ICCLab", 10: "ITULab", 32803: "CFA (raw camera pixels)", 32844: "LogL", 32845: "LogLuv", 34892: "LinearRaw (camera)",
    51177: "a depth map", 52527: "a semantic mask",
}  # fmt: skip
_ASSOCIATED, _UNASSOCIATED = 1, 2  # ExtraSamples
_NUMBER_FORMATS = ("imagej", "lsm", "stk", "fluoview")  # a palette is only how their numbers are shown
_HEADER_BYTES = 4096


class ColourError(SlideError):
    """The colours of a level can't be read; without it, other levels can."""


def read_colour(page: tifffile.TiffPage, kind: str, samples: int, groups: int, file: str) -> tuple[Colour, list[str]]:
    """Decide what the samples of a level mean.

    Args:
        page: Its keyframe, whose file is open.
        kind: tifffile's name of the format.
        samples: Samples of a pixel; 1 where the format says that the page's samples are channels.
        groups: Channels beside these samples.
        file: Name for messages.

    Returns:
        The colour, and remarks for people.

    Raises:
        ColourError: The colour space isn't read, or the tags contradict each other.
    """
    photometric = _find_photometric(page, samples)
    if photometric == _PALETTE and (kind in _NUMBER_FORMATS or groups > 1):
        colour, remarks = _read_grey(page, _BLACK_IS_ZERO, samples, file)
        unapplied = "its palettes aren't applied, since it has several channels: their numbers are read"
        return colour, remarks if kind in _NUMBER_FORMATS else [*remarks, unapplied]
    if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
        return _read_grey(page, photometric, samples, file)
    if photometric == _MASK and page.is_mask:
        colour, _ = _read_grey(page, _BLACK_IS_ZERO, samples, file)
        return colour, ["it is the transparency mask of another image: 0 is hidden there"]
    if photometric not in _NEEDED_SAMPLES:
        name = _NAMES.get(photometric, f"of an unknown kind ({photometric})")
        raise ColourError(f"{file}: its pixels are {name}, which isn't read; export it as RGB or grey")
    if samples == 1 < page.samplesperpixel and photometric == _RGB:
        return _read_grey(page, _BLACK_IS_ZERO, samples, file)
    extras, remarks = _find_extras(page, photometric, samples, file)
    changes, more_remarks = _FINDERS[photometric](page, file)
    colour = _describe(page, samples, file, is_rgb=groups == 1)
    return colour.model_copy(update=extras | changes), more_remarks + remarks


def find_packing(page: tifffile.TiffPage, file: str) -> tuple[int, int] | None:
    """Find how many columns and rows of pixels share one Cb and Cr in the decoded bytes; none if each pixel has its own.

    Raises:
        ColourError: They are packed in a way that isn't read.
    """
    is_left_to_decoder = page.compression in (*_JPEGS, *_JPEG_2000, *_OF_OWN_COLOURS)
    stated = page.subsampling
    if page.photometric != _YCBCR or is_left_to_decoder or stated == (1, 1):
        return None
    if page.planarconfig != 1 or (page.predictor != 1 and page.compression != 1):
        if stated is None:
            return None
        raise ColourError(
            f"{file}: its YCbCr colours have fewer pixels than its brightness, with a predictor or in planes of their own, "
            "which isn't read; export it as RGB"
        )
    # Files without the tag should have 2 × 2, but many writers forget it.
    if stated is None and _is_first_segment_whole(page):
        return None
    columns, rows = (int(number) for number in stated or (2, 2))
    if not {columns, rows} <= {1, 2, 4} or page.bitspersample != 8 or page.samplesperpixel != 3 or page.imagedepth != 1:
        raise ColourError(
            f"{file}: its YCbCr colours are for {columns} × {rows} pixels of {page.samplesperpixel} samples of "
            f"{page.bitspersample} bits, which isn't read; export it as RGB"
        )
    return columns, rows


def _find_photometric(page: tifffile.TiffPage, samples: int) -> int:
    if page.compression == _APERIO_YCBCR and samples >= 3 and page.planarconfig == 1:
        return _YCBCR
    if page.compression == _APERIO_RGB and page.photometric == _YCBCR:
        return _RGB
    if 262 not in page.tags and page.photometric == _WHITE_IS_ZERO:  # tifffile's default; libtiff guesses so, too
        return _RGB if samples >= 3 else _BLACK_IS_ZERO
    return int(page.photometric)


def _describe(page: tifffile.TiffPage, samples: int, file: str, *, is_rgb: bool) -> Colour:
    """Describe RGB as it is stored."""
    dtype = check_dtype(file, page.dtype)
    if not isinstance(page.bitspersample, int):
        raise ColourError(
            f"{file}: its samples have {page.bitspersample} bits, which isn't read; export it as RGB of 8 bits"
        )
    full = float(find_white(dtype, page.bitspersample))
    return Colour(samples=samples, colours=3, is_rgb=is_rgb, full=full, dtype=dtype.name, background=full)


def _read_grey(page: tifffile.TiffPage, photometric: int, samples: int, file: str) -> tuple[Colour, list[str]]:
    kinds = _list_extras(page, samples)
    alpha = 1 if samples == 2 and kinds.get(1) in (_ASSOCIATED, _UNASSOCIATED) else None
    changes = {
        "colours": samples if alpha is None else 1, "background": 0.0, "is_inverted": photometric == _WHITE_IS_ZERO,
        "alpha": alpha, "is_premultiplied": kinds.get(1) == _ASSOCIATED,
    }  # fmt: skip
    remarks = []
    if photometric == _WHITE_IS_ZERO:
        remarks.append(
            "its values are inverted (0 is white) and used as they are: what is dark on a screen is bright here"
        )
    if alpha is not None:
        remarks.append("its alpha is applied: what is transparent wasn't scanned and is read as background")
    elif samples > 2 and {_ASSOCIATED, _UNASSOCIATED} & set(kinds.values()):
        remarks.append("a sample that it calls alpha is read as a channel, since it has several channels")
    return _describe(page, samples, file, is_rgb=False).model_copy(update=changes), remarks


def _list_extras(page: tifffile.TiffPage, samples: int) -> dict[int, int]:
    """Map samples to their meaning (ExtraSamples); the tag lists the last ones."""
    listed = [int(kind) for kind in page.extrasamples][-samples:]
    return {samples - len(listed) + number: kind for number, kind in enumerate(listed)}


def _find_extras(
    page: tifffile.TiffPage, photometric: int, samples: int, file: str
) -> tuple[dict[str, Any], list[str]]:
    """Find alpha and the samples that are channels of their own.

    Raises:
        ColourError: There are fewer samples than the colour space needs.
    """
    needed, kinds = _NEEDED_SAMPLES[photometric], _list_extras(page, samples)
    if samples < needed + len(page.extrasamples):
        beside = f" and {len(page.extrasamples)} extra samples" if page.extrasamples else ""
        raise ColourError(
            f"{file}: says that its pixels are {_NAMES[photometric]}{beside} and has {samples} sample{'s'[: samples > 1]} per "
            "pixel, which contradict each other; export it again"
        )
    alpha = next((sample for sample, kind in kinds.items() if kind in (_ASSOCIATED, _UNASSOCIATED)), None)
    extras = tuple(sample for sample in range(needed, samples) if sample != alpha)
    remarks = []
    if alpha is not None:
        remarks.append("its alpha is applied: what is transparent wasn't scanned and is read as background")
    if extras:
        remarks.append(
            f"it has {len(extras)} more sample{'s'[: len(extras) > 1]} per pixel beside red, green and blue, read as "
            "channels of their own from number 3 on"
        )
    return {
        "alpha": alpha,
        "is_premultiplied": alpha is not None and kinds[alpha] == _ASSOCIATED,
        "extras": extras,
    }, remarks


def _find_rgb(page: tifffile.TiffPage, file: str) -> tuple[dict[str, Any], list[str]]:
    return {}, []


def _find_cmyk(page: tifffile.TiffPage, file: str) -> tuple[dict[str, Any], list[str]]:
    _check_unsigned(page, _CMYK, file)
    _check_compression(page, _CMYK, file)
    ink_set = page.tags.valueof(332, 1)
    if ink_set != 1:
        raise ColourError(
            f"{file}: its pixels are inks other than CMYK (InkSet {ink_set}), which isn't read; export it as RGB"
        )
    ends = page.tags.valueof(336)
    # A damaged tag may hold a single number, which tifffile doesn't wrap.
    if ends is not None and {int(end) for end in np.atleast_1d(ends)} != {0, 2**page.bitspersample - 1}:
        raise ColourError(
            f"{file}: its CMYK inks go from {np.min(ends)} to {np.max(ends)} (DotRange), which isn't read; export it as RGB"
        )
    return {"space": "cmyk"}, ["its CMYK colours are converted to red, green and blue without a printing profile"]


def _find_ycbcr(page: tifffile.TiffPage, file: str) -> tuple[dict[str, Any], list[str]]:
    is_interleaved = page.planarconfig == 1
    if page.compression in _JPEGS and is_interleaved and page.samplesperpixel == 3:
        return {}, []
    if page.compression in _JPEG_2000 and is_interleaved and _is_converted_by_openjpeg(page):
        return {}, []
    _check_compression(page, _YCBCR, file)
    _check_unsigned(page, _YCBCR, file)
    changes: dict[str, Any] = {"space": "ycbcr"}
    if page.compression == _APERIO_YCBCR:
        return changes, []
    luma, ends = _fractions(page, 529), _fractions(page, 532)
    if luma is not None:
        if len(luma) != 3 or min(luma) <= 0 or abs(sum(luma) - 1) > 0.01:
            raise ColourError(f"{file}: its YCbCrCoefficients {luma} can't be true; export it as RGB")
        changes["luma"] = luma
    if ends is not None:
        if len(ends) != 6 or not all(white > black for black, white in zip(ends[::2], ends[1::2], strict=True)):
            raise ColourError(f"{file}: its ReferenceBlackWhite {ends} can't be true; export it as RGB")
        changes["black_white"] = ends
    return changes, []


def _find_palette(page: tifffile.TiffPage, file: str) -> tuple[dict[str, Any], list[str]]:
    _check_unsigned(page, _PALETTE, file)
    bits, table = page.bitspersample, page.colormap
    has_one_index = page.samplesperpixel == 1 or (
        page.samplesperpixel == 2 and len(page.extrasamples) == 1 and bits == 8
    )
    if table is None or table.shape[1] < 2**bits or bits > 16 or not has_one_index:
        entries = "no ColorMap" if table is None else f"a ColorMap of {table.shape[1]} entries"
        raise ColourError(
            f"{file}: says that its pixels are palette colours of {bits} bits, {page.samplesperpixel} per pixel, and has "
            f"{entries}, which contradict each other; export it as RGB"
        )
    # 16 bits; some writers store 8.
    colours = (table >> 8 if table.max() > 255 else table).T.astype(np.uint8)[: 2**bits]
    brightest = colours[-1].astype(np.float64)
    ramp = np.linspace(0, 1, len(colours))[:, None] * brightest
    if brightest.any() and np.abs(colours - ramp).max() <= 2:
        return {
            "colours": 1, "is_rgb": False, "background": 0.0, "ramp": colours[-1].tobytes().hex().upper(),
        }, ["its palette only shows numbers from black to one colour; the numbers are read"]  # fmt: skip
    changes = {"space": "palette", "palette": colours.tobytes(), "dtype": "uint8", "full": 255.0, "background": 255.0}
    return changes, ["its palette is applied: it is read as red, green and blue"]


_Finder = Callable[[tifffile.TiffPage, str], tuple[dict[str, Any], list[str]]]
_FINDERS: dict[int, _Finder] = {_RGB: _find_rgb, _PALETTE: _find_palette, _CMYK: _find_cmyk, _YCBCR: _find_ycbcr}


def _check_unsigned(page: tifffile.TiffPage, photometric: int, file: str) -> None:
    if page.dtype is None or page.dtype.kind not in "bu":
        raise ColourError(
            f"{file}: its pixels are {_NAMES[photometric]} of type {page.dtype or 'unknown'}, which isn't read; export it as RGB"
        )


def _check_compression(page: tifffile.TiffPage, photometric: int, file: str) -> None:
    if page.compression in _OF_OWN_COLOURS:
        compression = _OF_OWN_COLOURS[page.compression]
        raise ColourError(
            f"{file}: says that its pixels are {_NAMES[photometric]}, and its {compression} tiles hold RGB, which "
            "contradict each other; export it as RGB"
        )


def _fractions(page: tifffile.TiffPage, code: int) -> tuple[float, ...] | None:
    """Read a tag of fractions, or of plain numbers."""
    tag = page.tags.get(code)
    if tag is None:
        return None
    values = [float(value) for value in np.atleast_1d(tag.value)]
    if len(values) != 2 * tag.count:
        return tuple(values)
    return tuple(above / below if below else 0.0 for above, below in zip(values[::2], values[1::2], strict=True))


def _read_first_segment(page: tifffile.TiffPage, size: int | None = None) -> bytes:
    """Read the bytes of the first tile or strip that is in the file, at most `size`."""
    stream = page.parent.filehandle
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if offset and count:
            stream.seek(offset)
            return bytes(stream.read(count if size is None else min(count, size)))
    return b""


def _is_first_segment_whole(page: tifffile.TiffPage) -> bool:
    """Tell whether the first tile or strip has three bytes for each pixel."""
    height, width = (
        (page.tilelength, page.tilewidth)
        if page.is_tiled
        else (min(page.rowsperstrip, page.imagelength), page.imagewidth)
    )
    data = _read_first_segment(page)
    if page.compression != 1:
        try:
            data = tifffile.TIFF.DECOMPRESSORS[page.compression](data, out=height * width * 3)
        except (MemoryError, ImportError):
            # They say nothing of the page, whose colours would be decided by it.
            raise
        except Exception:  # noqa: BLE001 (a damaged segment; reading its pixels says what is wrong with them)
            return False
    return len(data) >= height * width * 3


def _is_converted_by_openjpeg(page: tifffile.TiffPage) -> bool:
    """Tell whether decoding turns YCbCr into RGB: if Cb has fewer pixels than Y, or a JP2 header says that it is sYCC.

    References:
        ISO/IEC 15444-1, annex A.5.1 (SIZ: step of each component) and I.5.3.3 (colour specification).
    """
    header = _read_first_segment(page, _HEADER_BYTES)
    start = header.find(b"\xff\x4f\xff\x51")
    steps = header[start + 46 : start + 48] if start >= 0 else b""
    box = header.find(b"colr\x01")
    return steps not in (b"", b"\1\1") or (0 <= box < start and header[box + 7 : box + 11] == b"\0\0\0\x12")
