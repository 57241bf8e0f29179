"""Pixel sizes: believed where they are credible, unknown with a warning otherwise, and never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from slidesam.tasks.errors import SlideError
from slidesam.tasks.settings.sections import SlideSettings
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.pixel_size import SizeStatement, choose_size, read_length
from tests.support.made_slides import pixels

GREY = pixels(60, 70)


def write(path: Path, image: Any = GREY, **options: Any) -> Slide:
    options = {"metadata": None, "photometric": "rgb" if image.shape[-1] == 3 else "minisblack", **options}
    tifffile.imwrite(path, image, **options)
    return inspect_slide(path)


def has_note(slide: Slide, *words: str) -> bool:
    return any(all(word in warning for word in words) for warning in slide.warnings)


def close(mpp: tuple[float, float] | None) -> Any:
    return None if mpp is None else pytest.approx(mpp, rel=1e-4)


# --- Numbers and units.


@pytest.mark.parametrize(
    ("value", "unit", "length"),
    [
        ("0.25", "µm", 0.25), ("0,25", "µm", 0.25), ("2,016", "µm", 2.016), (" 0.5 ", "um", 0.5), ("5.0E-1", "µm", 0.5),
        (".5", "micron", 0.5), ("5,0e-7", "m", 0.5), ("0,250", "µm", 0.25), ("1,000", "mm", None), ("1,000", "nm", None),
        ("1,000", "µm", 1.0), ("250,5", "nm", 0.2505), ("1.234,5", "nm", None), ("1,234.5", "nm", None), ("1 000", "nm", None),
        ("1,000,000", "pm", None), ("0.5", "pixel", None), ("0.5", "", None), ("0.5", None, None),
        ("0.5", "reference frame", None), (0.5, "parsec", None),
        ("nan", "µm", None), ("inf", "µm", None), ("-0.5", "µm", None), ("1e999", "µm", None), ("", "µm", None),
        ("0x1", "µm", None),
        (True, "µm", None), ([0.5], "µm", None), (None, "µm", None), (0.5, "Micrometres", 0.5), (500, "nanometers", 0.5),
        (5000, "Ångström", 0.5), (0.5, "µm/pixel", 0.5), (0.5, "um per px", 0.5), (0.5, "?m", 0.5), (0.5, "\ufffdm", 0.5),
        (0.5, "µm".encode().decode("latin-1"), 0.5), (0.5, "μm".encode().decode("latin-1"), 0.5), (0.5, "\\u00B5m", 0.5),
        (0.5, "мкм", 0.5),
    ],
)  # fmt: skip
def test_lengths(value: object, unit: str | None, length: float | None) -> None:
    read, problem = read_length(value, unit)
    if value == "1,000" and unit == "mm":
        length = 1000.0  # too large in both readings, which is said later
    assert read == (None if length is None else pytest.approx(length))
    assert bool(problem) == (length is None)


@pytest.mark.parametrize(
    ("mpp", "is_optical", "is_believed"),
    [
        ((0.25, 0.25), True, True), ((20, 20), True, True), ((20.01, 20.01), False, False), ((0.004, 0.004), False, True),
        ((1e-5, 1e-5), False, True), ((9e-6, 9e-6), False, False), ((0.004, 0.004), True, False),
        ((0.00025, 0.00025), True, False),
        ((0.5, 0.25), False, True), ((0.25, 5), False, False), ((25400 / 2400,) * 2, False, False), ((10, 10), False, True),
        ((25400 / 4800,) * 2, False, False), ((5.3, 5.3), False, True), ((None, 0.5), False, False),
    ],
)  # fmt: skip
def test_what_is_credible(mpp: tuple[float | None, float | None], is_optical: bool, is_believed: bool) -> None:
    size, remarks = choose_size([SizeStatement("metadata", mpp, is_optical=is_optical)])
    assert (size is not None) == is_believed
    assert is_believed or len(remarks) == 1
    assert any("aren't square" in remark for remark in remarks) == (is_believed and mpp[0] != mpp[1])


def test_statements_that_differ_are_said() -> None:
    ome = SizeStatement("OME metadata", (0.5, 0.5))
    for tags, has_remark in ((0.51, False), (0.53, True), (0.25, True), (353.0, False)):
        size, remarks = choose_size([None, ome, SizeStatement("resolution tags", (tags, tags))])
        assert size is not None
        assert (size.mpp, size.origin, len(remarks)) == ((0.5, 0.5), "OME metadata", has_remark)
    size, remarks = choose_size(
        [SizeStatement("OME metadata", (353.0, 353.0)), SizeStatement("resolution tags", (0.5, 0.5))]
    )
    assert size is not None
    assert (size.origin, len(remarks)) == ("resolution tags", 1)
    assert choose_size([None, SizeStatement("OME metadata", (None, None))]) == (None, [])


# --- Resolution tags.

PRINT = [
    (dpi, 2) for dpi in (72, 71.98, 96, 100, 120, 150, 200, 240, 254, 299.99, 300, 360, 600, 720, 1200, 2400, 4800)
]
PRINT += [(dpi / 2.54, 3) for dpi in (72, 96, 150, 300, 600, 1200)] + [
    (dots, 3) for dots in (72, 96, 150, 300, 600, 1200)
]


@pytest.mark.parametrize(("resolution", "unit"), PRINT)
@pytest.mark.parametrize("vendor", ["", "Aperio Image Library v1|AppMag = 20", "ImageJ=1.53t\nunit={}\n"])
def test_print_resolutions_are_no_pixel_size(tmp_path: Path, resolution: float, unit: int, vendor: str) -> None:
    own_unit = {2: "inch", 3: "cm"}[unit]
    slide = write(
        tmp_path / "a.tif", resolution=(resolution,) * 2, resolutionunit=unit, description=vendor.format(own_unit)
    )
    assert slide.mpp is None
    assert slide.mpp_origin is None
    assert has_note(slide, "n't used")


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((20_000, 20_000), 3, 0.5), ((50_800, 50_800), 2, 0.5), ((1000, 1000), 3, 10.0), ((2540, 2540), 2, 10.0),
        ((2_500_000, 2_500_000), 3, 0.004), ((20_000, 20_000), 1, None), ((1, 1), 3, None), (((0, 1), (0, 1)), 3, None),
    ],
)  # fmt: skip
def test_resolution_tags_of_microscopes_are_believed(
    tmp_path: Path, resolution: Any, unit: int, mpp: float | None
) -> None:
    slide = write(tmp_path / "a.tif", resolution=resolution, resolutionunit=unit)
    assert slide.mpp == close(None if mpp is None else (mpp, mpp))
    assert slide.mpp_origin == (None if mpp is None else "resolution tags")


@pytest.mark.parametrize("unit", ["micron", "µm", "μm", "\\u00B5m", "Micrometer", "?m"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_units_of_imagej(tmp_path: Path, unit: str, encoding: str) -> None:
    description = f"ImageJ=1.53t\nunit={unit}\nimages=1\n".encode(encoding, "replace")
    slide = write(tmp_path / "a.tif", description=description, resolution=(2, 4), resolutionunit=1)
    assert (slide.mpp, slide.mpp_origin) == ((0.25, 0.5), "ImageJ metadata")
    assert has_note(slide, "aren't square")


# --- Vendors.


@pytest.mark.parametrize(
    ("text", "mpp"),
    [
        ("0.2500", 0.25), ("2,016", 2.016), ("0,2500", 0.25), ("2.016,5", None), ("unknown", None), ("0.00025", None),
        ("250", None), ("", None), ("0", None),
    ],
)  # fmt: skip
def test_mpp_of_aperio(tmp_path: Path, text: str, mpp: float | None) -> None:
    description = f"Aperio Image Library v10\r\n70x60 (16x16) JPEG/RGB|AppMag = 20|MPP = {text}|Left = 25,6"
    slide = write(tmp_path / "a.svs", pixels(60, 70, 3, dtype="uint8"), tile=(16, 16), description=description)
    assert slide.format == "Aperio SVS"
    assert slide.mpp == close(None if mpp is None else (mpp, mpp))
    assert slide.mpp_origin == (None if mpp is None else "Aperio metadata")
    assert has_note(slide, "20 ×") == (mpp is None)
    assert has_note(slide, "Aperio metadata") == (mpp is None and text != "0")


def philips_xml(spacings: tuple[str, ...]) -> str:
    def spacing(value: str) -> str:
        text = "" if not value else f"&quot;{value}&quot; &quot;{value}&quot;"
        return f'<Attribute Name="DICOM_PIXEL_SPACING" PMSVR="IDoubleArray">{text}</Attribute>'

    def number(level: int) -> str:
        return f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER">{level}</Attribute>'

    def scan(kind: str, content: str) -> str:
        kind = f'<Attribute Name="PIM_DP_IMAGE_TYPE">{kind}</Attribute>'
        return f'<DataObject ObjectType="DPScannedImage">{kind}{content}</DataObject>'

    levels = "".join(
        f'<DataObject ObjectType="PixelDataRepresentation">{spacing(value)}{number(level)}</DataObject>'
        for level, value in enumerate(spacings)
    )
    images = scan("MACROIMAGE", spacing("0.02")) + scan(
        "WSI", f"<Attribute><Array>{levels}</Array></Attribute>" + spacing("0.0005")
    )
    images = f"<Attribute><Array>{images}</Array></Attribute>"
    return f'<?xml version="1.0" encoding="UTF-8"?><DataObject ObjectType="DPUfsImport">{images}</DataObject>'


@pytest.mark.parametrize(
    ("spacings", "mpp"),
    [
        (("0.00025", "0.0005"), 0.25),
        (("", "0.001"), 0.5),
        ((), 0.5),
        (("250", "500"), None),
    ],
)
def test_pixel_spacing_of_philips(tmp_path: Path, spacings: tuple[str, ...], mpp: float | None) -> None:
    image = pixels(64, 64, 3, dtype="uint8")
    with tifffile.TiffWriter(tmp_path / "a.tiff") as writer:
        for level in range(2):
            text = "" if level else philips_xml(spacings)
            writer.write(
                image[:: 2**level, :: 2**level], photometric="rgb", tile=(16, 16), metadata=None, software="Philips DP v1.0",
                description=text, subfiletype=level, resolution=(300, 300), resolutionunit=2,
            )  # fmt: skip
    slide = inspect_slide(tmp_path / "a.tiff")
    assert slide.mpp == close(None if mpp is None else (mpp, mpp))
    assert slide.mpp_origin == (None if mpp is None else "Philips metadata")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_scan_resolution_of_ventana(tmp_path: Path, encoding: str) -> None:
    scan = '<EncodeInfo><iScan Magnification="20" ScanRes="0.465" UnitNumber="Größe"/></EncodeInfo>'
    xmp = f'<?xml version="1.0" encoding="{encoding}"?>{scan}'
    slide = write(
        tmp_path / "a.bif", pixels(64, 64, 3, dtype="uint8"), tile=(16, 16), software="ScanOutputManager 1.1",
        description="level=0 mag=20 quality=90", extratags=[(700, 1, None, xmp.encode(encoding), True)],
    )  # fmt: skip
    assert (slide.format, slide.mpp, slide.mpp_origin) == ("Ventana BIF", (0.465, 0.465), "Ventana metadata")


def test_view_of_leica(tmp_path: Path) -> None:
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="c">'
        + "".join(
            f'<image name="i{ifd}"><pixels sizeX="64" sizeY="64"><dimension sizeX="64" sizeY="64" r="0" ifd="{ifd}"/></pixels>'
            f'<view sizeX="{64 * nm}" sizeY="{64 * nm}" offsetX="0" offsetY="0"/></image>'
            for ifd, nm in enumerate((16_000, 500))
        )
    )
    with tifffile.TiffWriter(tmp_path / "a.scn") as writer:
        for page in range(2):
            description = None if page else xml + "</collection></scn>"
            writer.write(
                pixels(64, 64, 3, dtype="uint8"),
                photometric="rgb",
                tile=(16, 16),
                metadata=None,
                description=description,
            )
    for series, mpp in enumerate((16.0, 0.5)):
        slide = inspect_slide(tmp_path / "a.scn", SlideSettings(series=series))
        assert (slide.format, slide.mpp, slide.mpp_origin) == ("Leica SCN", close((mpp, mpp)), "Leica metadata")


def test_resolution_tags_of_qptiff(tmp_path: Path) -> None:
    xml = '<?xml version="1.0" encoding="utf-16"?><PerkinElmer-QPI-ImageDescription/>'  # though it is ASCII
    slide = write(
        tmp_path / "a.qptiff",
        software="PerkinElmer-QPI",
        description=xml,
        resolution=(20_000, 20_000),
        resolutionunit=3,
    )
    assert (slide.format, slide.mpp, slide.mpp_origin) == ("PerkinElmer QPTIFF", (0.5, 0.5), "resolution tags")


def test_resolution_tags_of_trestle_are_micrometres(tmp_path: Path) -> None:
    slide = write(
        tmp_path / "a.tif", software="MedScan 5", description="Objective Power=20", resolution=(0.5, 0.5), tile=(16, 16)
    )
    assert (slide.mpp, slide.mpp_origin) == ((0.5, 0.5), "Trestle resolution tags")


# --- OME-XML.


def ome_xml(
    size: str = "0.5",
    unit: str = "µm",
    encoding: str = "UTF-8",
    width: int = 70,
    channels: int = 1,
    more: str = "<TiffData/>",
) -> str:
    return (
        f'<?xml version="1.0" encoding="{encoding}"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" '
        f'SizeX="{width}" SizeY="60" SizeC="{channels}" SizeZ="1" SizeT="1" '
        f'PhysicalSizeX="{size}" PhysicalSizeXUnit="{unit}" PhysicalSizeY="{size}" PhysicalSizeYUnit="{unit}">'
        + "".join(f'<Channel ID="Channel:0:{c}" Name="Färbung {c}" SamplesPerPixel="1"/>' for c in range(channels))
        + more
        + "</Pixels></Image></OME>"
    )  # fmt: skip


@pytest.mark.parametrize("declared", ["UTF-8", "UTF-16", "ISO-8859-1", "windows-1252"])
@pytest.mark.parametrize("written", ["utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("kind", ["tiff", "zarr"])
def test_ome_xml_in_any_encoding(tmp_path: Path, declared: str, written: str, kind: str) -> None:
    xml = ome_xml(encoding=declared, channels=2).encode(written)
    if kind == "tiff":
        slide = write(tmp_path / "a.ome.tif", pixels(2, 60, 70), description=xml)
    else:
        group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
        group.create_array("0", shape=(1, 2, 1, 60, 70), chunks=(1, 1, 1, 60, 70), dtype="uint16")
        group.attrs["multiscales"] = [{"version": "0.2", "datasets": [{"path": "0"}]}]
        (tmp_path / "a.zarr/OME").mkdir()
        (tmp_path / "a.zarr/OME/METADATA.ome.xml").write_bytes(xml)
        slide = inspect_slide(tmp_path / "a.zarr")
    assert (slide.mpp, slide.mpp_origin) == ((0.5, 0.5), "OME metadata")
    assert slide.channel_names == ("Färbung 0", "Färbung 1")


@pytest.mark.parametrize(
    ("size", "unit", "mpp", "words"),
    [
        ("0,5", "µm", 0.5, ""), ("500", "nm", 0.5, ""), ("0.5", "?m", 0.5, ""), ("0.5", "pixel", None, "in pixel"),
        ("4", "nm", 0.004, ""), ("84.667", "µm", None, "300 dpi"), ("1,000", "nm", None, "thousands"),
        ("0", "µm", None, ""),         ("10.58333", "µm", None, "2400 dpi"),
    ],
)  # fmt: skip
def test_sizes_in_ome_xml(tmp_path: Path, size: str, unit: str, mpp: float | None, words: str) -> None:
    slide = write(tmp_path / "a.ome.tif", description=ome_xml(size, unit).encode())
    assert slide.mpp == close(None if mpp is None else (mpp, mpp))
    assert not words or has_note(slide, "OME metadata", words)


def test_ome_xml_and_resolution_tags_that_differ(tmp_path: Path) -> None:
    for resolution, is_said in ((40_000, True), (20_000, False), (28.346, False)):
        slide = write(
            tmp_path / "a.ome.tif", description=ome_xml().encode(), resolution=(resolution,) * 2, resolutionunit=3
        )
        assert slide.mpp == (0.5, 0.5)
        assert has_note(slide, "resolution tags", "0.25", "OME metadata are used") == is_said


def test_ome_xml_of_another_size(tmp_path: Path) -> None:
    """One plane is what it is; several could be anything."""
    slide = write(
        tmp_path / "one.ome.tif", description=ome_xml(width=80).encode(), resolution=(20_000, 20_000), resolutionunit=3
    )
    assert has_note(slide, "80 × 60 px", "70 × 60 px", "aren't used")
    assert slide.mpp_origin == "resolution tags"
    with pytest.raises(SlideError, match=r"three.ome.tif: .*80 × 60 px .*70 × 60 px, so what its planes are"):
        write(tmp_path / "three.ome.tif", pixels(3, 60, 70), description=ome_xml(width=80, channels=3).encode())


def test_ome_xml_of_other_samples(tmp_path: Path) -> None:
    """One page of three samples may be called one channel or three; three pages of one sample aren't one page of three."""
    rgb = pixels(60, 70, 3, dtype="uint8")
    for channels in (1, 3):
        slide = write(tmp_path / "one.ome.tif", rgb, description=ome_xml(channels=channels).encode())
        assert (slide.mpp, slide.is_rgb, slide.warnings) == ((0.5, 0.5), True, ())
    xml = ome_xml().replace('SizeC="1"', 'SizeC="3"').replace('SamplesPerPixel="1"', 'SamplesPerPixel="3"')
    with pytest.raises(SlideError, match=r"describe 1 planes of 3 samples per pixel and the file holds 3 of 1, so"):
        write(tmp_path / "three.ome.tif", pixels(3, 60, 70, dtype="uint8"), description=xml.encode())


