"""Files of the pixel oracle whose tiles one of imagecodecs' encoders writes, inside a TIFF that is written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from tests.support.pixel_files import (
    GREY,
    RGB,
    SIZE,
    Combination,
    Pixels,
    blocky_picture,
    noise,
    picture,
    planes,
    rgb_of_cmyk,
    ycbcr_of,
)
from tests.support.pixel_files_by_hand import LAYOUTS, STRIPS, make
from tests.support.tiff_by_hand import SHORT, Shape

JPEG, JPEG_2000, APERIO_YCBCR, APERIO_RGB = 7, 34712, 33003, 33005
Encoder = Callable[[NDArray[Any]], bytes]
TALL = Shape(rows=16)


def combinations() -> Iterator[Combination]:
    """Yield all files about codecs."""
    yield from _jpeg()
    yield from _jpeg_of_other_colours()
    yield from _jpeg_2000()
    yield from _newer_codecs()
    yield from _plain_codecs()
    yield from _refused()


def _encoded(
    image: NDArray[Any], code: int, name: str, layout: str, encode: Encoder, depth: str = "uint8", **options: Any
) -> Combination:
    shape = {"strips of 16": TALL, **LAYOUTS}[layout]
    tags = {259: (SHORT, [code]), **options.pop("tags", {})}
    return make(image, depth, layout, shape, compression=name, encode=encode, tags=tags, **options)


def _jpeg() -> Iterator[Combination]:
    rgb, grey = picture(), picture(1)
    for subsampling, sizes in {"444": (1, 1), "422": (2, 1), "420": (2, 2), "411": (4, 1), "440": (1, 2)}.items():
        for layout in ("strips of 16", "tiles 16 × 32"):

            def encode(segment: Pixels, subsampling: str = subsampling) -> bytes:
                return imagecodecs.jpeg8_encode(np.ascontiguousarray(segment), level=95, subsampling=subsampling)

            yield _encoded(
                rgb, JPEG, "JPEG, whole files", layout, encode, photometric=6, colours="YCbCr " + ":".join(subsampling),
                tags={530: (SHORT, sizes)}, decoder="libtiff", tolerance=25, agreement=2,
            )  # fmt: skip
    for layout in ("strips of 16", "tiles 16 × 32", "tiles 16 × 32, separate"):

        def encode_rgb(segment: Pixels) -> bytes:
            space = "RGB" if segment.shape[2] == 3 else "GRAYSCALE"
            return imagecodecs.jpeg8_encode(
                np.ascontiguousarray(segment), level=95, colorspace=space, outcolorspace=space
            )

        yield _encoded(
            rgb, JPEG, "JPEG, whole files", layout, encode_rgb, photometric=2, colours=RGB, decoder="libtiff", tolerance=10,
            agreement=2,
        )  # fmt: skip
    for layout in ("strips of 16", "tiles 16 × 32"):
        yield _encoded(
            grey, JPEG, "JPEG, whole files", layout,
            lambda segment: imagecodecs.jpeg8_encode(np.ascontiguousarray(segment), level=95),
            decoder="libtiff in grey", tolerance=10, agreement=2,
        )  # fmt: skip


def _jpeg_of_other_colours() -> Iterator[Combination]:
    rgb = picture()

    def as_jfif(segment: Pixels) -> bytes:
        return imagecodecs.jpeg8_encode(np.ascontiguousarray(segment), level=95, subsampling="444")

    # The tag says RGB, the file inside says YCbCr by its JFIF header; seen of several scanners.
    for layout in ("strips of 16", "tiles 16 × 32"):
        yield _encoded(
            rgb, JPEG, "JPEG, whole files with JFIF header", layout, as_jfif, photometric=2, colours="RGB that is YCbCr inside",
            decoder="tifffile", tolerance=25, agreement=2,
        )  # fmt: skip
    cmyk = picture(4)
    yield _encoded(
        cmyk, JPEG, "JPEG, whole files", "tiles 16 × 32",
        lambda segment: imagecodecs.jpeg8_encode(
            np.ascontiguousarray(segment), level=98, colorspace="CMYK", outcolorspace="CMYK"
        ),
        photometric=5, colours="CMYK", truth=planes(rgb_of_cmyk(cmyk)), tolerance=15,
    )  # fmt: skip


def _jpeg_2000() -> Iterator[Combination]:
    rgb, smooth = noise(*SIZE, 3), picture()

    def lossless(segment: Pixels, mct: bool = False) -> bytes:
        return imagecodecs.jpeg2k_encode(
            np.ascontiguousarray(segment), level=0, codecformat="J2K", mct=mct, reversible=True
        )

    def lossy(segment: Pixels) -> bytes:
        return imagecodecs.jpeg2k_encode(np.ascontiguousarray(segment), level=45, codecformat="J2K", mct=True)

    blocky = blocky_picture()
    for layout in ("strips of 16", "tiles 16 × 32"):
        yield _encoded(
            ycbcr_of(blocky), APERIO_YCBCR, "JPEG 2000 33003", layout, lossless, photometric=2, colours="YCbCr, called RGB",
            truth=planes(blocky), tolerance=3,
        )  # fmt: skip
        yield _encoded(
            ycbcr_of(blocky), APERIO_YCBCR, "JPEG 2000 33003", layout, lossless, photometric=6, colours="YCbCr",
            truth=planes(blocky),
            tolerance=3,
        )  # fmt: skip
        for code, name in ((APERIO_RGB, "JPEG 2000 33005"), (JPEG_2000, "JPEG 2000 34712")):
            for mct in (False, True):
                yield _encoded(
                    rgb, code, name + (" with its colour transform" if mct else "") + " lossless", layout,
                    lambda segment, mct=mct: lossless(segment, mct), photometric=2, colours=RGB, decoder="tifffile",
                )  # fmt: skip
            yield _encoded(
                smooth, code, name, layout, lossy, photometric=2, colours=RGB, decoder="tifffile", tolerance=12
            )
            grey = noise(*SIZE, dtype="uint16")
            yield _encoded(grey, code, name + " lossless", layout, lossless, "uint16", decoder="tifffile")


def _newer_codecs() -> Iterator[Combination]:
    rgb, smooth, grey = noise(*SIZE, 3), picture(), noise(*SIZE, dtype="uint16")
    floats = noise(*SIZE, dtype="float32")

    def webp(segment: Pixels) -> bytes:
        return imagecodecs.webp_encode(np.ascontiguousarray(segment), lossless=True)

    def jpegxl(segment: Pixels) -> bytes:
        return imagecodecs.jpegxl_encode(np.ascontiguousarray(segment), lossless=True)

    def jpegxr(segment: Pixels) -> bytes:
        return imagecodecs.jpegxr_encode(np.ascontiguousarray(segment), level=1.0)

    def png(segment: Pixels) -> bytes:
        return imagecodecs.png_encode(np.ascontiguousarray(segment))

    def lerc(segment: Pixels) -> bytes:
        return imagecodecs.lerc_encode(np.ascontiguousarray(segment))

    for code, name, encode in (
        (50001, "WebP lossless", webp), (50002, "JPEG XL lossless", jpegxl), (52546, "JPEG XL 52546 lossless", jpegxl),
        (22610, "JPEG XR lossless", jpegxr), (34933, "PNG", png),
    ):  # fmt: skip
        for layout in ("strips of 16", "tiles 16 × 32"):
            yield _encoded(rgb, code, name, layout, encode, photometric=2, colours=RGB, decoder="tifffile")
    for code, name, encode in (
        (50002, "JPEG XL lossless", jpegxl),
        (34933, "PNG", png),
        (22610, "JPEG XR lossless", jpegxr),
    ):
        squeezed = lambda segment, encode=encode: encode(segment[..., 0])  # noqa: E731
        yield _encoded(grey, code, name, "tiles 16 × 32", squeezed, "uint16", decoder="tifffile")
    for image, depth in ((floats, "float32"), (grey, "uint16")):
        yield _encoded(
            image, 34887, "LERC", "tiles 16 × 32", lambda segment: lerc(segment[..., 0]), depth, decoder="GDAL",
            tags={50674: (4, [4, 0])},
        )  # fmt: skip
    yield _encoded(
        smooth, 50002, "JPEG XL", "tiles 16 × 32",
        lambda segment: imagecodecs.jpegxl_encode(np.ascontiguousarray(segment), level=95),
        photometric=2, colours=RGB, decoder="tifffile", tolerance=20, agreement=2,
    )  # fmt: skip


def _plain_codecs() -> Iterator[Combination]:
    grey = noise(*SIZE)
    for code, name, encode in (
        (32946, "deflate 32946", imagecodecs.zlib_encode), (8, "deflate", imagecodecs.zlib_encode),
        (5, "LZW", imagecodecs.lzw_encode), (32773, "packbits", imagecodecs.packbits_encode),
        (34925, "LZMA", imagecodecs.lzma_encode), (50000, "zstd", imagecodecs.zstd_encode),
        (34926, "zstd 34926", imagecodecs.zstd_encode),
    ):  # fmt: skip
        for layout in ("strips of 7", "tiles 16 × 32"):
            yield _encoded(
                grey, code, name, layout, lambda segment, encode=encode: encode(np.ascontiguousarray(segment).tobytes()),
                decoder="tifffile",
            )  # fmt: skip


def _refused() -> Iterator[Combination]:
    names = {6: "JPEG", 32809: "ThunderScan", 34661: "JBIG", 34676: "SGILOG", 65000: "EER", 60000: "unknown"}
    for code, name in names.items():
        yield make(
            noise(*SIZE), "uint8", "strips of 7", STRIPS, compression=f"method {code}", tags={259: (SHORT, [code])}, colours=GREY,
            refusal=(f"method {code}", name),
        )  # fmt: skip
