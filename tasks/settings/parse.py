"""Owns parsing: turns YAML, nested mappings and dotted names into settings, and pydantic's errors into one line for a person.

`flows.cluster` reads its profiles with the same functions.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ValidationError

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.settings.methods import SEGMENTER_KINDS, SEGMENTER_SECTIONS
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.settings.types import Section

SITE_SETTINGS = "SLIDESAM_SETTINGS"
"""Environment variable that names the file of settings that a site begins with."""


def make_settings(values: Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Validate settings from nested mappings.

    Args:
        values: Nested mapping as read from YAML; missing keys take their defaults.
        overrides: Dotted name → value, applied on top. Another `segmenter.kind` starts from that kind's defaults.

    Raises:
        SettingsError: A name is unknown or a value can't be used; the message names it.

    Example:
        >>> make_settings(overrides={"blocks.halo": 64}).blocks.halo
        64
        >>> make_settings(overrides={"blocks.hallo": 64})
        Traceback (most recent call last):
        slidesam.tasks.errors.SettingsError: unknown setting blocks.hallo: did you mean blocks.halo?
    """
    # A section without content is None in YAML.
    tree = {
        key: dict(value) if isinstance(value, Mapping) else value
        for key, value in (values or {}).items()
        if value is not None
    }
    values_to_put = dict(overrides or {})
    segmenter = tree.get("segmenter", {})
    kind = values_to_put.get("segmenter.kind")
    if kind is not None and isinstance(segmenter, dict) and segmenter.get("kind", "micro-sam") != kind:
        tree["segmenter"] = {"kind": kind}
    for name, value in values_to_put.items():
        put_value(tree, name, value, "setting")
    if isinstance(tree.get("segmenter"), dict):
        tree["segmenter"].setdefault("kind", "micro-sam")
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def read_yaml(path: Path, owner: str, example: str) -> dict[str, Any]:
    """Read a mapping from a YAML file; an empty file is an empty mapping.

    Args:
        path: The file.
        owner: What the file is, for messages.
        example: What a correct file holds, and where to see one, for messages.

    Raises:
        SettingsError: The file can't be read, or holds no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{owner} {path} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{owner} {path} holds no {example}")
    return values


def read_settings_file(path: Path) -> dict[str, Any]:
    """Read nested names and values of settings from a YAML file.

    Raises:
        SettingsError: The file can't be read, or holds no mapping.
    """
    return read_yaml(path, "settings file", "`section: {key: value}`: see `slidesam settings`")


def add_values(values: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Put nested values on top of others, section by section; a segmenter of another kind replaces the whole section.

    Args:
        values: As `read_settings_file` returns them.
        added: What goes on top.

    Example:
        >>> add_values({"blocks": {"halo": 64, "tissue": "off"}}, {"blocks": {"halo": 32}, "run": {"retries": 1}})
        {'blocks': {'halo': 32, 'tissue': 'off'}, 'run': {'retries': 1}}
    """
    result = dict(values)
    for name, section in added.items():
        base = result.get(name)
        if isinstance(base, Mapping) and isinstance(section, Mapping):
            is_other_kind = name == "segmenter" and section.get("kind", base.get("kind")) != base.get("kind")
            result[name] = dict(section) if is_other_kind else {**base, **section}
        else:
            result[name] = section
    return result


def read_site_settings() -> dict[str, Any]:
    """Read the settings that a site begins with, from the file that SLIDESAM_SETTINGS names; none where it isn't set.

    Raises:
        SettingsError: The file can't be read, or holds no mapping.
    """
    name = os.environ.get(SITE_SETTINGS)
    return read_settings_file(Path(name)) if name else {}


def parse_override(text: str, owner: str) -> tuple[str, Any]:
    """Split `a.b=c` into the dotted name and its YAML value.

    Args:
        text: An assignment as the command line takes it.
        owner: What the name belongs to, for messages.

    Raises:
        SettingsError: The value isn't valid YAML.

    Example:
        >>> parse_override("blocks.block_shape=[512, 256]", "setting")
        ('blocks.block_shape', [512, 256])
    """
    name, _, value = text.partition("=")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SettingsError(f"{owner} {name.strip()}: {value!r} is no YAML value") from error


