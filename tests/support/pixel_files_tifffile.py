"""Files of the pixel oracle that tifffile writes: kinds that scanners and microscopes write, with their levels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tifffile

from tests.support.pixel_files import GREY, RGB, SIZE, Combination, Pixels, noise, picture, planes

TILES = {"tile": (16, 32)}
APERIO = "Aperio Image Library v11.2.1\r\n330x200 [0,0 330x200] (64x64) -> {0} |AppMag = 20|MPP = 0.5"


def combinations() -> Iterator[Combination]:
    """Yield all that tifffile writes."""
    yield from _lossless()
    yield from _lossy()
    yield from _aperio()
    yield from _ome()


def _write(image: Pixels, **options: Any) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, image, metadata=None, **options)


def _lossless() -> Iterator[Combination]:
    rgb = noise(*SIZE, 3)
    for words, options in {
        "none": {}, "LZW predictor 2": {"compression": "lzw", "predictor": 2},
        "deflate predictor 2": {"compression": "zlib", "predictor": 2},
        "zstd predictor 2": {"compression": "zstd", "predictor": 2}, "packbits": {"compression": "packbits"},
    }.items():  # fmt: skip
        for layout, shape in {"strips of 7": {"rowsperstrip": 7}, "tiles 16 × 32": TILES}.items():
            write = _write(rgb, photometric="rgb", **options, **shape)
            yield Combination("tifffile", "TIFF", words, RGB, "uint8", layout, write, (planes(rgb),), "Pillow")
            write = _write(planes(rgb), photometric="rgb", planarconfig="separate", **options, **shape)
            yield Combination(
                "tifffile", "TIFF", words, RGB, "uint8", f"{layout}, separate", write, (planes(rgb),), "GDAL"
            )
    for dtype in ("float16", "float32", "float64"):
        image = noise(*SIZE, dtype=dtype)
        for order in "<>":
            write = _write(image, compression="zlib", predictor=3, byteorder=order, **TILES)
            depth = ("big-endian " if order == ">" else "") + dtype
            decoder = "GDAL" if dtype != "float16" else "tifffile"
            yield Combination(
                "tifffile",
                "TIFF",
                "deflate predictor 3",
                GREY,
                depth,
                "tiles 16 × 32",
                write,
                (planes(image),),
                decoder,
            )


def _lossy() -> Iterator[Combination]:
    rgb = picture()
    # tifffile turns RGB into YCbCr where it compresses as JPEG.
    for words, subsampling in {"YCbCr 4:4:4": (1, 1), "YCbCr 4:2:2": (2, 1), "YCbCr 4:2:0": (2, 2)}.items():
        for layout, shape in {"strips of 16": {"rowsperstrip": 16}, "tiles 16 × 32": TILES}.items():
            write = _write(
                rgb,
                compression="jpeg",
                compressionargs={"level": 92},
                photometric="rgb",
                subsampling=subsampling,
                **shape,
            )
            yield Combination(
                "tifffile", "TIFF", "JPEG", words, "uint8", layout, write, (planes(rgb),), "libtiff", 40, 2
            )


def _aperio() -> Iterator[Combination]:
    """Yield files as Aperio's scanners write them: tiled slide, thumbnail, levels, label, macro."""
    for words, options, tolerance in (
        ("JPEG", {"compression": "jpeg", "photometric": "rgb", "subsampling": (2, 2), "compressionargs": {"level": 92}}, 40),
        ("JPEG 2000 33005", {"compression": 33005, "photometric": "rgb"}, 0),
    ):  # fmt: skip
        slide = picture(3, (200, 330)) if tolerance else noise(200, 330, 3)
        levels = [slide, slide[::2, ::2]]

        def write(path: Path, levels: list[Pixels] = levels, options: dict[str, Any] = options) -> None:
            with tifffile.TiffWriter(path) as writer:
                common = {"metadata": None, "tile": (64, 64), **options}
                writer.write(levels[0], description=APERIO.format("tiles"), **common)
                writer.write(
                    picture(3, (40, 66)), description=APERIO.format("thumbnail"), photometric="rgb", metadata=None
                )
                writer.write(levels[1], description=APERIO.format("half"), **common)
                for name, number in (("label", 1), ("macro", 9)):
                    writer.write(
                        picture(3, (50, 60)), description=f"Aperio Image Library\r\n{name} 60x50", subfiletype=number,
                        photometric="rgb",
                        metadata=None,
                    )  # fmt: skip

        yield Combination(
            "tifffile", "SVS", words, "YCbCr 4:2:0" if tolerance else RGB, "uint8", "tiles 64 × 64, levels as pages", write,
            tuple(planes(level) for level in levels), "libtiff" if tolerance else "tifffile", tolerance, 2 if tolerance else 0,
        )  # fmt: skip


def _ome() -> Iterator[Combination]:
    for axes, shape, photometric in (
        ("YX", (200, 330), "minisblack"), ("YXS", (200, 330, 3), "rgb"), ("CYX", (4, 200, 330), "minisblack"),
    ):  # fmt: skip
        for dtype in ("uint8", "uint16", "float32"):
            image = noise(*shape, dtype=dtype)
            step = tuple(slice(None, None, 2) if axis in "YX" else slice(None) for axis in axes)
            for compression in ("none", "deflate"):

                def write(
                    path: Path, image: Pixels = image, step: tuple[slice, ...] = step, axes: str = axes,
                    photometric: str = photometric,
                    compression: str | None = {"none": None, "deflate": "zlib"}[compression],
                ) -> None:  # fmt: skip
                    options: dict[str, Any] = {"tile": (64, 64), "photometric": photometric, "compression": compression}
                    with tifffile.TiffWriter(path, ome=True) as writer:
                        writer.write(image, subifds=2, metadata={"axes": axes}, **options)
                        writer.write(image[step], subfiletype=1, metadata=None, **options)
                        writer.write(image[step][step], subfiletype=1, metadata=None, **options)

                levels = [image, image[step], image[step][step]]
                as_planes = tuple(level if axes == "CYX" else planes(level) for level in levels)
                yield Combination(
                    "tifffile", "OME-TIFF", compression, RGB if photometric == "rgb" else GREY, dtype,
                    f"tiles 64 × 64, axes {axes}, levels as SubIFDs", write, as_planes,
                    "libvips pages" if axes == "CYX" else "GDAL",
                )  # fmt: skip