def test_ome_xml_of_fewer_planes_or_cut_short(tmp_path: Path) -> None:
    slide = write(tmp_path / "a.ome.tif", pixels(3, 60, 70), description=ome_xml(channels=1).encode())
    assert has_note(slide, "1 of the 3 planes")
    slide = write(tmp_path / "a.ome.tif", description=ome_xml()[:-30].encode())
    assert has_note(slide, "can't be parsed")
    slide = write(tmp_path / "a.ome.tif", pixels(3, 60, 70), description=ome_xml(channels=3, more="").encode())
    assert (slide.size_c, slide.mpp, slide.warnings) == (3, (0.5, 0.5), ())


# --- The setting.


def test_setting_replaces_what_the_file_states(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", resolution=(20_000, 40_000), resolutionunit=3)
    for setting, is_said in ((0.25, True), (0.5, True)):
        slide = inspect_slide(tmp_path / "a.tif", SlideSettings(mpp=setting))
        assert (slide.mpp, slide.mpp_origin) == ((setting, setting), "setting slide.mpp")
        assert has_note(slide, "replaced", "0.5 × 0.25 µm in the resolution tags") == is_said


def test_records_without_origin_still_load(tmp_path: Path) -> None:
    slide = write(tmp_path / "a.tif", np.zeros((9, 9), np.uint8))
    record = slide.model_dump(mode="json")
    record.pop("mpp_origin", None)
    assert Slide.model_validate(record).mpp_origin is None
