"""Small slides made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage

BLOCK = 64


def write_numbered_slide(path: Path, rows: int = 3, columns: int = 3) -> Path:
    """A grey TIFF of `rows` × `columns` blocks of 64 px; block k holds a square of value k + 1 that touches no seam."""
    image = np.zeros((rows * BLOCK, columns * BLOCK), np.uint8)
    for number in range(rows * columns):
        y, x = (number // columns) * BLOCK, (number % columns) * BLOCK
        image[y + 20 : y + 40, x + 20 : x + 40] = number + 1
    tifffile.imwrite(path, image, tile=(64, 64))
    return path


def write_blobs(path: Path, side: int, seed: int = 0) -> Path:
    """A grey TIFF of irregular blobs, some twenty px wide, in tiles; `side` is a multiple of 256."""
    noise = np.random.default_rng(seed).random((side, side), np.float32)
    image = (ndimage.gaussian_filter(noise, 4) - 0.5) * 3000 + 120
    tifffile.imwrite(path, np.clip(image, 0, 255).astype(np.uint8), tile=(256, 256), compression="zlib")
    return path
