"""List the choices that a trial compares: pixel sizes, and combinations of settings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from slidesam.tasks.settings.methods import Watershed
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.facts import Slide

TARGET = "slide.target_mpp"
# Pixel sizes at which models are trained: slides of 40, 20 and 10 times.
_USUAL_MPP = (0.25, 0.5, 1.0)
# Pixel sizes that differ by less are the same; at more than twice or half the slide's own, there is little to see.
_ALIKE, _FARTHEST = 1.2, 2.1

Changes = dict[str, Any]
"""Dotted names of settings, and their values."""


def choose_scales(slide: Slide, settings: Settings) -> list[float | None]:
    """Choose the pixel sizes to try: the one of the settings, and usual ones of which the slide has enough pixels.

    Args:
        slide: The slide.
        settings: What is to be tried.

    Returns:
        Values of `slide.target_mpp`, that of the settings first; only it if the slide's pixel size isn't known, or for the
        watershed, whose sizes are in µm.
    """
    chosen = settings.slide.target_mpp
    if slide.mpp is None or isinstance(settings.segmenter, Watershed):
        return [chosen]
    own = chosen or sum(slide.mpp) / 2
    others = [usual for usual in _USUAL_MPP if _ALIKE < max(usual / own, own / usual) < _FARTHEST]
    return [chosen, *others]


def combine(grids: Sequence[Mapping[str, Sequence[Any]]], given: Mapping[str, Any] | None = None) -> list[Changes]:
    """List all combinations of the values of each grid; no combination twice.

    Args:
        grids: Values by dotted names.
        given: Values that stand already, as nested mappings: they are left out.

    Example:
        >>> combine([{"a": [1, 2], "b": [3]}, {"a": [1], "b": [3]}], {"a": 1})
        [{'b': 3}, {'a': 2, 'b': 3}]
    """
    combinations = [
        {name: value for name, value in zip(grid, values, strict=True) if not _stands(given or {}, name, value)}
        for grid in grids
        for values in itertools.product(*grid.values())
    ]
    return [changes for number, changes in enumerate(combinations) if changes not in combinations[:number]]


def _stands(given: Mapping[str, Any], name: str, value: object) -> bool:
    """Tell whether a setting has this value already."""
    at: Any = given
    for key in name.split("."):
        if not isinstance(at, Mapping) or key not in at:
            return False
        at = at[key]
    return bool(at == value)


def change_settings(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return the settings with other values.

    Raises:
        SettingsError: A name is unknown or a value can't be used.
    """
    return make_settings(settings.model_dump(), changes)


def write_line(changes: Mapping[str, Any]) -> str:
    """Write changes as options of `slidesam segment`.

    Example:
        >>> write_line({"slide.target_mpp": 0.5, "segmenter.options.foreground_threshold": 0.3})
        '--set slide.target_mpp=0.5 --set segmenter.options.foreground_threshold=0.3'
    """
    return " ".join(f"--set {name}={_write_value(value)}" for name, value in changes.items())


def _write_value(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value).replace(" ", "")
    return text if all(character.isalnum() or character in "._-:/" for character in text) else f"'{text}'"
