"""Names of patients and users in a slide's metadata, and its label and macro images, reach no output, log or page."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from rich.console import Console

from slidesam.attempts import run_stages
from slidesam.flows.cli.tables import slide_table
from slidesam.tasks.plan import plan_run
from slidesam.tasks.report.provenance import read_finished
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from tests.support.serial import EXECUTOR

NAME = "Quillfeather"
SETTINGS = {"segmenter.kind": "watershed", "blocks.block_shape": 128, "blocks.halo": 16, "blocks.tissue": "off"}
RNG = np.random.default_rng(3)
SLIDE = RNG.integers(100, 240, (256, 320, 3)).astype(np.uint8)
# Colours that are in no other image.
LABEL, MACRO = (np.full((80, 90, 3), colour, np.uint8) for colour in ((3, 200, 7), (5, 9, 201)))
RGB = {"photometric": "rgb", "metadata": None}
# Artist, HostComputer, DocumentName, PageName, Make, Model, Copyright, XMP, IPTC, and private ones.
TAGS = [(code, 2, 0, f"{NAME} {code}", True) for code in (315, 316, 269, 285, 271, 272, 33432, 65001)]
TAGS += [(code, 7, len(NAME), NAME.encode(), True) for code in (700, 33723, 34377)]


def write_aperio(path: Path) -> None:
    fields = {
        "AppMag": 20, "MPP": 0.5, "Filename": NAME, "User": NAME, "Patient": NAME, "PatientID": NAME, "Barcode": NAME,
        "ImageID": NAME, "Title": NAME, "Date": "01/02/26", "ScanScope ID": NAME, "Slide": NAME, "DOB": NAME, "Accession": NAME,
    }  # fmt: skip
    size = "320x256 [0,0 320x256] (128x128) JPEG/RGB Q=70"
    text = f"Aperio Image Library v12\r\n{size}|" + "|".join(f"{key} = {value}" for key, value in fields.items())
    with tifffile.TiffWriter(path) as writer:
        writer.write(SLIDE, tile=(128, 128), description=text, extratags=TAGS, software=NAME, **RGB)
        writer.write(SLIDE[::2, ::2], description=f"Aperio Image Library v12\r\n{NAME}", **RGB)
        writer.write(LABEL, description=f"Aperio Image Library v12\r\nlabel {NAME}", subfiletype=1, **RGB)
        writer.write(MACRO, description=f"Aperio Image Library v12\r\nmacro {NAME}", subfiletype=9, **RGB)


def write_ome(path: Path) -> None:
    size = 'DimensionOrder="XYCZT" Type="uint8" SizeC="3" SizeZ="1" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5"'
    images = "".join(
        f'<Image ID="Image:{number}" Name="{NAME} {number}"><AcquisitionDate>2026-01-01</AcquisitionDate>'
        f"<Description>{NAME}</Description>"
        f'<ExperimenterRef ID="Experimenter:0"/><Pixels ID="Pixels:{number}" {size} SizeX="{width}" SizeY="{height}">'
        f'<Channel ID="Channel:{number}" SamplesPerPixel="3"/><TiffData IFD="{number}" PlaneCount="1"/></Pixels></Image>'
        for number, (height, width) in enumerate((SLIDE.shape[:2], SLIDE.shape[:2], LABEL.shape[:2]))
    )
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        f'Creator="{NAME}"><Experimenter ID="Experimenter:0" FirstName="{NAME}" LastName="{NAME}" Email="{NAME}@x"/>'
        f'{images}<StructuredAnnotations><XMLAnnotation ID="Annotation:0"><Value><PatientName>{NAME}</PatientName></Value>'
        "</XMLAnnotation></StructuredAnnotations></OME>"
    )
    with tifffile.TiffWriter(path) as writer:
        writer.write(SLIDE, tile=(128, 128), description=text, **RGB)
        writer.write(SLIDE, tile=(128, 128), description=NAME, **RGB)
        writer.write(LABEL, description=NAME, **RGB)


def write_philips(path: Path) -> None:
    def attribute(name: str, value: str) -> str:
        return f'<Attribute Name="{name}" Group="0x0010" Element="0x0010" PMSVR="IString">{value}</Attribute>'

    names = ("PIIM_DP_SCANNER_OPERATOR_ID", "DICOM_PATIENT_NAME", "PIM_DP_UFS_BARCODE", "DICOM_DEVICE_SERIAL_NUMBER")
    label = io.BytesIO()
    Image.fromarray(LABEL).save(label, "PNG")
    image = attribute("PIM_DP_IMAGE_TYPE", "LABELIMAGE") + attribute(
        "PIM_DP_IMAGE_DATA", base64.b64encode(label.getvalue()).decode()
    )
    text = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        + attribute("DICOM_MANUFACTURER", "PHILIPS")
        + "".join(attribute(name, NAME) for name in names)
        + attribute("DICOM_PIXEL_SPACING", "&quot;0.0005&quot; &quot;0.0005&quot;")
        + f'<Attribute Name="PIM_DP_SCANNED_IMAGES"><Array><DataObject ObjectType="DPScannedImage">{image}</DataObject>'
        "</Array></Attribute></DataObject>"
    )
    tifffile.imwrite(
        path, SLIDE, tile=(128, 128), description=text, software="Philips DP v1.0", extratags=TAGS[:7], **RGB
    )


def write_ventana(path: Path) -> None:
    xmp = (
        f'<EncodeInfo Ver="2"><SlideInfo><iScan Barcode1D="{NAME}" UserName="{NAME}" ScanRes="0.5" Magnification="20"/>'
    )
    xmp += f'</SlideInfo></EncodeInfo><Metadata><iScan LabelBarcode="{NAME}"/></Metadata>'
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            LABEL, description=f"Label Image {NAME}", extratags=[(700, 1, len(xmp), xmp.encode(), True)], **RGB
        )
        writer.write(SLIDE, tile=(128, 128), description=f"level=0 mag=20 quality=90 {NAME}", **RGB)


def write_generic(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        for image in (SLIDE, SLIDE[:200], LABEL):
            writer.write(image, tile=(128, 128), description=f"{NAME}, born 1950", extratags=TAGS, software=NAME, **RGB)


def write_stack(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        for number in range(3):
            writer.write(SLIDE[..., 0], tile=(128, 128), description=f"{NAME} {number}\nmore", metadata=None)


def write_zarr(path: Path) -> None:
    group = zarr.create_group(path, zarr_format=2)
    axes = [{"name": name, "type": "channel" if name == "c" else "space"} for name in "cyx"]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 0.5, 0.5]}]}]
    multiscales = [{"version": "0.4", "name": NAME, "axes": axes, "datasets": datasets, "metadata": {"patient": NAME}}]
    channels = [{"label": label, "color": "FFFFFF"} for label in ("red", "green", "blue")]
    group.attrs.update(multiscales=multiscales, omero={"name": NAME, "channels": channels, "id": 1}, patient=NAME)
    data = np.ascontiguousarray(SLIDE.transpose(2, 0, 1))
    group.create_array("0", data=data, chunks=(3, 128, 128)).attrs["patient"] = NAME
    (path / "OME").mkdir()
    xml = f'<OME xmlns="x"><Experimenter LastName="{NAME}"/><Image Name="{NAME}"><Pixels SizeX="320" SizeY="256"/></Image></OME>'
    (path / "OME" / "METADATA.ome.xml").write_text(xml)


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "Aperio": ("a.svs", write_aperio), "OME-TIFF": ("a.ome.tif", write_ome), "Philips": ("a.tiff", write_philips),
    "Ventana": ("a.bif", write_ventana), "generic": ("a.tif", write_generic), "stack": ("s.tif", write_stack),
    "OME-Zarr": ("a.zarr", write_zarr),
}  # fmt: skip


def say_everything(run: Run) -> str:
    """What pages, tables and messages are made from."""
    console = Console(width=400, file=io.StringIO())
    console.print(slide_table(run.slide, run.settings, None))
    record = read_finished(run)
    assert record is not None
    return (
        console.file.getvalue() + run.model_dump_json() + record.model_dump_json() + json.dumps(run.causes, default=str)
    )


@pytest.mark.parametrize("kind", WRITERS)
def test_no_name_leaves_the_slide(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name, write = WRITERS[kind]
    path, output = tmp_path / name, tmp_path / "out"
    write(path)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    assert any(NAME.encode() in file.read_bytes() for file in files)
    with caplog.at_level(logging.DEBUG):
        run = plan_run(path, output, make_settings(overrides=SETTINGS))
        run_stages(run, EXECUTOR, check=lambda: None)
    assert run.slide.shape == SLIDE.shape[:2]
    assert NAME.lower() not in say_everything(run).lower()
    assert NAME.lower() not in caplog.text.lower()
    for file in output.rglob("*"):
        assert NAME.lower() not in file.name.lower()
        assert not file.is_file() or NAME.lower().encode() not in file.read_bytes().lower(), file


@pytest.mark.parametrize("kind", ["Aperio", "Ventana", "OME-TIFF", "generic"])
def test_no_pixel_of_label_or_macro_leaves_the_slide(kind: str, tmp_path: Path) -> None:
    name, write = WRITERS[kind]
    write(tmp_path / name)
    run = plan_run(tmp_path / name, tmp_path / "out", make_settings(overrides=SETTINGS))
    run_stages(run, EXECUTOR, check=lambda: None)
    pictures = [np.asarray(Image.open(run.paths.overlay).convert("RGB"))]
    pixels = zarr.open_array(run.store / "0", mode="r")[0, :, 0]
    pictures.append(np.moveaxis(np.asarray(pixels), 0, -1))
    for picture in pictures:
        for image in (LABEL, MACRO):
            assert not (picture[..., :3] == image[0, 0]).all(axis=-1).any()
