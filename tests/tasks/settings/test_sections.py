"""Sections of the settings: defaults, shorthands, and explanations."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from slidesam.flows.cli.tables import settings_yaml
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.settings.types import PastedPath, clean_path

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


def test_what_comes_along_with_a_pasted_path_is_stripped_unless_a_file_has_it(tmp_path: Path) -> None:
    plain, odd = tmp_path / "a b.svs", tmp_path / "'odd' "
    for text in (f" {plain}\n", f'"{plain}"', f"'{plain}'\r\n", f"\t{plain}"):
        assert TypeAdapter(PastedPath).validate_python(text) == plain
    assert TypeAdapter(PastedPath).validate_python(str(odd)) == odd.with_name("'odd'")
    odd.touch()
    assert TypeAdapter(PastedPath).validate_python(str(odd)) == odd
    quoted = f"'{tmp_path.name}'"
    (tmp_path / quoted).touch()
    assert clean_path(str(tmp_path / quoted)) == str(tmp_path / quoted)
    assert clean_path("'") == "'"
    assert clean_path("a\0b ") == "a\0b"
