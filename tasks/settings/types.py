"""Owns the types that settings are made of: pairs, percentiles, durations, and sections."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    WithJsonSchema,
    model_validator,
)

from slidesam.tasks.settings import form

Pair = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
_Percent = Annotated[float, Field(ge=0, le=100)]


def _check_rising(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError("the first must be the smaller one")
    return value


Percentiles = Annotated[tuple[_Percent, _Percent], AfterValidator(_check_rising)]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def seconds_of(duration: str) -> float:
    """Convert a duration to seconds.

    Example:
        >>> seconds_of("90s"), seconds_of("1.5h"), seconds_of("7d")
        (90.0, 5400.0, 604800.0)
    """
    return float(duration[:-1]) * _UNITS[duration[-1]]


def _add_unit(value: object) -> object:
    """Read plain numbers as seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return f"{value:.9f}".rstrip("0").rstrip(".") + "s"
    return f"{value}s" if isinstance(value, str) and value.replace(".", "", 1).isdigit() else value


Duration = Annotated[str, BeforeValidator(_add_unit), Field(pattern=r"^\d+(\.\d+)?[smhdw]$")]


def clean_path(text: str) -> str:
    r"""Strip what comes along when a path is pasted: blanks, line ends, and quotes around it; a file that has them keeps them.

    Example:
        >>> clean_path(" '/scans/no such slide.svs'\n")
        '/scans/no such slide.svs'
    """
    # As it was given: PurePath would take some of it away. Nor may a name that no file can have stop anything here.
    with suppress(OSError, ValueError):
        if os.path.lexists(text):
            return text
    stripped = text.strip()
    is_quoted = len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "\"'"
    return stripped[1:-1].strip() if is_quoted else stripped


def _clean(value: object) -> object:
    return clean_path(value) if isinstance(value, str) else value


PastedPath = Annotated[Path, BeforeValidator(_clean)]
"""A path that a person may have pasted into a form."""


def as_plain_field(kind: Any) -> WithJsonSchema:
    """Let a form show a value that may be left out as a field of its type, and not as a choice between the type and nothing."""
    return WithJsonSchema(TypeAdapter(kind).json_schema())


class Section(BaseModel):
    """Base of all parts of the settings: frozen, refuses unknown keys; the text below each field explains it."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        field_title_generator=form.make_title,
        json_schema_extra=form.number_fields,
    )

    @model_validator(mode="before")
    @classmethod
    def _take_no_truth_value_for_a_number(cls, values: object) -> object:
        # YAML reads off, no and n as false, which would pass as 0, and yes and on as 1. As words they are refused, with the
        # field's name.
        if not isinstance(values, dict):
            return values
        return {
            name: _as_word(value)
            if name in cls.model_fields and _takes_numbers(cls.model_fields[name].annotation)
            else value
            for name, value in values.items()
        }


def _as_word(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_as_word(item) for item in value]
    return str(value).lower() if isinstance(value, bool) else value


def _takes_numbers(kind: Any) -> bool:
    """Tell whether a type, or a part of it, is a number, and none a truth value."""
    parts = list(_list_parts(kind))
    return bool not in parts and (int in parts or float in parts)


def _list_parts(kind: Any) -> Iterator[Any]:
    yield kind
    for part in get_args(kind):
        yield from _list_parts(part)
