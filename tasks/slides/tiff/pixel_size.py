"""Owns where a TIFF file states the size of its pixels: OME-XML, the metadata of each vendor, resolution tags.

OME-XML comes first, then the vendor's own place, then the tags XResolution, YResolution and ResolutionUnit (TIFF 6.0, section 8),
in which picture editors and converters leave resolutions for print.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

import tifffile

from slidesam.tasks.slides.ome_xml import OmeImage
from slidesam.tasks.slides.pixel_size import (
    PixelSize,
    SizeStatement,
    choose_size,
    is_print_resolution,
    state_size,
)
from slidesam.tasks.slides.tiff.text import read_text
from slidesam.tasks.slides.xml_text import parse_xml

_IMAGE_DESCRIPTION, _SOFTWARE, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT, _XMP = 270, 305, 282, 283, 296, 700
_UNITS = {2: "in", 3: "cm"}
_POWER_IN_APERIO = re.compile(r"\|\s*AppMag\s*=\s*(\d+)")
_MPP_IN_APERIO = re.compile(r"\|\s*MPP\s*=\s*([^|\r\n]*)")
_MAIN_IMAGES = ("", "Baseline")
_OTHER_IMAGES = ("Label", "Macro", "Thumbnail", "Unknown")


def find_pixel_size(
    tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries, image: OmeImage | None
) -> tuple[PixelSize | None, list[str]]:
    """Find the pixel size of one image of a file, and remarks on what the file states.

    Args:
        tiff: The open file.
        series: The image.
        image: What OME-XML says about it.
    """
    statements = [None if image is None else image.pixel_size]
    if series.kind == "svs" or tiff.is_svs:
        if series.name not in _MAIN_IMAGES:
            return None, []  # label and macro have another scale, which isn't stated
        statements.append(_state_of_aperio(tiff, series))
    vendor = "philips" if tiff.is_philips else series.kind
    if vendor in _VENDORS:
        statements.append(_VENDORS[vendor](tiff, series))
    statements.append(_state_of_tags(tiff, series))
    size, remarks = choose_size(statements)
    power = _POWER_IN_APERIO.search(series.keyframe.description) if tiff.is_svs else None
    if size is None and power:
        remarks.append(f"it was scanned at {power[1]} ×, which doesn't give the pixel size exactly")
    return size, remarks


def _state_of_aperio(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> SizeStatement | None:
    match = _MPP_IN_APERIO.search(series.keyframe.description) or _MPP_IN_APERIO.search(tiff.pages.first.description)
    size = match[1].strip() if match else None
    return state_size("Aperio metadata", size, size, "µm", is_optical=True)


def _state_of_philips(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> SizeStatement | None:
    """Read DICOM_PIXEL_SPACING, in mm, height first: of the finest level's data object, otherwise of the scanned slide."""
    root = None if series.name in _OTHER_IMAGES else _parse(tiff.pages.first, _IMAGE_DESCRIPTION)
    scans = [] if root is None else _philips_objects(root, "DPScannedImage", "PIM_DP_IMAGE_TYPE", "WSI")
    for scan in scans:
        levels = _philips_objects(scan, "PixelDataRepresentation", "PIIM_PIXEL_DATA_REPRESENTATION_NUMBER", "0")
        for element in (*levels, scan):
            spacing = re.findall(r'"([^"]*)"', _philips_attribute(element, "DICOM_PIXEL_SPACING"))
            if len(spacing) == 2:
                return state_size("Philips metadata", spacing[0], spacing[1], "mm", is_optical=True)
    return None


def _philips_objects(element: ElementTree.Element, kind: str, name: str, value: str) -> list[ElementTree.Element]:
    """Find the data objects of a kind inside an element that have this value of an attribute."""
    objects = [each for each in element.iter("DataObject") if each.get("ObjectType") == kind]
    return [each for each in objects if _philips_attribute(each, name) == value]


def _philips_attribute(element: ElementTree.Element, name: str) -> str:
    """Return an attribute of a Philips data object, which is an element; empty if it has none of that name."""
    return next((child.text or "" for child in element.iterfind("Attribute") if child.get("Name") == name), "").strip()


def _state_of_ventana(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> SizeStatement | None:
    """Read ScanRes, µm per pixel, of the iScan element in the XMP of the first page that has one."""
    for page in [] if series.name in _OTHER_IMAGES else tiff.pages:
        root = _parse(page, _XMP) if isinstance(page, tifffile.TiffPage) and _XMP in page.tags else None
        scan = None if root is None else next((each for each in root.iter() if each.tag.endswith("iScan")), None)
        if scan is not None and scan.get("ScanRes"):
            size = scan.get("ScanRes")
            return state_size("Ventana metadata", size, size, "µm", is_optical=True)
    return None


def _state_of_leica(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> SizeStatement | None:
    """Divide the view's size in nm by its pixels, for the image that holds this page."""
    root = _parse(tiff.pages.first, _IMAGE_DESCRIPTION)
    number = str(series.keyframe.index)
    for image in [] if root is None else root.iterfind("{*}collection/{*}image"):
        pixels, view = image.find("{*}pixels"), image.find("{*}view")
        if pixels is None or view is None or number not in {each.get("ifd") for each in pixels}:
            continue
        try:
            sizes = [float(view.attrib[f"size{axis}"]) / float(pixels.attrib[f"size{axis}"]) for axis in "YX"]
        except (KeyError, ValueError, ZeroDivisionError):
            return None
        return state_size("Leica metadata", sizes[0], sizes[1], "nm", is_optical=True)
    return None


_VENDORS = {"philips": _state_of_philips, "bif": _state_of_ventana, "scn": _state_of_leica}


def _parse(page: tifffile.TiffPage, code: int) -> ElementTree.Element | None:
    """Parse the XML in a tag; none if there is none."""
    try:
        return parse_xml(read_text(page, code))
    except ValueError:
        return None


def _state_of_tags(tiff: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> SizeStatement | None:
    tags = series.keyframe.tags
    resolutions = [_number(tags.valueof(code)) for code in (_Y_RESOLUTION, _X_RESOLUTION)]
    if str(tags.valueof(_SOFTWARE, "")).startswith("MedScan"):
        # Trestle states µm per pixel where TIFF means pixels per unit.
        return state_size("Trestle resolution tags", resolutions[0], resolutions[1], "µm", is_optical=True)
    sizes = [1 / resolution if resolution else None for resolution in resolutions]
    stated = tags.valueof(_RESOLUTION_UNIT, 2)
    unit = _UNITS.get(stated) if isinstance(stated, int) else None
    origin = "resolution tags"
    if series.kind == "imagej":
        own_unit = str((tiff.imagej_metadata or {}).get("unit") or "")
        unit, origin = own_unit or unit, "ImageJ metadata" if own_unit else origin
    if unit is None:
        return None  # the tags give the shape of a pixel only
    if unit in ("cm", "Cm", "CM") and all(resolution and is_print_resolution(resolution) for resolution in resolutions):
        return SizeStatement(origin, (None, None), f"state {resolutions[1]:.0f} dots per cm, a resolution for print")
    return state_size(origin, sizes[0], sizes[1], unit)


def _number(value: object) -> float | None:
    """Read a resolution: a fraction, as TIFF demands, or a plain number."""
    if isinstance(value, tuple) and len(value) == 2 and all(value):
        return float(value[0]) / float(value[1])
    return float(value) if isinstance(value, (int, float)) and value else None
