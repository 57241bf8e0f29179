"""Settings: what is refused, and in which words."""

from __future__ import annotations

import pytest
import yaml

from slidesam.flows.cli.tables import settings_yaml
from slidesam.tasks.errors import SettingsError
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.settings.sections import Settings

WATERSHED, CELLPOSE, STARDIST = ({"segmenter.kind": kind} for kind in ("watershed", "cellpose", "stardist"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"blocks.hallo": 3}, "unknown setting blocks.hallo: did you mean blocks.halo?"),
        ({"nothing": 3}, "unknown setting nothing: `slidesam settings` lists all"),
        ({"blocks.halo": "wide"}, "setting blocks.halo: .*integer.*not 'wide' .*Context that a block reads"),
        ({"blocks.block_shape": 100}, "setting blocks.block_shape: must be multiples of 16 px.*not 100"),
        ({"blocks": 3}, r"setting blocks: must be settings of its own"),
        ({"blocks.halo.x": 3}, "setting blocks.halo"),
        ({"segmenter.kind": "ilastik"}, "segmenter.kind: must be one of micro-sam, .*stardist, function, not 'ilastik'"),
        ({"segmenter.kind": "function"}, "setting segmenter.target is needed: `slidesam settings --segmenter function`"),
        ({"segmenter.diameter": 5}, "it belongs to segmenter.kind watershed or cellpose, and the kind is micro-sam"),
        (WATERSHED | {"segmenter.mode": "ais"}, "unknown setting segmenter.mode: it belongs to segmenter.kind micro-sam"),
        (CELLPOSE | {"segmenter.percentiles": [99, 1]}, r"percentiles: the first must be .* \(Percentiles of each channel"),
        (CELLPOSE | {"segmenter.diameter": 0}, r"diameter: .*, not 0 \(Diameter of the objects in pixels"),
        (STARDIST | {"segmenter.n_tiles": 0}, "setting segmenter.n_tiles"),
        (STARDIST | {"segmenter.prob_thresh": 1}, "segmenter.prob_thresh: .*less than 1"),
        ({"slide.z": 3.5}, "^setting slide.z: "),
        ({"slide.channels": 3.5}, "^setting slide.channels: "),
        ({"segmenter.stains": {"a": [1, 0, 0]}}, "segmenter.stains: they count where segmenter.inputs names them"),
        ({"stitch.min_iou": 0}, "setting stitch.min_iou"),
    ],
)  # fmt: skip
def test_refusals_name_the_setting(overrides: dict, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        make_settings(overrides=overrides)
    assert "\n" not in str(refused.value)
    assert "literal" not in str(refused.value)


def test_defaults_are_micro_sam() -> None:
    assert make_settings() == Settings()
    assert Settings().segmenter.kind == "micro-sam"


@pytest.mark.parametrize(
    "values", [{"segmenter": None}, {"segmenter": {}}, {"segmenter": {"kind": "micro-sam", "mode": "amg"}}]
)
def test_another_kind_starts_from_its_own_defaults(values: dict) -> None:
    assert make_settings(values, WATERSHED) == make_settings(overrides=WATERSHED)


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


class TestForm:
    """A form gives the segmenter as a kind and a section for each kind."""

    def test_only_the_section_of_the_kind_counts(self) -> None:
        form = {"kind": "watershed", "watershed": {"diameter": 9}, "micro-sam": {"model": "vit_b"}, "function": {}}
        assert Settings.model_validate({"segmenter": form}).segmenter.model_dump() == {
            "kind": "watershed", "signal": "auto", "threshold": None, "diameter": 9.0,
        }  # fmt: skip

    def test_values_beside_the_sections_are_kept_if_they_are_the_kinds(self) -> None:
        form = {"kind": "watershed", "diameter": 30, "model": "vit_l", "watershed": {}, "micro-sam": {}}
        assert Settings.model_validate({"segmenter": form}).segmenter.diameter == 30

    def test_a_kind_that_needs_a_model_is_given_one(self) -> None:
        form = {"kind": "cellpose", "cellpose": {"model": "/w/cpsam", "niter": None}, "stardist": {"model": "/w/he"}}
        segmenter = Settings.model_validate({"segmenter": form}).segmenter
        assert (segmenter.kind, segmenter.model, segmenter.niter) == ("cellpose", "/w/cpsam", None)

    def test_units_are_those_of_the_kind(self) -> None:
        sections = Settings.model_json_schema()["properties"]["segmenter"]["properties"]
        titles = {kind: sections[kind]["properties"]["diameter"]["title"] for kind in ("watershed", "cellpose")}
        assert titles == {"watershed": "Diameter (µm)", "cellpose": "Diameter (px)"}

    def test_a_section_that_is_none_is_an_error(self) -> None:
        with pytest.raises(SettingsError, match="segmenter"):
            make_settings({"segmenter": {"kind": "watershed", "watershed": 5}})

    def test_what_the_form_may_send_is_what_its_schema_allows(self) -> None:
        section = Settings.model_json_schema()["properties"]["segmenter"]
        assert list(section["properties"]) == ["kind", "micro-sam", "watershed", "cellpose", "stardist", "function"]
        assert not any("required" in each for each in section["properties"].values())
        assert "default" not in section
