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
