"""Parsing of settings: what is refused, in which words, and which defaults apply."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.settings.parse import make_settings, parse_override, put_value, read_yaml

WATERSHED, CELLPOSE, STARDIST = ({"segmenter.kind": kind} for kind in ("watershed", "cellpose", "stardist"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"blocks.hallo": 3}, "unknown setting blocks.hallo: did you mean blocks.halo?"),
        ({"nothing": 3}, "unknown setting nothing: `slidesam settings` lists all"),
        ({"blocks.halo": "wide"}, "setting blocks.halo: .*integer.*not 'wide' .*Context that a block reads"),
        ({"blocks.block_shape": 100}, "setting blocks.block_shape: must be multiples of 16 px.*not 100"),
        ({"blocks": 3}, r"setting blocks: must be a section"),
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
        ({"segmenter.stains": {"a": [1, 0, 0]}}, "segmenter.stains: they are used only if segmenter.inputs names them"),
        ({"stitch.min_iou": 0}, "setting stitch.min_iou"),
    ],
)  # fmt: skip
def test_refusals_name_the_setting(overrides: dict, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        make_settings(overrides=overrides)
    assert "\n" not in str(refused.value)
    assert "literal" not in str(refused.value)


@pytest.mark.parametrize(
    "values", [{"segmenter": None}, {"segmenter": {}}, {"segmenter": {"kind": "micro-sam", "mode": "amg"}}]
)
def test_another_kind_starts_from_its_own_defaults(values: dict) -> None:
    assert make_settings(values, WATERSHED) == make_settings(overrides=WATERSHED)


def test_an_override_opens_a_section_that_is_null() -> None:
    tree = {"cpu": None}
    put_value(tree, "cpu.scheduler.port", 3, "cluster profile")
    assert tree == {"cpu": {"scheduler": {"port": 3}}}
    with pytest.raises(SettingsError, match=r"cluster profile cpu.scheduler.port.x: port holds a value"):
        put_value(tree, "cpu.scheduler.port.x", 3, "cluster profile")


@pytest.mark.parametrize(
    ("text", "words"), [("kind: [", "can't be read"), ("- 3", "holds no `a: b`"), (None, "can't be read")]
)
def test_a_file_that_holds_no_mapping_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "a.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=f"settings file .*a.yaml {words}"):
        read_yaml(path, "settings file", "`a: b`")


def test_an_override_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"setting a.b: '\[' is no YAML value"):
        parse_override("a.b=[", "setting")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stitch.rescue", False),
        ("blocks.halo", True),
        ("slide.z", False),
        ("run.retries", True),
        ("segmenter.threshold", False),
        ("segmenter.diameter", True),
    ],
)
def test_yes_and_no_are_no_numbers(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"setting {name}"):
        make_settings(overrides={"segmenter.kind": "watershed", name: value})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "inf"])
def test_numbers_are_finite(value: object) -> None:
    for name in ("stitch.twin_border", "run.retry_delay", "run.block_timeout"):
        with pytest.raises(SettingsError, match=f"setting {name}"):
            make_settings(overrides={name: value})


@pytest.mark.parametrize(("value", "text"), [(1_000_000, "1000000s"), (0.25, "0.25s"), (90.0, "90s"), ("2h", "2h")])
def test_seconds_are_read_as_they_are_written(value: object, text: str) -> None:
    assert make_settings(overrides={"run.block_timeout": value}).run.block_timeout == text


def test_what_yaml_makes_of_off_stays_a_setting_where_it_is_one() -> None:
    assert make_settings(overrides={"blocks.tissue": False}).blocks.tissue == "off"
    assert make_settings(overrides={"stitch.rescue": None}).stitch.rescue is None


def test_truth_values_stay_where_they_belong_and_are_names_elsewhere() -> None:
    # Which no channel has, so that planning says so; as 0 it would be the first channel.
    assert make_settings(overrides={"slide.channels": [False]}).slide.channels == ("false",)
    assert make_settings(overrides={"slide.rgb": False}).slide.rgb is False
    assert make_settings(overrides={"segmenter.options": {"with_background": True}}).segmenter.options == {
        "with_background": True
    }
