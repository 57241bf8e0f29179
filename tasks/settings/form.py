"""Owns the form of the settings: names, units and order of its fields, and the choice between segmenters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

# Names that a form shows; a field's description explains the setting.
_SHOWN_NAMES = {
    "t": "Time point",
    "z": "Focal plane",
    "mpp": "Pixel size",
    "target_mpp": "Pixel size to segment at",
    "ome_zarr": "OME-Zarr version",
    "min_iou": "Minimal IoU",
    "keep_work": "Keep intermediate results",
}
_SHOWN_UNITS = {
    **dict.fromkeys(("block_shape", "halo", "chunk_shape", "tile_shape", "tile_halo"), "px"),
    **dict.fromkeys(("mpp", "target_mpp", "diameter"), "µm"),
    "retry_delay": "s",
}


# A form begins with these sections, because they are changed most often.
_SHOWN_FIRST = {name: position for position, name in enumerate(("segmenter", "blocks", "output", "slide", "image"))}


def make_title(name: str, _: object) -> str:
    """Make the name that a form shows for a setting.

    Example:
        >>> make_title("block_shape", None), make_title("mpp", None)
        ('Block shape (px)', 'Pixel size (µm)')
    """
    text = _SHOWN_NAMES.get(name) or name.replace("_", " ").capitalize()
    unit = _SHOWN_UNITS.get(name)
    return f"{text} ({unit})" if unit else text


def number_fields(schema: dict[str, Any]) -> None:
    """Number the fields, because Prefect's server forgets their order on PostgreSQL; leave out defaults that have no value."""
    names = list(schema.get("properties", {}))
    for position, name in enumerate(sorted(names, key=lambda name: _SHOWN_FIRST.get(name, len(_SHOWN_FIRST)))):
        field = schema["properties"][name]
        field["position"] = position
        if field.get("default", ...) is None and "type" in field:
            # Of a type that nothing isn't (`types.as_plain_field`).
            del field["default"]


def choose_section(models: Mapping[str, type[BaseModel]], value: object) -> object:
    """Take the section of the chosen kind from a form that sends a kind and a section for each kind.

    Args:
        models: Model of each kind; the first kind is the default.
        value: Value that the form sends; any other value is returned unchanged.

    Example:
        >>> class Round(BaseModel):
        ...     diameter: float
        >>> class Square(BaseModel):
        ...     side: float
        >>> form = {"kind": "square", "square": {"side": 9}, "round": {"diameter": 5}}
        >>> choose_section({"round": Round, "square": Square}, form)
        {'kind': 'square', 'side': 9}
    """
    if not isinstance(value, Mapping) or not any(kind in value for kind in models):
        return value
    kind = value.get("kind", next(iter(models)))
    sections = {name: value[name] for name in models if value.get(name) is not None}
    if not all(isinstance(section, Mapping) for section in sections.values()):
        return value
    # A run that is copied in the UI may also have values beside the sections: those of another kind are ignored.
    section_fields = models[kind].model_fields if kind in models else {}
    other_fields = {name for model in models.values() for name in model.model_fields if name not in section_fields}
    common_values = {
        name: content for name, content in value.items() if name not in other_fields and name not in models
    }
    return {**common_values, "kind": kind, **sections.get(kind, {})}


def make_choice_schema(models: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """Make the schema of such a choice. Prefect's form can't switch between branches of a union: it sends values of both.

    Args:
        models: Model of each kind; the first kind is the default.
    """
    first = next(iter(models))
    explanation = "Segmentation method; only the section below with the same name is used."
    kind = {
        "type": "string",
        "enum": list(models),
        "default": first,
        "title": "Kind",
        "description": explanation,
        "position": 0,
    }
    sections = {}
    for position, (name, model) in enumerate(models.items(), start=1):
        section = model.model_json_schema()
        # A field that one kind requires isn't required in every form.
        section.pop("required", None)
        del section["properties"]["kind"]
        sections[name] = {**section, "title": f"If {name}", "position": position}
    return {"type": "object", "title": "Segmenter", "properties": {"kind": kind, **sections}}
