"""Owns what counts as a pixel size: numbers and units as people write them, and which of a file's statements is believed.

1. `read_length` converts a number with a unit to µm.
2. `state_size` makes a `SizeStatement` of what one place of a file says.
3. `choose_size` believes the first credible statement, and says what is wrong with the others.

A pixel size is never guessed: what isn't credible counts as unknown, and a warning says why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from slidesam.tasks.errors import in_one_line

COARSEST_MPP = 20.0  # µm: nobody scans a slide at larger pixels; 1200 dpi, a printer's resolution, would be 21
FINEST_MPP = 1e-5  # µm: electron microscopes resolve atoms
FINEST_OPTICAL_MPP = 0.02  # µm: light microscopes resolve 0.2 µm
MAX_ANISOTROPY = 10.0  # between height and width of a pixel
_SQUARE_TOLERANCE = 0.01
_SAME_TOLERANCE = 0.05
# Resolutions of printers and picture editors that would give a credible pixel size, in dots per inch and per cm.
_PRINT_PER_INCH = (1440, 2400, 2880, 4800, 5760)
_PRINT_PER_CM = (600, 720, 1200, 1440, 2400)
_PRINT_TOLERANCE = 1e-3

_MICROMETRES = {
    "m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "µm": 1.0, "um": 1.0, "nm": 1e-3, "pm": 1e-6, "å": 1e-4,
    "in": 25400.0, "inch": 25400.0, "inches": 25400.0, "ft": 304800.0, "foot": 304800.0, "mil": 25.4, "thou": 25.4,
    "micron": 1.0, "microns": 1.0, "angstrom": 1e-4, "angstroms": 1e-4, "ångström": 1e-4,
    "meter": 1e6, "decimeter": 1e5, "centimeter": 1e4, "millimeter": 1e3, "micrometer": 1.0, "nanometer": 1e-3,
    "picometer": 1e-6, "mkm": 1.0, "мкм": 1.0, "mm.": 1e3, "мм": 1e3, "нм": 1e-3,
    # The micro sign as a program left it that wrote another encoding: µ is the only sign before m that isn't ASCII.
    "?m": 1.0, "\ufffdm": 1.0, "âµm": 1.0, "î¼m": 1.0,
}  # fmt: skip
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
# One comma and three digits: a decimal comma, or a separator of thousands.
_MAYBE_THOUSANDS = re.compile(r"[1-9]\d{0,2},\d{3}")


class PixelSize(NamedTuple):
    """A pixel size that is believed.

    Attributes:
        mpp: Height and width in µm.
        origin: The place in the file that states it.
    """

    mpp: tuple[float, float]
    origin: str


@dataclass(frozen=True)
class SizeStatement:
    """What one place of a file states about the pixel size.

    Attributes:
        origin: The place, in words that fit after "in the".
        mpp: Height and width in µm; none where it isn't stated as a length.
        problem: Why it can't be read, as a clause that follows the origin; empty if it can.
        is_optical: Whether the file comes from a light microscope.
    """

    origin: str
    mpp: tuple[float | None, float | None]
    problem: str = ""
    is_optical: bool = False


def read_length(value: object, unit: str | None) -> tuple[float | None, str]:
    """Convert a length to µm.

    A comma is a decimal comma, unless it could separate thousands and that length would be credible too.

    Args:
        value: A number, or its text.
        unit: Its unit, abbreviated or in full.

    Returns:
        The length, and why it is none: a clause, or nothing where a zero states that the length isn't known.

    Example:
        >>> read_length("250", "nm")[0], read_length(0.5, "micrometer")[0], read_length("2,016", "µm")[0]
        (0.25, 0.5, 2.016)
        >>> read_length(1, "pixel")
        (None, "state it in pixel, which isn't a length")
    """
    factor = _MICROMETRES.get(_normal_unit(unit or ""))
    if factor is None:
        return None, f"state it in {in_one_line(unit or '', 40) or 'no unit'}, which isn't a length"
    text = str(value).strip()
    if not isinstance(value, (str, int, float)) or isinstance(value, bool) or not _NUMBER.fullmatch(text):
        return None, f"state {in_one_line(text, 40)!r}, which isn't a number"
    number = float(text.replace(",", ".")) * factor
    if not math.isfinite(number) or number < 0:
        return None, f"state {in_one_line(text, 40)!r}, which isn't a length"
    if _MAYBE_THOUSANDS.fullmatch(text) and is_credible_mpp(1000 * number):
        return None, f"state {text!r} {unit}, where the comma may separate decimals or thousands"
    return (number, "") if number else (None, "")


def _normal_unit(unit: str) -> str:
    # Greek mu, the letter, and ImageJ's escape for the micro sign are one unit; "micrometre(s)" is "micrometer".
    unit = unit.strip().replace("\\u00b5", "µ").replace("\\u00B5", "µ").replace("μ", "µ").lower()
    unit = re.sub(r"\s*(/|per)\s*(px|pixel|pix)$", "", unit).replace("metre", "meter")
    return unit.removesuffix("s") if unit.endswith("meters") else unit


def is_credible_mpp(size: float, is_optical: bool = False) -> bool:
    """Tell whether a microscope's pixel can be that large, in µm."""
    return (FINEST_OPTICAL_MPP if is_optical else FINEST_MPP) <= size <= COARSEST_MPP


