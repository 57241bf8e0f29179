"""Which image of a file is the slide: decided by size, resolutions and name together, not by order."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.settings.sections import SlideSettings
from slidesam.tasks.slides.choice import ImageInFile, choose_image
from slidesam.tasks.slides.inspect import inspect_slide
from tests.support.made_slides import write_zarr

SLIDE = (330, 430)
RGB: dict[str, Any] = {"photometric": "rgb", "compression": "zlib"}
OME = """<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">{}</OME>"""


def image(shape: tuple[int, int] = SLIDE) -> NDArray[np.uint8]:
    return np.random.default_rng(shape[0]).integers(0, 255, (*shape, 3), np.uint8)


def write_thumbnail_first(path: Path) -> Path:
    with tifffile.TiffWriter(path) as writer:
        writer.write(image((25, 33)), metadata=None, **RGB)
        writer.write(image(), tile=(256, 256), metadata=None, **RGB)
    return path


def write_thumbnail_first_pyramid(path: Path) -> Path:
    """The thumbnail is an exact fraction of the slide, and the levels follow as pages."""
    with tifffile.TiffWriter(path) as writer:
        for step, tile in ((10, None), (1, (256, 256)), (2, (256, 256)), (4, (256, 256))):
            writer.write(image((SLIDE[0] // step, SLIDE[1] // step)), tile=tile, metadata=None, **RGB)
    return path


def write_described_first(path: Path) -> Path:
    """A generic TIFF whose first page is a macro photo, larger than the slide, and says so."""
    with tifffile.TiffWriter(path) as writer:
        writer.write(image((900, 700)), description="Macro", metadata=None, **RGB)
        writer.write(image(), description="Scan", tile=(256, 256), metadata=None, **RGB)
    return path


def write_ome_label_first(path: Path) -> Path:
    with tifffile.TiffWriter(path, ome=True) as writer:
        for name, shape in (("label image", (60, 75)), ("macro image", (33, 43)), ("slide", SLIDE)):
            writer.write(image(shape), metadata={"Name": name, "axes": "YXS"}, **RGB)
    return path


def write_scn(path: Path) -> Path:
    """Leica: the macro photo of the glass is the first image, the region that was scanned the second."""

    def describe(name: str, ifd: int, shape: tuple[int, int]) -> str:
        size = f'sizeX="{shape[1]}" sizeY="{shape[0]}"'
        return f'<image name="{name}"><pixels {size}><dimension {size} r="0" ifd="{ifd}"/></pixels></image>'

    images = describe("image_01", 0, (100, 50)) + describe("image_02", 1, SLIDE)
    xml = f'<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection>{images}</collection></scn>'
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(image((100, 50)), description=xml, tile=(64, 64), metadata=None, software="Leica", **RGB)
        writer.write(image(), tile=(256, 256), metadata=None, **RGB)
    return path


def write_bioformats2raw(path: Path, version: str = "0.4", names: tuple[str, ...] = (), n_levels: int = 2) -> Path:
    """Series 0 is the macro photo, 1 the label, 2 the slide."""
    attributes: dict[str, Any] = {"bioformats2raw.layout": 3}
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2)
    group.attrs.update({"ome": attributes} if version == "0.5" else attributes)
    shapes = ((400, 450), (50, 45), SLIDE) if names else ((35, 25), (50, 45), SLIDE)
    for number, (y, x) in enumerate(shapes):
        write_zarr(path / str(number), "tczyx", {"t": 1, "c": 1, "z": 1, "y": y, "x": x}, version, n_levels)
    if names:
        images = "".join(
            f'<Image ID="Image:{i}" Name="{name}"><Pixels SizeX="{x}" SizeY="{y}" SizeC="1"/></Image>'
            for i, (name, (y, x)) in enumerate(zip(names, shapes, strict=True))
        )
        (path / "OME").mkdir()
        (path / "OME" / "METADATA.ome.xml").write_text(OME.format(images))
    return path


FILES: dict[str, tuple[str, Callable[[Path], Path], int]] = {
    "thumbnail first": ("a.tif", write_thumbnail_first, 1),
    "thumbnail before a pyramid": ("a.tif", write_thumbnail_first_pyramid, 1),
    "macro by description": ("a.tif", write_described_first, 1),
    "label and macro first in OME-TIFF": ("a.ome.tif", write_ome_label_first, 2),
    "SCN": ("a.scn", write_scn, 1),
    "bioformats2raw": ("a.zarr", write_bioformats2raw, 2),
    "bioformats2raw 0.5": ("a.zarr", lambda path: write_bioformats2raw(path, "0.5"), 2),
    "bioformats2raw, names in XML": (
        "a.zarr", lambda path: write_bioformats2raw(path, names=("macro image", "label image", "scan")), 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_the_slide_is_found_wherever_it_lies(tmp_path: Path, kind: str) -> None:
    name, write, expected = FILES[kind]
    path = write(tmp_path / name)
    slide = inspect_slide(path)
    assert (slide.series, slide.shape) == (expected, SLIDE)
    said = [warning for warning in slide.warnings if "is taken as the slide" in warning]
    assert len(said) == 1
    assert f"image {expected} (" in said[0]
    assert "slide.series" in said[0]
    chosen = inspect_slide(path, SlideSettings(series=0))
    assert chosen.series == 0
    assert chosen.shape != SLIDE
    is_larger = "macro" not in kind or "label" in kind
    assert any("as many pixels" in warning for warning in chosen.warnings) == (is_larger and "XML" not in kind)
    assert inspect_slide(path, SlideSettings(series=expected)).shape == SLIDE
    with pytest.raises(SettingsError, match=r"has images 0 to .*, not 9"):
        inspect_slide(path, SlideSettings(series=9))


@pytest.mark.parametrize("description", ["label-free SHG of liver", "Overview scan, 20x"])
def test_a_description_that_mentions_a_label_is_no_side_image(tmp_path: Path, description: str) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(image(), description=description, tile=(64, 64), metadata=None, **RGB)
        writer.write(image((30, 40)), metadata=None, **RGB)
    assert inspect_slide(tmp_path / "a.tif").series == 0


@pytest.mark.parametrize("series", ["auto", 0])
def test_nothing_changes_where_image_0_is_the_slide(tmp_path: Path, series: Any) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        for name, shape in (("", SLIDE), ("label", (90, 80)), ("macro", (600, 700))):
            writer.write(image(shape), metadata={"Name": name, "axes": "YXS"}, **RGB)
    slide = inspect_slide(tmp_path / "a.ome.tif", SlideSettings(series=series))
    assert slide.series == 0
    assert len(slide.warnings) == 1  # its pixel size isn't known


def test_any_order_gives_the_same_slide() -> None:
    images = [
        ImageInFile("Baseline", (3000, 4000), 3), ImageInFile("Label", (400, 500), 1),
        ImageInFile("Macro", (1600, 4600), 3), ImageInFile("", (300, 400), 1),
    ]  # fmt: skip
    for order in itertools.permutations(images):
        number, remarks = choose_image(order, None, "a.tif")
        assert order[number].name == "Baseline"
        assert len(remarks) == (number != 0)


@pytest.mark.parametrize(
    ("images", "chosen", "said"),
    [
        ([ImageInFile("", (100, 100), 1)], 0, ""),
        ([ImageInFile("label", (100, 100), 1)], 0, ""),
        ([ImageInFile("overview of macrophages", (5000, 5000), 1), ImageInFile("x", (300, 300), 1)], 0, ""),
        ([ImageInFile("macrophages", (500, 500), 1), ImageInFile("x", (600, 600), 1)], 0, "further large images"),
        ([ImageInFile("", (500, 500), 2), ImageInFile("", (500, 500), 2)], 0, "image 1 (500 × 500 px)"),
        ([ImageInFile("", (250, 250), 1, is_reduced=True), ImageInFile("", (400, 400), 1)], 1, "is taken as the slide"),
        ([ImageInFile("", (0, 0), 0), ImageInFile("Thumbnail", (40, 40), 1)], 1, "is taken as the slide"),
        ([ImageInFile("label-free imaging", (900, 900), 1), ImageInFile("x", (90, 90), 1)], 0, ""),
        ([ImageInFile("overview scan", (900, 900), 1, is_described=True), ImageInFile("x", (90, 90), 1)], 0, ""),
        ([ImageInFile("map of it", (900, 900), 1, is_described=True), ImageInFile("x", (700, 700), 1)], 0, "image 1"),
        (
            [ImageInFile("label 387x463", (900, 900), 1, is_described=True), ImageInFile("x", (200, 200), 1)],
            1,
            "is taken",
        ),
        (
            [ImageInFile("Slide macro image", (900, 900), 1, is_described=True), ImageInFile("x", (200, 200), 1)],
            1,
            "is taken",
        ),
    ],
)
def test_choices(images: list[ImageInFile], chosen: int, said: str) -> None:
    number, remarks = choose_image(images, None, "a.tif")
    assert number == chosen
    assert said in " ".join(remarks)
    assert bool(said) == bool(remarks)


def test_numbers_count_the_images_that_are_there(tmp_path: Path) -> None:
    """A numbered folder that holds no image has no number, so the others are named by their folders."""
    path = write_bioformats2raw(tmp_path / "a.zarr")
    (path / "0" / ".zattrs").write_text("{}")
    slide = inspect_slide(path)
    assert (slide.series, slide.n_series, slide.shape) == (1, 2, SLIDE)
    said = [warning for warning in slide.warnings if "is taken as the slide" in warning]
    assert len(said) == 1
    assert said[0].startswith("image 1 (folder '2', ")
    assert "not image 0 (folder '1', 45 × 50 px)" in said[0]
    assert inspect_slide(path, SlideSettings(series=1)).shape == SLIDE
    with pytest.raises(SettingsError, match=r"has images 0 to 1 \(folders 1, 2\), not 2"):
        inspect_slide(path, SlideSettings(series=2))
