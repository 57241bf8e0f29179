"""How settings become a form: names and units of fields, their order, and a choice between kinds of settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

# How a form shows a setting's name; what it means is in its description.
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


# What a form begins with, as it is changed most often.
_SHOWN_FIRST = {name: position for position, name in enumerate(("segmenter", "blocks", "output", "slide", "image"))}


def title(name: str, _: object) -> str:
    """A setting's name as a form shows it.

    Example:
        >>> title("block_shape", None), title("mpp", None)
        ('Block shape (px)', 'Pixel size (µm)')
    """
    words = _SHOWN_NAMES.get(name) or name.replace("_", " ").capitalize()
    unit = _SHOWN_UNITS.get(name)
    return f"{words} ({unit})" if unit else words


def in_order(schema: dict[str, Any]) -> None:
    """Numbers the fields, for forms whose server forgets their order, as Prefect's does on PostgreSQL."""
    names = list(schema.get("properties", {}))
    for position, name in enumerate(sorted(names, key=lambda name: _SHOWN_FIRST.get(name, len(_SHOWN_FIRST)))):
        schema["properties"][name]["position"] = position


def chosen(models: Mapping[str, type[BaseModel]], value: object) -> object:
    """What a form says of such a choice: a kind, and a section for each kind, of which one counts.

    Args:
        models: By kind, the first of which is the default.
        value: What the form sends; anything else is returned as it is.

    Example:
        >>> class Round(BaseModel):
        ...     diameter: float
        >>> class Square(BaseModel):
        ...     side: float
        >>> form = {"kind": "square", "square": {"side": 9}, "round": {"diameter": 5}}
        >>> chosen({"round": Round, "square": Square}, form)
        {'kind': 'square', 'side': 9}
    """
    if not isinstance(value, Mapping) or not any(kind in value for kind in models):
        return value
    kind = value.get("kind", next(iter(models)))
    sections = {name: value[name] for name in models if value.get(name) is not None}
    if not all(isinstance(section, Mapping) for section in sections.values()):
        return value
    # A run that is copied in the UI may have the values beside the sections, too: those of another kind don't count.
    own = models[kind].model_fields if kind in models else {}
    others = {name for model in models.values() for name in model.model_fields if name not in own}
    beside = {name: each for name, each in value.items() if name not in others and name not in models}
    return {**beside, "kind": kind, **sections.get(kind, {})}


def choice(models: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """The schema of that. Prefect's form can't leave one branch of a union for another: it sends the values of both.

    Args:
        models: By kind, the first of which is the default.
    """
    first = next(iter(models))
    what = "Segmentation method; of the sections below only the one that is named like it counts."
    kind = {
        "type": "string",
        "enum": list(models),
        "default": first,
        "title": "Kind",
        "description": what,
        "position": 0,
    }
    sections = {}
    for position, (name, model) in enumerate(models.items(), start=1):
        section = model.model_json_schema()
        # What only one kind needs isn't needed of all forms.
        section.pop("required", None)
        del section["properties"]["kind"]
        sections[name] = {**section, "title": f"If {name}", "position": position}
    return {"type": "object", "title": "Segmenter", "properties": {"kind": kind, **sections}}