def state_size(
    origin: str, y: object, x: object, unit: str | tuple[str, str] | None, is_optical: bool = False
) -> SizeStatement | None:
    """Make a statement of height and width, two numbers or their texts; none if neither is given.

    Args:
        origin: The place in the file.
        y: Height of a pixel, or none.
        x: Width of a pixel, or none.
        unit: Their unit, or a unit each (y, x).
        is_optical: Whether the file comes from a light microscope.
    """
    if y is None and x is None:
        return None
    units = unit if isinstance(unit, tuple) else (unit, unit)
    lengths = [
        (None, "") if value is None else read_length(value, name) for value, name in zip((y, x), units, strict=True)
    ]
    problem = next((clause for _, clause in lengths if clause), "")
    return SizeStatement(origin, (lengths[0][0], lengths[1][0]), problem, is_optical)


def choose_size(statements: Sequence[SizeStatement | None]) -> tuple[PixelSize | None, list[str]]:
    """Believe the first credible statement.

    Args:
        statements: Of one image, the most specific first.

    Returns:
        The pixel size, none where unknown, and remarks: what is wrong with statements before it, and which ones after it
        differ from it by more than 5 %.

    Example:
        >>> choose_size([SizeStatement("OME metadata", (0.5, 0.5)), SizeStatement("resolution tags", (353.0, 353.0))])
        (PixelSize(mpp=(0.5, 0.5), origin='OME metadata'), [])
    """
    remarks: list[str] = []
    chosen: PixelSize | None = None
    for statement in statements:
        if statement is None:
            continue
        mpp, remark = _judge(statement)
        if chosen is None:
            remarks += [remark] if remark else []
            chosen = None if mpp is None else PixelSize(mpp, statement.origin)
        elif mpp is not None and any(abs(a / b - 1) > _SAME_TOLERANCE for a, b in zip(mpp, chosen.mpp, strict=True)):
            remarks.append(
                f"its {statement.origin} state pixels of {_in_words(mpp)} and its {chosen.origin} {_in_words(chosen.mpp)}; "
                f"the {chosen.origin} are used, and setting slide.mpp can correct it"
            )
    if chosen is not None and abs(chosen.mpp[0] / chosen.mpp[1] - 1) > _SQUARE_TOLERANCE:
        remarks.append(f"its pixels aren't square: {_in_words(chosen.mpp)} (width × height)")
    return chosen, remarks


def _judge(statement: SizeStatement) -> tuple[tuple[float, float] | None, str]:
    """Return a statement's pixel size if it is credible, otherwise why it isn't; an empty text if it states nothing."""
    y, x = statement.mpp
    if statement.problem:
        return None, f"its {statement.origin} {statement.problem}, so its pixel size isn't used"
    if y is None or x is None:
        return None, "" if y is x else f"its {statement.origin} state the pixel size along one axis only; it isn't used"
    reason = ""
    if not all(is_credible_mpp(size, statement.is_optical) for size in (y, x)):
        reason = "isn't credible"
        if max(y, x) > COARSEST_MPP:
            reason += f" (no slide is scanned at more than {COARSEST_MPP:g} µm{_dots_per_inch(x)})"
    elif is_print_resolution(25400 / x, _PRINT_PER_INCH):
        reason = f"is a print resolution ({25400 / x:.0f} dpi)"
    elif max(y, x) > MAX_ANISOTROPY * min(y, x):
        reason = "isn't credible (height and width differ too much)"
    if reason:
        return None, f"pixel size of {_in_words((y, x))} in the {statement.origin} {reason} and isn't used"
    return (y, x), ""


def is_print_resolution(dots: float, resolutions: Sequence[int] = _PRINT_PER_CM) -> bool:
    """Tell whether a number of dots per inch or cm is one of printers and picture editors, by default those per cm."""
    return any(abs(dots / number - 1) < _PRINT_TOLERANCE for number in resolutions)


def _dots_per_inch(size: float) -> str:
    dots = 25400 / size
    return f"; {dots:.0f} dpi is a resolution for print" if 50 < dots < 1300 else ""


def _in_words(mpp: tuple[float, float]) -> str:
    return f"{mpp[1]:.4g} × {mpp[0]:.4g} µm"
