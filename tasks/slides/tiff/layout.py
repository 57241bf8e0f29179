"""Where in a TIFF file each plane, tile and strip of a level lies, and how a tile or strip is decoded.

`slide_tiff_levels` makes these from the file's directories; nothing here reads the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray

from slidesam.tasks.grid import Region
from slidesam.tasks.slides.source import Shape5


class Page(NamedTuple):
    """One directory: where its tiles or strips are."""

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    jpeg_tables: bytes | None


class Place(NamedTuple):
    """One plane of pixels: number of its page, and sample and depth inside that (both 0 in most files)."""

    page: int
    sample: int
    depth: int


class Segment(NamedTuple):
    """One tile or strip: number in the page's table, pixels (clipped to the level), and bytes in the file."""

    number: int
    page: Page
    region: Region
    depth: int
    offset: int
    size: int

    @property
    def is_empty(self) -> bool:
        """Whether the file leaves it out, as sparse files do."""
        return self.size == 0 or self.offset == 0


@dataclass(frozen=True)
class Axes:
    """Where each of T, C, Z, Y, X and S is found.

    Attributes:
        sizes: Length of each.
        places: Stride in pages, or dimension of the page ("s", "d", "l", "w" or "c"); those of length 1 are nowhere.
        planes: Number of pages that the image has.
        kept_samples: Samples of a pixel without its alpha.
    """

    sizes: dict[str, int]
    places: dict[str, int | str]
    planes: int
    kept_samples: int

    def locate(self, t: int, c: int, z: int) -> tuple[Place, int]:
        """Place of a plane, and which of its interleaved samples it is."""
        channel, sample = divmod(c, self.kept_samples)
        at = {"page": 0, "s": 0, "d": 0, "c": 0}
        for axis, index in (("T", t), ("C", channel), ("Z", z), ("S", sample)):
            place = self.places.get(axis, 0)
            if isinstance(place, str):
                at[place] = index
            else:
                at["page"] += place * index
        return Place(at["page"], at["s"], at["d"]), at["c"]


