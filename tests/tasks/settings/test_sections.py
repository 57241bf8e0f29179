"""Sections of the settings: defaults, shorthands, and explanations."""

from __future__ import annotations

import pytest
import yaml

from slidesam.flows.cli.tables import settings_yaml
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.settings.sections import Settings

WATERSHED, CELLPOSE, STARDIST = ({"segmenter.kind": kind} for kind in ("watershed", "cellpose", "stardist"))


def test_defaults_are_micro_sam() -> None:
    assert make_settings() == Settings()
    assert Settings().segmenter.kind == "micro-sam"


@pytest.mark.parametrize(
    ("given", "kept"), [("DAPI", ("DAPI",)), (1, (1,)), ([0, "DAPI"], (0, "DAPI")), ("auto", "auto")]
)
def test_one_channel_needs_no_list(given: object, kept: object) -> None:
    assert make_settings(overrides={"slide.channels": given}).slide.channels == kept


def test_one_number_is_a_square_block() -> None:
    assert make_settings(overrides={"blocks.block_shape": 512}).blocks.block_shape == (512, 512)


def test_one_number_is_square_tiles() -> None:
    assert make_settings(overrides=STARDIST | {"segmenter.n_tiles": 2}).segmenter.n_tiles == (2, 2)


@pytest.mark.parametrize("kind", ["micro-sam", "watershed", "cellpose", "stardist"])
def test_every_setting_is_explained_where_settings_are_printed(kind: str) -> None:
    settings = make_settings(overrides={"segmenter.kind": kind})
    printed = settings_yaml(settings)
    assert make_settings(yaml.safe_load(printed)) == settings
    lines = printed.splitlines()
    for name, field in type(settings.segmenter).model_fields.items():
        line = next(number for number, line in enumerate(lines) if line.startswith(f"  {name}:"))
        assert lines[line - 1] == f"  # {field.description}"
