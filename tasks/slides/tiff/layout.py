"""Owns the description of a level: where each plane, tile and strip lies in a TIFF file. It travels between processes.

`levels` makes it from the file's directories; nothing here reads the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from slidesam.tasks.grid import Region
from slidesam.tasks.slides.source import Shape5
from slidesam.tasks.slides.tiff.codec import Codec
from slidesam.tasks.slides.tiff.colour import Colour


class Table(NamedTuple):
    """Integers of a directory, such as the offsets of its tiles: the integers if few, otherwise their place in the file.

    Attributes:
        numbers: The integers as int64 in this machine's byte order; none if they are read from the file.
        offset: Byte in the file where they begin.
        dtype: Their type there.
        length: How many.
    """

    numbers: bytes | None
    offset: int = 0
    dtype: str = "=i8"
    length: int = 0

    def load(self, read: Callable[[int, int], bytes]) -> NDArray[np.int64]:
        """Return the integers.

        Args:
            read: Returns bytes of the file, by offset and size.
        """
        if self.numbers is not None:
            return np.frombuffer(self.numbers, np.int64)
        size = self.length * np.dtype(self.dtype).itemsize
        return np.frombuffer(read(self.offset, size), self.dtype).astype(np.int64)


class PageSpec(NamedTuple):
    """One directory: offsets and sizes in bytes of its tiles or strips, and the tables that JPEG tiles share."""

    offsets: Table
    sizes: Table
    jpeg_tables: bytes | None


class Page(NamedTuple):
    """One directory with its tables loaded."""

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    jpeg_tables: bytes | None


class PlanePosition(NamedTuple):
    """One plane of pixels: number of its page, and sample and depth inside that (both 0 in most files)."""

    page: int
    sample: int
    depth: int


class Segment(NamedTuple):
    """One tile or strip: number in the page's table, pixels (clipped to the level), and bytes in the file."""

    number: int
    region: Region
    depth: int
    offset: int
    size: int

    @property
    def is_empty(self) -> bool:
        """Whether it is missing in the file, as in sparse files."""
        return self.size == 0 or self.offset == 0


class Axes(BaseModel):
    """Place of each of the axes T, C, Z, Y, X and S."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    sizes: dict[str, int]
    """Length of each."""
    places: dict[str, int | str]
    """Stride in pages, or dimension of the page ("s", "d", "l", "w" or "c"); axes of length 1 are in neither."""
    planes: int
    """Number of pages that the image has."""

    def locate(self, t: int, c: int, z: int) -> tuple[PlanePosition, int]:
        """Find the place of a plane, and the number of its interleaved sample; `c` counts the samples of all channels."""
        channel, sample = divmod(c, self.sizes["S"])
        position = {"page": 0, "s": 0, "d": 0, "c": 0}
        for axis, index in (("T", t), ("C", channel), ("Z", z), ("S", sample)):
            place = self.places.get(axis, 0)
            if isinstance(place, str):
                position[place] = index
            else:
                position["page"] += place * index
        return PlanePosition(position["page"], position["s"], position["d"]), position["c"]


class TiffLevel(BaseModel):
    """One level of an image in a TIFF file."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    shape: Shape5
    """Sizes (t, c, z, y, x)."""
    dtype: str
    """Pixel type of what is read: native byte order, uint8 for booleans."""
    is_raw: bool
    """Whether strips are plain numbers, of which any row can be read alone."""
    fill: int | float
    """Value of pixels that are missing in the file: background, once it is known whether that is bright or dark."""
    no_data: float | None = None
    """Value of floats that hold no data, and are read as NaN."""
    is_rgb: bool
    """Whether channels are red, green and blue."""
    is_tiled: bool
    """Whether pixels are in tiles, not in strips."""
    tile: tuple[int, int, int]
    """Depth, height and width of a tile or strip."""
    codec: Codec
    """Everything that decoding tiles or strips needs."""
    axes: Axes
    """Place of each axis."""
    colour: Colour
    """What the samples of a pixel are, and which channels they become."""
    pages: tuple[PageSpec | None, ...]
    """Pages in order, none for missing ones; only the first if all follow each other without gaps."""
    page_stride: int
    """Bytes from one page to the next if all follow each other without gaps, otherwise 0."""

    @property
    def samples(self) -> int:
        """Interleaved samples of a pixel in the file."""
        return self.codec.shaped[4]

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Pixel type of decoded samples, before colours are converted."""
        return np.dtype(self.dtype if self.colour.palette is None else self.codec.dtype)

    @property
    def chunks(self) -> Shape5:
        """Sizes (t, c, z, y, x) of what is decoded at once."""
        depth, height, width = self.tile
        channels = self.samples if self.axes.places.get("S") == "c" or self.axes.places.get("C") == "c" else 1
        if self.colour.is_converted:
            channels = self.colour.channels
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
        samples, depth, height, width, _ = self.codec.shaped
        tile = self.tile
        return samples, -(-depth // tile[0]), -(-height // tile[1]), -(-width // tile[2])

    def planes(self, t: int, samples: Sequence[int], z: int) -> list[tuple[PlanePosition, list[tuple[int, int]]]]:
        """Find the places that hold these samples, with their (number in `samples`, interleaved sample) pairs.

        Samples of all channels are counted; without conversion, they are the channels that are read.
        """
        places: dict[PlanePosition, list[tuple[int, int]]] = {}
        for number, counted in enumerate(samples):
            place, sample = self.axes.locate(t, counted, z)
            places.setdefault(place, []).append((number, sample))
        return list(places.items())

    def load_page(self, number: int, read: Callable[[int, int], bytes]) -> Page:
        """Load the tables of a page.

        Args:
            number: The page.
            read: Returns bytes of the file, by offset and size.

        Raises:
            ValueError: The page isn't in the file.
        """
        index = 0 if self.page_stride else number
        spec = self.pages[index] if index < len(self.pages) else None
        if spec is None:
            raise ValueError(f"plane {number} isn't in the file")
        shift = number * self.page_stride
        return Page(spec.offsets.load(read) + shift, spec.sizes.load(read), spec.jpeg_tables)

    def segments(self, page: Page, place: PlanePosition, region: Region) -> Iterator[Segment]:
        """Find the tiles or strips of a plane that hold pixels of `region`."""
        (tile_depth, height, width), (_, depths, rows, columns) = self.tile, self.grid
        level = Region(0, 0, self.shape[3], self.shape[4])
        for row in range(region.y0 // height, -(-region.y1 // height)):
            for column in range(region.x0 // width, -(-region.x1 // width)):
                index = ((place.sample * depths + place.depth // tile_depth) * rows + row) * columns + column
                corner = row * height, column * width
                covered = Region(*corner, corner[0] + height, corner[1] + width) & level
                is_listed = index < len(page.offsets)
                offset, size = (int(page.offsets[index]), int(page.sizes[index])) if is_listed else (0, 0)
                yield Segment(index, covered, place.depth % tile_depth, offset, size)
