"""Makes settings out of nested mappings and dotted names, and says what is wrong with them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.settings.methods import SEGMENTER_KINDS, SEGMENTER_SECTIONS
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.settings.types import Section


def make_settings(values: Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Validates settings from nested mappings.

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
    changed = dict(overrides or {})
    segmenter = tree.get("segmenter", {})
    kind = changed.get("segmenter.kind")
    if kind is not None and isinstance(segmenter, dict) and segmenter.get("kind", "micro-sam") != kind:
        tree["segmenter"] = {"kind": kind}
    for name, value in changed.items():
        _put(tree, name, value)
    if isinstance(tree.get("segmenter"), dict):
        tree["segmenter"].setdefault("kind", "micro-sam")
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(_in_words(error)) from None


def _put(tree: dict[str, Any], name: str, value: object) -> None:
    *sections, key = name.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise SettingsError(f"setting {name}: {section} holds a value, not further settings")
    tree[key] = value


def _in_words(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"]]
    kind = parts.pop(1) if parts[0] == "segmenter" and len(parts) > 1 and parts[1] in SEGMENTER_KINDS else None
    # Of a choice between types pydantic names the branch too.
    name = ".".join(part for part in parts if "[" not in part and part not in ("int", "float", "str"))
    given = first["input"]
    match first["type"]:
        case "extra_forbidden":
            return f"unknown setting {name}: {_suggestion(name, kind)}"
        case "union_tag_invalid" | "union_tag_not_found":
            given = given.get("kind") if isinstance(given, Mapping) else given
            return f"setting segmenter.kind: must be one of {', '.join(SEGMENTER_KINDS)}, not {given!r}"
        case "missing":
            return f"setting {name} is needed: `slidesam settings --segmenter {kind}` explains it"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"setting {name}: must be settings of its own (`{name}: {{...}}`), not {given!r}"
    description = _descriptions(kind).get(name, "").split(";")[0].rstrip(".")
    return f"setting {name}: {first['msg'].removeprefix('Value error, ')}, not {given!r}" + (
        f" ({description})" if description else ""
    )


def _suggestion(name: str, kind: str | None) -> str:
    """What may have been meant by a name that this tree doesn't have."""
    key = name.rpartition(".")[2]
    owners = [_kind_of(model) for model in SEGMENTER_SECTIONS if kind is not None and key in model.model_fields]
    if owners:
        return f"it belongs to segmenter.kind {' or '.join(owners)}, and the kind is {kind}"
    close = difflib.get_close_matches(name, _descriptions(), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "`slidesam settings` lists all"


def _kind_of(model: type[Section]) -> str:
    return str(get_args(model.model_fields["kind"].annotation)[0])


def _descriptions(kind: str | None = None) -> dict[str, str]:
    """Dotted name of every setting → its explanation, by this kind of segmenter where several have the name."""
    kinds = sorted(SEGMENTER_SECTIONS, key=lambda model: _kind_of(model) == kind)
    sections: list[tuple[str, type[BaseModel]]] = [("segmenter", model) for model in kinds]
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            sections.append((name, field.annotation))
    return {
        f"{section}.{key}": field.description or ""
        for section, model in sections
        for key, field in model.model_fields.items()
    }