def put_value(tree: dict[str, Any], name: str, value: object, owner: str) -> None:
    """Set the value with a dotted name in nested dicts; sections that are missing or null are added.

    Args:
        tree: Nested dicts, changed in place.
        name: Dotted name.
        value: The value.
        owner: What the name belongs to, for messages.

    Raises:
        SettingsError: Part of the name is a value, not a section.
    """
    *sections, key = name.split(".")
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise SettingsError(f"{owner} {name}: {section} holds a value, not further keys")
    tree[key] = value


# What pydantic adds to a location for each type of a union.
_UNION_PART = re.compile(r"\[|^(constrained-)?(int|float|str)$")


class FieldError(NamedTuple):
    """The first error that pydantic reports.

    Attributes:
        kind: Pydantic's name for the kind of error.
        location: Keys that lead to the field, without the names of types that pydantic adds for unions.
        value: The value that was given.
        message: Pydantic's message, or that of our own check; those of all types that the field may have.
    """

    kind: str
    location: list[str]
    value: Any
    message: str

    @classmethod
    def first_of(cls, error: ValidationError) -> FieldError:
        """Take the first of pydantic's errors, and what it says of the field's other types."""
        errors = error.errors(include_url=False)
        first, location = errors[0], _locate(errors[0]["loc"])
        found = dict.fromkeys(each["msg"] for each in errors if _locate(each["loc"]) == location)
        _, *others = found
        message = " or ".join([first["msg"], *(each.removeprefix("Input should be ") for each in others)])
        return cls(first["type"], location, first["input"], message.removeprefix("Value error, "))


def _locate(parts: Sequence[str | int]) -> list[str]:
    return [str(part) for part in parts if not _UNION_PART.search(str(part))]


def _explain(error: ValidationError) -> str:
    """Say in one line what is wrong with a setting."""
    first = FieldError.first_of(error)
    parts, value = first.location, first.value
    kind = parts.pop(1) if parts[0] == "segmenter" and len(parts) > 1 and parts[1] in SEGMENTER_KINDS else None
    name = ".".join(parts)
    match first.kind:
        case "extra_forbidden":
            return f"unknown setting {name}: {_suggest(name, kind)}"
        case "union_tag_invalid" | "union_tag_not_found":
            value = value.get("kind") if isinstance(value, Mapping) else value
            return f"setting segmenter.kind: must be one of {', '.join(SEGMENTER_KINDS)}, not {value!r}"
        case "missing":
            return f"setting {name} is needed: `slidesam settings --segmenter {kind}` explains it"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"setting {name}: must be a section (`{name}: {{...}}`), not {value!r}"
    description = _list_descriptions(kind).get(name, "").split(";")[0].rstrip(".")
    return f"setting {name}: {first.message}, not {value!r}" + (f" ({description})" if description else "")


def _suggest(name: str, kind: str | None) -> str:
    """Say which setting a wrong name may mean."""
    key = name.rpartition(".")[2]
    owners = [_get_kind(model) for model in SEGMENTER_SECTIONS if kind is not None and key in model.model_fields]
    if owners:
        return f"it belongs to segmenter.kind {' or '.join(owners)}, and the kind is {kind}"
    close = difflib.get_close_matches(name, _list_descriptions(), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "`slidesam settings` lists all"


def _get_kind(model: type[Section]) -> str:
    return str(get_args(model.model_fields["kind"].annotation)[0])


def _list_descriptions(kind: str | None = None) -> dict[str, str]:
    """Map the dotted name of every setting to its explanation.

    Args:
        kind: The segmenter whose explanation counts if several have a setting of this name.
    """
    kinds = sorted(SEGMENTER_SECTIONS, key=lambda model: _get_kind(model) == kind)
    sections: list[tuple[str, type[BaseModel]]] = [("segmenter", model) for model in kinds]
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            sections.append((name, field.annotation))
    return {
        f"{section}.{key}": field.description or ""
        for section, model in sections
        for key, field in model.model_fields.items()
    }
