"""Owns reading OME-XML.

OME-XML is in the description of an OME-TIFF and in `OME/METADATA.ome.xml` of bioformats2raw's output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

from slidesam.tasks.slides.pixel_size import SizeStatement, state_size
from slidesam.tasks.slides.xml_text import parse_xml

MAX_PLANES = 10**6  # readers make a list of them: an image with more is a hostile file


@dataclass(frozen=True)
class OmeImage:
    """One `Image` element.

    Attributes:
        name: Its name; empty if it has none.
        size: Width and height in pixels; (0, 0) if not stated.
        pixel_size: What it states about the pixel size, if anything.
        channel_names: Names of its `Channel` elements; empty if they have none.
        colours: Their colours, six hexadecimal digits; none if not stated.
        samples: `SamplesPerPixel` of each of them.
        planes: Number of planes it declares.
    """

    name: str
    size: tuple[int, int]
    pixel_size: SizeStatement | None
    channel_names: tuple[str, ...]
    colours: tuple[str | None, ...]
    samples: tuple[int, ...]
    planes: int


@dataclass(frozen=True)
class OmeDocument:
    """A whole OME-XML document.

    Attributes:
        images: Its images in order.
        other_files: Names of other files that hold its planes or its metadata.
        span: Largest number of planes that any of its elements declares.
    """

    images: tuple[OmeImage, ...]
    other_files: tuple[str, ...]
    span: int


def read_ome_xml(text: str, file: str) -> OmeDocument:
    """Read OME-XML.

    Args:
        text: The XML, decoded.
        file: Name of the file that holds it.

    Raises:
        ValueError: It isn't XML.
    """
    root = parse_xml(text)
    images = tuple(
        _image(image.get("Name", ""), pixels)
        for image in root.iterfind("{*}Image")
        for pixels in image.iterfind("{*}Pixels")
    )
    span = max([image.planes for image in images] + [_span(element) for element in root.iter()], default=0)
    return OmeDocument(images, _other_files(root, file), span)


def _image(name: str, pixels: ElementTree.Element) -> OmeImage:
    channels = pixels.findall("{*}Channel")
    sizes = {axis: _integer(pixels.attrib, f"Size{axis}", 1) for axis in "TCZ"}
    return OmeImage(
        name=name,
        size=(_integer(pixels.attrib, "SizeX", 0), _integer(pixels.attrib, "SizeY", 0)),
        pixel_size=_pixel_size(pixels.attrib),
        channel_names=tuple(" ".join(channel.get("Name", "").split())[:80] for channel in channels),
        colours=tuple(_colour(channel.get("Color")) for channel in channels),
        samples=tuple(_integer(channel.attrib, "SamplesPerPixel", 1) for channel in channels),
        planes=math.prod(sizes.values()),
    )


def _colour(number: str | None) -> str | None:
    """Convert OME's colour, a signed 32 bit number of red, green, blue and alpha; white, the schema's default, means none."""
    try:
        rgba = int(number or -1) & 0xFFFFFFFF
    except ValueError:
        return None
    return None if rgba == 0xFFFFFFFF else f"{rgba >> 8:06X}"


def _pixel_size(attributes: Mapping[str, str]) -> SizeStatement | None:
    # The schema's default unit is µm; older schemas have no other.
    y, x = (attributes.get(f"PhysicalSize{axis}") for axis in "YX")
    units = tuple(attributes.get(f"PhysicalSize{axis}Unit", "µm") for axis in "YX")
    return state_size("OME metadata", y, x, (units[0], units[1]))


def _integer(attributes: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(attributes.get(name, default))
    except ValueError:
        return default


def _span(element: ElementTree.Element) -> int:
    """Count the planes that an element declares: readers allocate a list of this length."""
    name = element.tag.rpartition("}")[2]
    if name == "TiffData":
        counts = [_integer(element.attrib, attribute, 0) for attribute in ("PlaneCount", "NumPlanes", "IFD")]
        return max(counts + [_integer(element.attrib, f"First{axis}", 0) for axis in "TCZ"])
    if name.startswith("ModuloAlong"):
        try:
            start, end = float(element.get("Start", 0)), float(element.get("End", 0))
            return int(min(abs(end - start) / abs(float(element.get("Step", 1))), 1e18))
        except (ValueError, ZeroDivisionError):
            return MAX_PLANES + 1
    return 0


def _other_files(root: ElementTree.Element, file: str) -> tuple[str, ...]:
    binary_only = root.find("{*}BinaryOnly")
    if binary_only is not None:
        return (binary_only.get("MetadataFile", "a companion file"),)
    parts = [part for part in root.iterfind("{*}Image/{*}Pixels/{*}TiffData/{*}UUID") if part.text]
    own_uuid = root.get("UUID")
    if own_uuid is None:
        # All planes have one UUID and the file has none: a renamed single file.
        own_uuid = parts[0].text if len({part.text for part in parts}) == 1 else None
    other_names = {
        part.get("FileName", "another file")
        for part in parts
        if part.text != own_uuid and part.get("FileName", "").lower() != file.lower()
    }
    return tuple(sorted(other_names))
