"""Large made slides for benchmarks: no pixel of them needs to be fetched, and none of them is ever whole in memory.

All show the histology picture that scikit-image ships, in the colours of haematoxylin and eosin, magnified until JPEG and Blosc
make about as much of it as of real slides (0.24 bytes per pixel and a ratio of 1.4; the mosaic of `accuracy.py` has 0.22 and
1.5), so that times and sizes mean something. A patch of it is laid out in squares, each turned, reflected, shifted and tinted in
its own way.

1. `make_slide`           pyramidal TIFF of JPEG tiles, as scanners write it
2. `make_empty_slide`     the same, little of it tissue and the rest glass
3. `make_strips`          TIFF of one level in Deflate strips, of which any square touches many
4. `make_channels_zarr`   OME-Zarr of several 16 bit channels

A slide that is there already and has the size asked for isn't made again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data
from skimage.color import rgb2hed

MPP = 0.5
_PATCH = 2048
# Not the side of a block: else objects would end at every seam, and nothing be left to stitch. What squares are shifted by is a
# multiple of 256 and so is their side, so that they have whole pixels in all levels.
_SQUARE = 1792
_SHIFT = 256
_STEP = 4  # from one level to the next, as in Aperio's files
_LEVELS = 5
_SMALLEST = 1000
_GLASS = 243
_HAEMATOXYLIN, _EOSIN = (0.65, 0.70, 0.29), (0.22, 0.80, 0.56)
_TINTS = ((1.0, 1.0, 1.0), (0.97, 0.95, 0.98), (1.0, 0.96, 0.99), (0.96, 0.98, 1.0))
# Centre and share of the tissue of each clump of `make_empty_slide`, in sides of the slide. Up to 30 % tissue they don't touch.
_CLUMPS = ((0.36, 0.36, 0.6), (0.72, 0.66, 0.3), (0.25, 0.80, 0.1))
_CHANNELS = ("DAPI", "CD3", "CD8", "PanCK", "CD20", "FoxP3", "Ki67", "CD68")

Tile = Callable[[int, int, int, int, int], NDArray[Any]]


def make_slide(path: Path, side: int, *, tile: int = 256, quality: int = 90, seed: int = 0) -> Path:
    """A pyramidal TIFF of JPEG tiles (YCbCr, chroma halved along x), all of it tissue.

    Args:
        path: Where to.
        side: Height and width in pixels.
        tile: Side of a tile.
        quality: Of the JPEG, up to 100.
        seed: Of what is laid where.
    """
    return _written(
        path, (side, side), lambda partial: _write_pyramid(partial, side, tile, quality, _Mosaic(seed).tile)
    )


def make_empty_slide(path: Path, side: int, share: float = 0.05, *, tile: int = 256, seed: int = 0) -> Path:
    """A slide as of `make_slide` with three clumps of tissue on glass.

    Args:
        path: Where to.
        side: Height and width in pixels.
        share: Of the slide that is tissue, at most 0.3.
        tile: Side of a tile.
        seed: Of what is laid where.
    """
    if not 0 < share <= 0.3:
        raise ValueError(f"share {share}: more than 0 and at most 0.3 can be laid out in clumps")
    mosaic = _Mosaic(seed)

    def on_glass(level: int, y: int, x: int, height: int, width: int) -> NDArray[Any]:
        tissue = _tissue(side // _STEP**level, share, y, x, height, width)
        if not tissue.any():
            return mosaic.glass(level, y, x, height, width)
        pixels = mosaic.tile(level, y, x, height, width)
        if not tissue.all():
            pixels[~tissue] = mosaic.glass(level, y, x, height, width)[~tissue]
        return pixels

    return _written(path, (side, side), lambda partial: _write_pyramid(partial, side, tile, 90, on_glass))


def make_strips(path: Path, height: int, width: int, rows: int = 8, *, seed: int = 0) -> Path:
    """A TIFF of one level in strips as wide as the image, compressed with Deflate.

    Args:
        path: Where to.
        height: Of the image.
        width: Of the image.
        rows: Of a strip.
        seed: Of what is laid where.
    """
    mosaic = _Mosaic(seed)

    def strip(y: int) -> bytes:
        pixels = mosaic.tile(0, y, 0, min(rows, height - y), width)
        return bytes(imagecodecs.deflate_encode(pixels, 6, raw=False))

    def write(partial: Path) -> None:
        tifffile.imwrite(
            partial, _threaded(strip, range(0, height, rows)), shape=(height, width, 3), dtype=np.uint8, bigtiff=True,
            photometric="rgb", compression="zlib", rowsperstrip=rows, metadata=None, **_resolution(0),
        )  # fmt: skip

    return _written(path, (height, width), write)


def make_channels_zarr(
    path: Path, side: int, channels: int = 4, chunk: int = 512, *, version: str = "0.5", seed: int = 0
) -> Path:
    """An OME-Zarr pyramid (c, y, x) of 16 bit channels, one channel to a chunk and one chunk to a file.

    Args:
        path: Where to.
        side: Height and width in pixels.
        channels: Their number; the first shows nuclei.
        chunk: Side of a chunk. Small ones make many files: 64 px at a side of 4096 px some 20 000.
        version: 0.5 or 0.4.
        seed: Of what is laid where.
    """
    mosaic = _Mosaic(seed)

    def write(partial: Path) -> None:
        shutil.rmtree(partial, ignore_errors=True)
        group = zarr.create_group(partial, zarr_format=3 if version == "0.5" else 2)
        levels = _level_sides(side)
        for level, length in enumerate(levels):
            array: Any = group.create_array(
                str(level), shape=(channels, length, length), chunks=(1, chunk, chunk), dtype=np.uint16,
                chunk_key_encoding={"name": "default" if version == "0.5" else "v2", "separator": "/"},
            )  # fmt: skip
            band = chunk * max(1, 1024 // chunk)
            for y in range(0, length, band):
                colours = mosaic.tile(level, y, 0, min(band, length - y), length)
                for channel in range(channels):
                    array[channel, y : y + band] = _fluorescence(colours, channel)
        ome = _ome(len(levels), channels, version)
        group.attrs.update({"ome": ome} if version == "0.5" else ome)

    return _written(path, (side, side), write)


class _Mosaic:
    """An endless picture, laid out in squares of a patch. Its tiles can be made in several threads.

    Args:
        seed: Of what is laid where.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        tissue = _patch()
        # The patch goes on beyond its edges, so that any square of it is one slice.
        self._tinted = [_levels(tissue * np.array(tint, np.float32)) for tint in _TINTS]
        noise = ndimage.gaussian_filter(_noise(seed, 2.5), (0.7, 0.7, 0))
        self._glass = np.rint(noise + _GLASS).astype(np.uint8)

    def tile(self, level: int, y: int, x: int, height: int, width: int) -> NDArray[np.uint8]:
        """Tissue: (height, width, 3) from a place on."""
        square = _SQUARE // _STEP**level
        out = np.empty((height, width, 3), np.uint8)
        for row in range(y // square, -(-(y + height) // square)):
            for column in range(x // square, -(-(x + width) // square)):
                top, left = row * square, column * square
                y0, y1 = max(y, top), min(y + height, top + square)
                x0, x1 = max(x, left), min(x + width, left + square)
                part = self._square(level, row, column)[y0 - top : y1 - top, x0 - left : x1 - left]
                out[y0 - y : y1 - y, x0 - x : x1 - x] = part
        return out

    def glass(self, level: int, y: int, x: int, height: int, width: int) -> NDArray[np.uint8]:
        """Glass: (height, width, 3), with other noise at each place."""
        top, left = np.random.default_rng((self._seed, level, y, x)).integers(
            0, (_PATCH - height + 1, _PATCH - width + 1)
        )
        return self._glass[top : top + height, left : left + width].copy()

    def _square(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        """One square, as a view of the patch: the same part, seen the same way, in all levels."""
        tint, turns, reflected, top, left = np.random.default_rng((self._seed, row, column)).integers(
            0, (len(_TINTS), 4, 2, _PATCH // _SHIFT, _PATCH // _SHIFT)
        )
        scale = _STEP**level
        square, top, left = _SQUARE // scale, top * _SHIFT // scale, left * _SHIFT // scale
        part = np.rot90(self._tinted[tint][level][top : top + square, left : left + square], turns)
        return part[::-1] if reflected else part


def _patch() -> NDArray[np.float32]:
    """(2048, 2048, 3) of tissue that goes on at the opposite edges: the picture and its reflections."""
    picture = data.immunohistochemistry()[:471, :493]  # without the white corner
    stains = np.clip(rgb2hed(picture)[..., [0, 2]], 0, None)
    stains = stains / np.percentile(stains, 99, axis=(0, 1)) * (1.0, 0.45) + (0, 0.2)
    zoom = (_PATCH / 2 / stains.shape[0], _PATCH / 2 / stains.shape[1], 1)
    stains = np.clip(ndimage.zoom(stains, zoom, order=1), 0, None)
    stains = np.concatenate([stains, stains[:, ::-1]], axis=1)
    stains = np.concatenate([stains, stains[::-1]], axis=0)
    absorbed = stains.astype(np.float32) @ np.array([_HAEMATOXYLIN, _EOSIN], np.float32)
    return np.clip(_GLASS * np.exp(-absorbed) + _noise(0, 1.5), 0, 255)


def _noise(seed: int, strength: float) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).standard_normal((_PATCH, _PATCH, 3), np.float32)
    return noise * np.float32(strength)


def _levels(patch: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
    """The patch and means of it, each as wide again as a square."""
    levels = []
    for step in (_STEP**level for level in range(_LEVELS)):
        side, beyond = _PATCH // step, _SQUARE // step
        means = np.rint(patch.reshape(side, step, side, step, 3).mean(axis=(1, 3))).astype(np.uint8)
        levels.append(np.pad(means, ((0, beyond), (0, beyond), (0, 0)), mode="wrap"))
    return levels


def _tissue(side: int, share: float, y: int, x: int, height: int, width: int) -> NDArray[np.bool_]:
    """Which pixels of a tile lie in a clump of tissue: discs with a wavy edge."""
    ys, xs = (np.arange(y, y + height)[:, None] + 0.5) / side, (np.arange(x, x + width)[None] + 0.5) / side
    inside = np.zeros((height, width), bool)
    for centre_y, centre_x, part in _CLUMPS:
        dy, dx = ys - centre_y, xs - centre_x
        radius = np.sqrt(share * part / np.pi)
        far = max(np.abs(dy).min(), np.abs(dx).min()) > 1.2 * radius
        if not far:
            angle = np.arctan2(dy, dx)
            inside |= np.hypot(dy, dx) < radius * (1 + 0.07 * np.sin(5 * angle) + 0.04 * np.sin(13 * angle))
    return inside


def _fluorescence(colours: NDArray[np.uint8], channel: int) -> NDArray[np.uint16]:
    """A channel of 12 bits that shows what is dark in one of the colours: nuclei are in red, the first."""
    dark = 255 - colours[..., channel % 3].astype(np.uint16)
    shifted = np.roll(dark, 37 * (channel // 3), axis=1)
    # Of a length that is no width, so that it lies differently in each row.
    noise = np.resize(np.random.default_rng(channel).poisson(20, 10_007).astype(np.uint16), shifted.shape)
    return np.asarray(100 + shifted * 12 + noise, np.uint16)


def _level_sides(side: int) -> list[int]:
    sides = [side]
    while sides[-1] > _SMALLEST and len(sides) < _LEVELS:
        sides.append(side // _STEP ** len(sides))
    return sides


def _write_pyramid(path: Path, side: int, tile: int, quality: int, pixels: Tile) -> None:
    sides = _level_sides(side)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level, length in enumerate(sides):
            tiff.write(
                _jpeg_tiles(level, length, tile, quality, pixels),
                shape=(length, length, 3), dtype=np.uint8, tile=(tile, tile), photometric="rgb", compression="jpeg",
                subsampling=(2, 1), metadata=None, **({"subfiletype": 1} if level else {"subifds": len(sides) - 1}),
                **_resolution(level),
            )  # fmt: skip


def _jpeg_tiles(level: int, side: int, tile: int, quality: int, pixels: Tile) -> Iterator[bytes]:
    def encoded(corner: tuple[int, int]) -> bytes:
        part = pixels(level, *corner, tile, tile)
        return bytes(
            imagecodecs.jpeg8_encode(part, quality, colorspace="RGB", outcolorspace="YCBCR", subsampling="422")
        )

    return _threaded(encoded, ((y, x) for y in range(0, side, tile) for x in range(0, side, tile)))


def _threaded(function: Callable[[Any], bytes], items: Iterable[Any]) -> Iterator[bytes]:
    """`map` in as many threads as there are cores, in order, with few results waiting."""
    iterator, threads = iter(items), os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(iterator, 64 * threads)):
            yield from pool.map(function, batch)


def _resolution(level: int) -> dict[str, Any]:
    per_centimetre = 10_000 / (MPP * _STEP**level)
    return {"resolution": (per_centimetre, per_centimetre), "resolutionunit": "CENTIMETER"}


def _ome(levels: int, channels: int, version: str) -> dict[str, Any]:
    """Attributes that make arrays 0, 1, ... an image."""
    pixel = {"type": "space", "unit": "micrometer"}
    multiscale: dict[str, Any] = {
        "axes": [{"name": "c", "type": "channel"}, {"name": "y", **pixel}, {"name": "x", **pixel}],
        "datasets": [
            {
                "path": str(level),
                "coordinateTransformations": [{"type": "scale", "scale": [1.0, *[MPP * _STEP**level] * 2]}],
            }
            for level in range(levels)
        ],
    }
    names = [_CHANNELS[number] if number < len(_CHANNELS) else f"marker {number}" for number in range(channels)]
    window = {"min": 0, "max": 65535, "start": 100, "end": 3200}
    omero = {"channels": [{"label": name, "color": "FFFFFF", "window": window} for name in names]}
    if version == "0.4":
        return {"multiscales": [{"version": "0.4", **multiscale}], "omero": {"version": "0.4", **omero}}
    return {"version": version, "multiscales": [multiscale], "omero": omero}


def _written(path: Path, shape: tuple[int, int], write: Callable[[Path], None]) -> Path:
    """Calls `write` with another name first, so that what has the right one is whole."""
    if path.exists():
        if _shape(path) == shape:
            return path
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    partial.replace(path)
    return path


def _shape(path: Path) -> tuple[int, int]:
    if path.is_dir():
        return zarr.open_array(path / "0", mode="r").shape[-2:]
    with tifffile.TiffFile(path) as tiff:
        page: Any = tiff.pages.first
        return page.imagelength, page.imagewidth
