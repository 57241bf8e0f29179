"""The form of the settings: a segmenter is a kind and a section for each kind."""

from __future__ import annotations

import pytest

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.settings.sections import Settings

WATERSHED, CELLPOSE, STARDIST = ({"segmenter.kind": kind} for kind in ("watershed", "cellpose", "stardist"))


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
