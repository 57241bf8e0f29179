"""Slides that name other files: none is opened, and the slide's own pixels are read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from slidesam.tasks.errors import SlideError
from slidesam.tasks.grid import Region
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.slides.tiff.inspect import MAX_DIRECTORIES

OWN, OTHER = (np.random.default_rng(seed).integers(0, 255, (64, 96)).astype(np.uint8) for seed in (1, 2))
UUID = "urn:uuid:00000000-0000-0000-0000-000000000001"


def write_ome(path: Path, file_name: str, *, root: str = "", pixels: np.ndarray = OWN) -> Path:
    """An OME-TIFF of one plane, which OME-XML says lies in a file of this name."""
    height, width = pixels.shape
    text = (
        f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" {root}>'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="{width}" SizeY="{height}" '
        f'SizeZ="1" SizeC="1" SizeT="1"><Channel ID="Channel:0:0" Name="one" SamplesPerPixel="1"/>'
        f'<TiffData IFD="0" PlaneCount="1"><UUID FileName="{file_name}">{UUID}</UUID></TiffData></Pixels></Image></OME>'
    )
    tifffile.imwrite(path, pixels, description=text, tile=(32, 32), metadata=None, photometric="minisblack")
    return path


def read(path: Path) -> np.ndarray:
    slide = inspect_slide(path)
    assert slide.channel_names == ("one",)
    with SlideReader(slide) as reader:
        return reader.read(Region(0, 0, *OWN.shape))[..., 0]


@pytest.mark.parametrize("root", ["", f'UUID="{UUID}"'])
@pytest.mark.parametrize("name", ["other.ome.tif", "../other.ome.tif", "gone.ome.tif", "OWN.ome.tif", "link.ome.tif"])
def test_the_pixels_are_those_of_the_slide_itself(name: str, root: str, tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    for other in (folder / "other.ome.tif", tmp_path / "other.ome.tif", folder / "OWN.ome.tif"):
        # Its tiles lie elsewhere than the slide's.
        write_ome(other, other.name + 500 * "x", pixels=OTHER)
    (folder / "link.ome.tif").symlink_to(tmp_path / "other.ome.tif")
    assert (read(write_ome(folder / "own.ome.tif", name, root=root)) == OWN).all()


@pytest.mark.timeout(20)
def test_a_pipe_of_that_name_isnt_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    assert (read(write_ome(tmp_path / "own.ome.tif", "pipe.tif")) == OWN).all()
    with pytest.raises(SlideError, match="is no regular file"):
        inspect_slide(tmp_path / "pipe.tif")


def test_a_part_of_a_set_is_refused_by_name(tmp_path: Path) -> None:
    path = write_ome(
        tmp_path / "own.ome.tif", "other.ome.tif", root='UUID="urn:uuid:00000000-0000-0000-0000-000000000002"'
    )
    with pytest.raises(SlideError, match=r"is one of several files of a stack \(others: other.ome.tif\)"):
        inspect_slide(path)


MICRO_MANAGER = [
    ("own_MMStack_Pos0.ome.tif", "own_MMStack_Pos0_1.ome.tif"),
    ("own_MMStack_1-Pos000_000.ome.tif", "own_MMStack_1-Pos000_001.ome.tif"),
    ("own_NDTiffStack.tif", "own_NDTiffStack_1.tif"),
]


@pytest.mark.parametrize(("name", "other"), MICRO_MANAGER)
def test_a_part_of_a_stack_of_micro_manager_is_refused_by_name(name: str, other: str, tmp_path: Path) -> None:
    for path in (tmp_path / name, tmp_path / other):
        tags = [(51123, "s", 0, '{"PixelType": "GRAY8"}', True)]
        tifffile.imwrite(path, OWN, tile=(32, 32), metadata=None, photometric="minisblack", extratags=tags)
    with pytest.raises(SlideError, match=rf"is one of several files of a stack \(others: {other}\)"):
        inspect_slide(tmp_path / name)
    (tmp_path / other).unlink()
    with SlideReader(inspect_slide(tmp_path / name)) as reader:
        assert (reader.read(Region(0, 0, *OWN.shape))[..., 0] == OWN).all()


def test_very_many_directories_are_refused_soon(tmp_path: Path) -> None:
    path = tmp_path / "many.tif"
    # A directory without tags takes 6 bytes: their number, and the place of the next.
    count = 300_000
    places = 8 + 6 * np.arange(1, count + 1, dtype=np.int64)
    places[-1] = 0
    directories = np.zeros(count, [("tags", "<u2"), ("next", "<u4")])
    directories["next"] = places
    path.write_bytes(b"II*\0\x08\0\0\0" + directories.tobytes())
    with pytest.raises(SlideError, match=f"more than {MAX_DIRECTORIES} image directories"):
        inspect_slide(path)
