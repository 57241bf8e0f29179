"""Ventana BIF: tiles that overlap are refused by name, tiles side by side are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from slidesam.tasks.errors import SlideError
from slidesam.tasks.grid import Region
from slidesam.tasks.settings.sections import SlideSettings
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.reader import SlideReader

IMAGE = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)


def write_bif(path: Path, joints: str, encoding: str = "utf-8") -> Path:
    """A label, then the scan with the joints of its tiles, then a level."""
    scan = '<?xml version="1.0" encoding="{}"?><Metadata><iScan ScanRes="0.25" Magnification="40"/></Metadata>'
    info = (
        f'<?xml version="1.0" encoding="{encoding}"?><EncodeInfo Ver="2"><SlideStitchInfo><ImageInfo AOIScanned="1">'
        f"{joints}</ImageInfo></SlideStitchInfo></EncodeInfo>"
    )
    options = {"photometric": "rgb", "tile": (32, 32), "metadata": None, "compression": "zlib"}
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for image, description, xmp in (
            (IMAGE[:50, :40], "Label Image", scan.format(encoding)),
            (IMAGE, "level=0 mag=40 quality=90", info),
            (IMAGE[::2, ::2], "level=1 mag=20 quality=90", ""),
        ):
            extra = [(700, 1, None, xmp.encode(encoding), True)] if xmp else []
            writer.write(
                image.copy(),
                description=description,
                software="ScanOutputManager 1.1.0.15854",
                extratags=extra,
                **options,
            )
    return path


JOINT = (
    '<TileJointInfo FlagJoined="{}" Confidence="95" Direction="RIGHT" Tile1="1" Tile2="2" OverlapX="{}" OverlapY="{}"/>'
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(("x", "y"), [(5, 0), (0, 7), (-3, 0), ("9.0", "")])
def test_overlapping_tiles_are_refused_by_name(tmp_path: Path, x: object, y: object, encoding: str) -> None:
    path = write_bif(tmp_path / "a.bif", JOINT.format(1, 0, 0) + JOINT.format(1, x, y), encoding)
    with pytest.raises(
        SlideError, match=r"a\.bif: is a Ventana BIF whose tiles overlap by up to \d px.*bioformats2raw"
    ):
        inspect_slide(path)
    assert inspect_slide(path, SlideSettings(series=1)).shape == (50, 40)  # its label can be read


@pytest.mark.parametrize("joints", ["", JOINT.format(1, 0, 0), JOINT.format(0, 12, 3), JOINT.format(1, "?", "x")])
def test_tiles_side_by_side_are_read(tmp_path: Path, joints: str) -> None:
    slide = inspect_slide(write_bif(tmp_path / "a.bif", joints))
    assert (slide.format, slide.series, slide.mpp, slide.warnings) == ("Ventana BIF", 0, (0.25, 0.25), ())
    assert [level.shape for level in slide.levels] == [(96, 128), (48, 64)]
    with SlideReader(slide) as reader:
        np.testing.assert_array_equal(reader.read(Region(0, 0, 96, 128)), IMAGE)
