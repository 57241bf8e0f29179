"""Owns reading OME-XML, and converting lengths to µm.

OME-XML is in the description of an OME-TIFF and in `OME/METADATA.ome.xml` of bioformats2raw's output. Only stdlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

MAX_PLANES = 10**6  # readers make a list of them: an image with more is a hostile file

_MICROMETRES = {
    "m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "µm": 1.0, "um": 1.0, "nm": 1e-3, "pm": 1e-6, "å": 1e-4,
    "in": 25400.0, "inch": 25400.0, "ft": 304800.0, "foot": 304800.0, "mil": 25.4, "thou": 25.4,
    "micron": 1.0, "microns": 1.0, "angstrom": 1e-4, "ångström": 1e-4,
    "meter": 1e6, "decimeter": 1e5, "centimeter": 1e4, "millimeter": 1e3, "micrometer": 1.0, "nanometer": 1e-3,
    "picometer": 1e-6,
}  # fmt: skip


@dataclass(frozen=True)
class OmeImage:
    """One `Image` element.

    Attributes:
        size: Width and height in pixels; (0, 0) if not stated.
        mpp: Pixel size (y, x) in µm; none if it isn't stated as a length.
        channel_names: Names of its `Channel` elements; empty if they have none.
        colours: Their colours, six hexadecimal digits; none if not stated.
        samples: `SamplesPerPixel` of each of them.
        planes: Number of planes it declares.
    """

    size: tuple[int, int]
    mpp: tuple[float | None, float | None]
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
        text: The XML.
        file: Name of the file that holds it.

    Raises:
        ValueError: It isn't OME-XML.
    """
    try:
        root = ElementTree.fromstring(text.encode("utf-8", "replace"))  # noqa: S314 (expat bounds entity expansion)
    except ElementTree.ParseError as error:
        raise ValueError(f"OME-XML can't be parsed: {error}") from error
    images = tuple(_image(pixels) for pixels in root.iterfind("{*}Image/{*}Pixels"))
    span = max([image.planes for image in images] + [_span(element) for element in root.iter()], default=0)
    return OmeDocument(images, _other_files(root, file), span)


def _image(pixels: ElementTree.Element) -> OmeImage:
    channels = pixels.findall("{*}Channel")
    sizes = {axis: _integer(pixels.attrib, f"Size{axis}", 1) for axis in "TCZ"}
    return OmeImage(
        size=(_integer(pixels.attrib, "SizeX", 0), _integer(pixels.attrib, "SizeY", 0)),
        mpp=(_physical_size(pixels.attrib, "Y"), _physical_size(pixels.attrib, "X")),
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


def _physical_size(attributes: Mapping[str, str], axis: str) -> float | None:
    return micrometres(attributes.get(f"PhysicalSize{axis}"), attributes.get(f"PhysicalSize{axis}Unit", "µm"))


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


def micrometres(value: object, unit: str | None) -> float | None:
    """Convert a length to µm; none if it is no length or no positive number.

    Example:
        >>> micrometres("250", "nm"), micrometres(1, "pixel"), micrometres(0.5, "micrometer")
        (0.25, None, 0.5)
    """
    factor = _MICROMETRES.get(_normal_unit(unit or ""))
    if factor is None or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number * factor if math.isfinite(number) and number > 0 else None


def _normal_unit(unit: str) -> str:
    # Greek mu, the letter, and ImageJ's escape for the micro sign are one unit; "micrometre(s)" is "micrometer".
    unit = unit.strip().replace("\\u00b5", "µ").replace("\\u00B5", "µ").replace("μ", "µ").lower()
    unit = unit.replace("metre", "meter")
    return unit.removesuffix("s") if unit.endswith("meters") else unit
