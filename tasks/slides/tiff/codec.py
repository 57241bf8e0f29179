"""Owns decoding: a `Codec` holds everything that tifffile's decoder of tiles and strips needs, without the file's directories.

`TiffPage.decode` makes the decoder from attributes of a page (https://github.com/cgohlke/tifffile, class TiffPage). They aren't
documented; tests/tasks/slides compares the pixels of many kinds of files with those that tifffile reads itself.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from slidesam.tasks.slides.tiff.embedded import check_embedded_size, find_frame_header

# SampleFormat, T4Options, SonyRawFileType, and three of EER.
_TAGS = (339, 292, 28672, 65007, 65008, 65009)
_NUMBERS = (
    "compression", "predictor", "photometric", "planarconfig", "samplesperpixel", "sampleformat", "fillorder", "imagewidth",
    "imagelength", "tilewidth", "tilelength", "tiledepth", "rowsperstrip",
)  # fmt: skip
_JPEGS = (6, 7, 33007, 34892)

Decoder: TypeAlias = Callable[[bytes, int, bytes | None], NDArray[Any]]


class _Tags(dict[int, SimpleNamespace]):
    """Map codes to tags, with tifffile's `valueof`."""

    def valueof(self, code: int, default: object = None) -> Any:
        return self[code].value if code in self else default