@dataclass(frozen=True)
class TiffLevel:
    """One level of an image in a TIFF file.

    Attributes:
        shape: Sizes (t, c, z, y, x).
        dtype: Pixel type as handed out: native byte order, uint8 for truth values.
        byteorder: Byte order in the file, "<" or ">".
        samples: Interleaved samples of a pixel in the file.
        is_raw: Whether strips are plain numbers, of which any row can be read alone.
        fill: Value of pixels that the file leaves out.
        is_rgb: Whether channels are red, green and blue.
        keyframe: tifffile's page that all pages of the level are like.
        decode: tifffile's decoder of its tiles or strips.
        transform: What tifffile does to pixels after decoding, if anything.
        axes: Where each axis is.
        pages: Pages in order, none for those that aren't in the file; only the first where they follow each other.
        page_stride: Bytes from a page to the next where they follow each other, else 0.
    """

    shape: Shape5
    dtype: np.dtype[Any]
    byteorder: Literal["<", ">"]
    samples: int
    is_raw: bool
    fill: int | float
    is_rgb: bool
    keyframe: tifffile.TiffPage
    decode: Any
    transform: Any
    axes: Axes
    pages: tuple[Page | None, ...]
    page_stride: int

    @property
    def tile(self) -> tuple[int, int, int]:
        """Depth, height and width of a tile or strip."""
        page = self.keyframe
        if page.is_tiled:
            return max(page.tiledepth, 1), page.tilelength, page.tilewidth
        return 1, page.rowsperstrip, page.imagewidth

    @property
    def chunks(self) -> Shape5:
        """What is decoded at once, as (t, c, z, y, x)."""
        depth, height, width = self.tile
        channels = self.samples if self.axes.places.get("S") == "c" or self.axes.places.get("C") == "c" else 1
        if self.is_raw:
            height = min(height, 256)
        return (
            1,
            min(channels, self.shape[1]),
            min(depth, self.shape[2]),
            min(height, self.shape[3]),
            min(width, self.shape[4]),
        )

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """Number of tiles or strips of a page along samples, depth, y and x."""
        samples, depth, height, width, _ = self.keyframe.shaped
        tile = self.tile
        return samples, -(-depth // tile[0]), -(-height // tile[1]), -(-width // tile[2])

    def planes(self, t: int, channels: Sequence[int], z: int) -> list[tuple[Place, list[tuple[int, int]]]]:
        """Places that hold these channels, each with (number in `channels`, interleaved sample) pairs."""
        found: dict[Place, list[tuple[int, int]]] = {}
        for number, channel in enumerate(channels):
            place, sample = self.axes.locate(t, channel, z)
            found.setdefault(place, []).append((number, sample))
        return list(found.items())

    def page(self, number: int) -> Page:
        """A page by number.

        Raises:
            ValueError: It isn't in the file.
        """
        first = self.pages[0]
        if self.page_stride and first is not None:
            return Page(first.offsets + number * self.page_stride, first.sizes, None)
        page = self.pages[number] if number < len(self.pages) else None
        if page is None:
            raise ValueError(f"plane {number} isn't in the file")
        return page

    def segments(self, place: Place, region: Region) -> Iterator[Segment]:
        """Tiles or strips of a plane that hold pixels of `region`."""
        page, (tile_depth, height, width), (_, depths, rows, columns) = self.page(place.page), self.tile, self.grid
        level = Region(0, 0, self.shape[3], self.shape[4])
        for row in range(region.y0 // height, -(-region.y1 // height)):
            for column in range(region.x0 // width, -(-region.x1 // width)):
                index = ((place.sample * depths + place.depth // tile_depth) * rows + row) * columns + column
                corner = row * height, column * width
                covered = Region(*corner, corner[0] + height, corner[1] + width) & level
                inside = index < len(page.offsets)
                offset, size = (int(page.offsets[index]), int(page.sizes[index])) if inside else (0, 0)
                yield Segment(index, page, covered, place.depth % tile_depth, offset, size)

    def decoded(self, data: bytes, segment: Segment) -> NDArray[Any]:
        """Decodes a tile or strip.

        Returns:
            (y, x, sample) array that starts at the segment's first pixel and holds at least its region.

        Raises:
            Exception: tifffile or imagecodecs can't decode it.
        """
        _check_embedded_size(data, self.tile)
        options: dict[str, Any] = {}
        if segment.page.jpeg_tables is not None:
            options["jpegtables"] = segment.page.jpeg_tables
        if self.keyframe.jpegheader is not None:
            options["jpegheader"] = self.keyframe.jpegheader
        pixels: NDArray[Any] = self.decode(data, segment.number, **options)[0]
        if self.transform is not None:
            pixels = self.transform(pixels)
        plane: NDArray[Any] = pixels[segment.depth]
        if plane.shape[0] < segment.region.shape[0] or plane.shape[1] < segment.region.shape[1]:
            raise ValueError(f"{plane.shape[0]} × {plane.shape[1]} pixels where {segment.region.shape} are due")
        return plane


def _check_embedded_size(data: bytes, tile: tuple[int, int, int]) -> None:
    """Refuses a JPEG or JPEG 2000 tile whose own header says that it is far larger than the file does.

    Raises:
        ValueError: It would need more memory than was reckoned with.
    """
    size = _jpeg_size(data) if data[:2] == b"\xff\xd8" else None
    if data[:4] == b"\xff\x4f\xff\x51":
        size = int.from_bytes(data[12:16]), int.from_bytes(data[8:12])
    if size is not None and size[0] * size[1] > 4 * max(tile[1] * tile[2], 2**16):
        raise ValueError(f"a tile of {tile[1]} × {tile[2]} pixels says that it has {size[0]} × {size[1]}")


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width in the frame header of a JPEG."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
    return None
