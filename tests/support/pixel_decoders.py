"""Second decoders of the pixel oracle: each returns what one program makes of a file, level 0, as (c, y, x)."""

from __future__ import annotations

import json
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from tests.support.pixel_files import Pixels, planes
from tests.support.zarr_decoder import read_zarr


def by_tifffile(path: Path) -> Pixels:
    """Return the samples as tifffile decodes them, which converts colours of JPEG only."""
    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        image = series.asarray()
        return image[None] if image.ndim == 2 else image if series.axes[0] in "SCQI" else planes(image)


def by_pillow(path: Path) -> Pixels:
    """Return pixels; those of colour spaces as RGB."""
    with Image.open(path) as image:
        converted = image.convert("RGB") if image.mode in ("P", "CMYK", "YCbCr") else image
        return planes(np.asarray(converted))


def by_pillow_over_black(path: Path) -> Pixels:
    """Return grey over black, for an image with straight alpha."""
    with Image.open(path) as image:
        values = planes(np.asarray(image)).astype(float)
    return (values[:-1] * values[-1:] / 255).round().astype(np.uint8)


def by_vips(path: Path) -> Pixels:
    """Return pixels as libvips decodes them; CIELab and CMYK as they are stored."""
    import pyvips

    return planes(pyvips.Image.new_from_file(str(path)).numpy())


def by_vips_of_all_pages(path: Path) -> Pixels:
    """Return the pages of an OME-TIFF, a channel each."""
    import pyvips

    pages = pyvips.Image.new_from_file(str(path), n=-1)
    return pages.numpy().reshape(-1, pages.get("page-height"), pages.width)


def by_gdal(path: Path) -> Pixels:
    """Return the bands of a TIFF, or of the first level of an OME-Zarr of two axes."""
    import rasterio

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(f'ZARR:"{path}":/0' if path.is_dir() else path) as dataset:
            return dataset.read()


def by_libtiff(path: Path) -> Pixels:
    """Return what libtiff's own conversion makes of any colour space, as (3, y, x) over white."""
    out = path.with_suffix(".rgba.tif")
    subprocess.run(["tiff2rgba", "-c", "none", path, out], check=True, capture_output=True)
    rgba = planes(tifffile.imread(out)).astype(int)  # its alpha is associated
    return (rgba[:3] + 255 - rgba[3]).astype(np.uint8)


def by_libtiff_in_grey(path: Path) -> Pixels:
    """Return the first band of libtiff's conversion: the brightness of an image without colours."""
    return by_libtiff(path)[:1]


def by_libtiff_in_bits(path: Path) -> Pixels:
    """Return 0 and 1 for the black and white of libtiff's conversion."""
    return by_libtiff_in_grey(path) // 255


def by_own_zarr_decoder(path: Path) -> Pixels:
    """Return the first time point and focal plane of the finest level of an OME-Zarr."""
    names = ("zarr.json", ".zattrs")
    attributes = next(json.loads((path / name).read_text()) for name in names if (path / name).is_file())
    attributes = attributes.get("attributes", attributes)
    multiscales = attributes.get("ome", attributes)["multiscales"][0]
    axes = [axis["name"] for axis in multiscales["axes"]]
    image = read_zarr(path / multiscales["datasets"][0]["path"])
    for axis in ("t", "z"):
        if axis in axes:
            image = image.take(0, axes.index(axis))
            axes.remove(axis)
    return np.moveaxis(image, axes.index("c"), 0) if "c" in axes else image[None]


DECODERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "tifffile": ("tifffile", by_tifffile),
    "Pillow": ("PIL", by_pillow),
    "Pillow over black": ("PIL", by_pillow_over_black),
    "libvips": ("pyvips", by_vips),
    "libvips pages": ("pyvips", by_vips_of_all_pages),
    "GDAL": ("rasterio", by_gdal),
    "zarr by hand": ("imagecodecs", by_own_zarr_decoder),
    "libtiff": ("tiff2rgba", by_libtiff),
    "libtiff in bits": ("tiff2rgba", by_libtiff_in_bits),
    "libtiff in grey": ("tiff2rgba", by_libtiff_in_grey),
}


PROGRAMS = {name: program for name, (program, _) in DECODERS.items()}


def decode(path: Path, decoder: str) -> Pixels:
    """Decode a file by one of `DECODERS`."""
    return DECODERS[decoder][1](path)