class Codec(BaseModel):
    """Everything on which decoding the tiles or strips of a level depends; small and picklable."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    byteorder: Literal["<", ">"]
    """Byte order of the file."""
    numbers: dict[str, int]
    """Attributes of tifffile's page that are numbers, by its names for them."""
    shaped: tuple[int, ...]
    """Sizes of the page: samples, depth, length, width, interleaved samples."""
    bitspersample: int | tuple[int, ...]
    """Bits of a sample; several numbers if samples differ."""
    extrasamples: tuple[int, ...]
    """Meaning of samples beside grey or colour, such as alpha."""
    dtype: str | None
    """Character of the pixel type, as numpy and tifffile name it."""
    nodata: int | float
    """Value of pixels that aren't in the file."""
    packing: tuple[int, int] | None
    """Columns and rows of pixels that share one Cb and Cr in the decoded bytes; none if each pixel has its own."""
    is_eer: bool
    """Whether it is an electron-event file."""
    superres: int
    """Resolution at which electron events are decoded."""
    tags: dict[int, tuple[int, Any]]
    """Count and value of the further tags that decoding looks at."""
    jpeg_header: bytes | None
    """Header that tiles of NDPI files lack."""
    scaling: tuple[int, float] | None
    """Exponent and factor that pixels are raised to and multiplied by after decoding, as in MD Gel files."""

    @classmethod
    def of(
        cls, page: tifffile.TiffPage, series: tifffile.TiffPageSeries, packing: tuple[int, int] | None = None
    ) -> Codec:
        """Collect the attributes of tifffile's page on which decoding depends, while its file is open.

        Args:
            page: The keyframe of a level.
            series: The level.
            packing: Columns and rows of pixels that share one Cb and Cr.
        """
        numbers = {name: int(getattr(page, name)) for name in _NUMBERS}
        extra_samples = tuple(int(sample) for sample in page.extrasamples)
        if _is_jpeg_of_channels(page):
            # Told that they are RGB, the decoder leaves them alone; otherwise it takes them for YCbCr.
            numbers["photometric"], extra_samples = 2, ()
        if page.compression == 1:
            numbers["predictor"] = (
                1  # it belongs to compression (TIFF 6.0, section 14); some writers state it all the same
            )
        if page.planarconfig != 1:
            numbers["photometric"] = 1  # a plane is grey, whatever colour it shows
        return cls(
            byteorder=">" if page.parent.byteorder == ">" else "<",
            numbers=numbers,
            shaped=tuple(int(size) for size in page.shaped),
            bitspersample=_to_plain(page.bitspersample),
            extrasamples=extra_samples,
            dtype=None if page.dtype is None or page._dtype is None else page._dtype.char,
            nodata=page.nodata.item() if isinstance(page.nodata, np.generic) else page.nodata,
            packing=packing,
            is_eer=bool(page.parent.is_eer),
            superres=int(page.parent._superres),
            tags={
                code: (page.tags[code].count, _to_plain(page.tags[code].value)) for code in _TAGS if code in page.tags
            },
            jpeg_header=page.jpegheader,
            scaling=_find_scaling(series),
        )

    def make_decoder(self) -> Decoder:
        """Make the function that decodes a tile or strip.

        Its arguments are the bytes, the number in the page's table, and the JPEG tables of the page. It returns a
        (depth, y, x, sample) array. It raises the errors of tifffile and imagecodecs, and `ValueError` if a tile claims to be
        far larger than the file says.

        Raises:
            Exception: tifffile can't decode such pixels.
        """
        if self.packing is not None:
            return self._make_unpacker(self.packing)
        height, length = self.numbers["tilelength"] or self.numbers["rowsperstrip"], self.numbers["imagelength"]
        width = self.numbers["tilewidth"] or self.numbers["imagewidth"]
        decode = self._make_tifffile_decoder(length)
        decode_ycbcr = self._make_decoder_of_wrongly_tagged()
        if decode.__name__.startswith("decode_raise"):
            decode(b"", 0)  # raises what tifffile found wrong, which would otherwise count as a damaged tile

        def decode_tile(data: bytes, number: int, jpeg_tables: bytes | None) -> NDArray[Any]:
            whole = data if self.jpeg_header is None else self.jpeg_header + data
            check_embedded_size(self.numbers["compression"], whole, height, width)
            options = {"jpegtables": jpeg_tables, "jpegheader": self.jpeg_header}
            arguments = {name: value for name, value in options.items() if value is not None}
            try:
                if decode_ycbcr is not None and (_has_jfif(data) or _has_subsampled_colours(data)):
                    return self._scaled(decode_ycbcr(data, number, **arguments)[0])
                return self._scaled(decode(data, number, **arguments)[0])
            except MemoryError:
                raise
            # imagecodecs raises what it likes; what isn't cured by the padding below is raised there.
            except Exception:
                if self.numbers["tilewidth"] or length % height == 0:
                    raise
            # Some writers fill the last strip up.
            padded = self._make_tifffile_decoder(-(-length // height) * height)
            return self._scaled(padded(data, number, **arguments)[0])

        return decode_tile

    def _make_decoder_of_wrongly_tagged(self) -> Callable[..., tuple[NDArray[Any], Any, Any]] | None:
        """Make the decoder of JPEG tiles that hold YCbCr in an image that calls itself RGB; none for other images.

        A tile with a JFIF header is YCbCr (JFIF 1.02), which tifffile looks for in the first tile only. RGB is never
        subsampled, so that shows it too.
        """
        numbers = self.numbers
        if numbers["compression"] not in _JPEGS or numbers["photometric"] != 2 or self.shaped[4] != 3:
            return None
        as_ycbcr = self.model_copy(update={"numbers": numbers | {"photometric": 6}})
        return as_ycbcr._make_tifffile_decoder(numbers["imagelength"])

    def _make_tifffile_decoder(self, length: int) -> Callable[..., tuple[NDArray[Any], Any, Any]]:
        """Make tifffile's decoder of the tiles or strips of an image of so many rows."""
        dtype = None if self.dtype is None else np.dtype(self.dtype)
        samples, depth, _, width, interleaved = self.shaped
        page = SimpleNamespace(
            **self.numbers | {"imagelength": length},
            shaped=(samples, depth, length, width, interleaved),
            bitspersample=self.bitspersample,
            extrasamples=self.extrasamples,
            dtype=dtype,
            _dtype=dtype,
            nodata=self.nodata,
            is_subsampled=False,  # JPEG decoders look for themselves, and tifffile can't unpack others
            is_jfif=False,  # tiles are asked one by one
            is_tiled=self.numbers["tilewidth"] > 0,
            tags=_Tags({code: SimpleNamespace(count=count, value=value) for code, (count, value) in self.tags.items()}),
            hash=0,
            parent=SimpleNamespace(
                byteorder=self.byteorder,
                is_eer=self.is_eer,
                _superres=self.superres,
                root=SimpleNamespace(_decoders={}),
            ),
        )
        decode: Callable[..., tuple[NDArray[Any], Any, Any]] = tifffile.TiffPage.decode.func(page)  # type: ignore[attr-defined]
        return decode

    def _make_unpacker(self, packing: tuple[int, int]) -> Decoder:
        """Make the function that decodes tiles or strips in which pixels share Cb and Cr."""
        numbers, (columns, rows) = self.numbers, packing
        height = numbers["tilelength"] or numbers["rowsperstrip"]
        width = numbers["tilewidth"] or numbers["imagewidth"]
        most_bytes = -(-height // rows) * -(-width // columns) * (rows * columns + 2)
        compression = numbers["compression"]
        decompress = None if compression == 1 else tifffile.TIFF.DECOMPRESSORS[compression]

        def decode_tile(data: bytes, number: int, jpeg_tables: bytes | None) -> NDArray[Any]:
            if numbers["fillorder"] == 2:
                data = bytes(imagecodecs.bitorder_decode(data))
            if decompress is not None:
                data = decompress(data, out=most_bytes)
            n_rows = height if numbers["tilewidth"] else min(height, numbers["imagelength"] - number * height)
            return _unpack_ycbcr(np.frombuffer(data, np.uint8), (n_rows, width), packing)[None]

        return decode_tile

    def _scaled(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Turn decoded numbers into intensities, as tifffile does."""
        if self.scaling is None:
            return pixels
        exponent, factor = self.scaling
        return pixels.astype(np.float32) ** exponent * factor


def _is_jpeg_of_channels(page: tifffile.TiffPage) -> bool:
    """Whether JPEGs hold three channels that aren't colours, as libtiff writes them, if they have no JFIF header."""
    return (
        page.compression in _JPEGS
        and page.planarconfig == 1
        and page.samplesperpixel == 3
        and page.photometric in (0, 1)
        and 262 in page.tags
    )


def _unpack_ycbcr(data: NDArray[np.uint8], shape: tuple[int, int], packing: tuple[int, int]) -> NDArray[np.uint8]:
    """Return (y, x, 3) Y, Cb, Cr of pixels that are stored in units: all Y of the unit, its Cb, its Cr.

    References:
        TIFF Revision 6.0 (Adobe, 1992), section 21, "Ordering of Component Samples". Cb and Cr are repeated, as in libtiff.

    Example:
        >>> _unpack_ycbcr(np.array([1, 2, 3, 4, 8, 9], np.uint8), (1, 2), (2, 2)).tolist()
        [[[1, 8, 9], [2, 8, 9]]]
    """
    columns, rows = packing
    (height, width), pixels = shape, columns * rows
    units = -(-height // rows), -(-width // columns)
    stored = data[: units[0] * units[1] * (pixels + 2)].reshape(*units, pixels + 2)
    out = np.empty((height, width, 3), np.uint8)
    brightness = stored[..., :pixels].reshape(*units, rows, columns).transpose(0, 2, 1, 3)
    out[..., 0] = brightness.reshape(units[0] * rows, units[1] * columns)[:height, :width]
    out[..., 1:] = stored[..., pixels:].repeat(rows, axis=0).repeat(columns, axis=1)[:height, :width]
    return out


def _to_plain(value: Any) -> Any:
    """Convert tifffile's enumerations to plain numbers."""
    if isinstance(value, tuple):
        return tuple(int(number) for number in value)
    return int(value) if isinstance(value, int) else value


def _find_scaling(series: tifffile.TiffPageSeries) -> tuple[int, float] | None:
    """Find exponent and factor of tifffile's transform, which only MD Gel files have: a square or a multiple."""
    if series.transform is None:
        return None
    factor, of_two = (float(series.transform(np.asarray([number], np.uint8))[0]) for number in (1, 2))
    return (2 if of_two == 4 * factor else 1), factor


def _has_jfif(data: bytes) -> bool:
    return data[6:10] == b"JFIF"


def _has_subsampled_colours(data: bytes) -> bool:
    """Tell whether the components of a JPEG differ in their number of pixels, by its frame header."""
    position = find_frame_header(data)
    return position is not None and len(set(data[position + 11 : position + 18 : 3])) > 1
