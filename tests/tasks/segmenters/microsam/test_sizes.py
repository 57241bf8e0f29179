"""What SAM sees: the field that the model was trained on, in tiles of one scale, with a warning where settings differ."""

from __future__ import annotations

import pytest

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.segmenters.microsam.sizes import explain_sizes, with_tiles
from slidesam.tasks.settings.methods import MicroSam

BLOCK = (2304, 2304)
FAMILIES = {
    "vit_b_histopathology": 512, "vit_l_lm": 512, "vit_b_em_organelles": 512, "vit_b_medical_imaging": 512, "vit_t_lm": 512,
    "vit_b": 1024, "vit_h": 1024, "nuclei-small": 1024,
}  # fmt: skip


def warnings_of(settings: MicroSam, model: str, mpp: tuple[float, float] | None = None) -> list[str]:
    return explain_sizes(with_tiles(settings, model, BLOCK), model, BLOCK, mpp)[1]


@pytest.mark.parametrize("model", FAMILIES)
def test_tiles_with_their_overlap_are_the_models_field(model: str) -> None:
    found = with_tiles(MicroSam(), model, BLOCK)
    side = FAMILIES[model]
    assert (found.field, found.tile_halo) == (side, (side // 8,) * 2)
    assert found.tile_shape == (side * 3 // 4,) * 2
    assert explain_sizes(found, model, BLOCK)[1] == []


def test_weights_of_ones_own_are_fine_tuned_unless_amg_takes_them() -> None:
    assert with_tiles(MicroSam(checkpoint="a.pt"), "vit_b", BLOCK).field == 512
    assert with_tiles(MicroSam(checkpoint="a.pt", mode="amg"), "vit_b", BLOCK).field == 1024


def test_blocks_within_the_field_are_not_tiled_and_keep_its_scale() -> None:
    found = with_tiles(MicroSam(), "vit_b_lm", (500, 320))
    assert (found.tile_shape, found.field) == ("off", 512)
    seen, (warning,) = explain_sizes(found, "vit_b_lm", (500, 320))
    assert seen == "SAM sees blocks of 320 × 500 px as a whole, enlarged 2 times"
    assert "blocks of 320 px with their halo don't fill the field of 512 px" in warning
    assert explain_sizes(found.model_copy(update={"mode": "amg"}), "vit_b_lm", (500, 320))[1] == []


def test_micro_sams_own_way_enlarges_a_small_block_as_a_whole() -> None:
    found = with_tiles(MicroSam(tiling="micro-sam"), "vit_b_lm", (256, 256))
    seen, (warning,) = explain_sizes(found, "vit_b_lm", (256, 256))
    assert seen.endswith("as a whole, enlarged 4 times")
    assert "sees objects at 2 times the size" in warning


def test_what_is_given_stays() -> None:
    given = MicroSam(tile_shape=(512, 512), tile_halo=(32, 32))
    assert with_tiles(given, "vit_b_lm", BLOCK) == given.model_copy(update={"field": 576})
    assert with_tiles(MicroSam(tile_shape=(512, 512)), "vit_b_lm", BLOCK).tile_halo == (128, 128)
    assert with_tiles(MicroSam(field=1024), "vit_b_lm", BLOCK).tile_shape == (768, 768)


def test_numbers_are_settled_for_good() -> None:
    once = with_tiles(MicroSam(), "vit_b_lm", BLOCK)
    assert with_tiles(once, "vit_b_lm", BLOCK) == once
    small = with_tiles(MicroSam(), "vit_b_lm", (300, 300))
    assert with_tiles(small, "vit_b_lm", (300, 300)) == small


def test_another_scale_is_warned_of() -> None:
    assert "sees objects at 0.22 times" in warnings_of(MicroSam(tile_shape="off"), "vit_b_lm")[0]
    assert "sees objects at 0.5 times" in warnings_of(MicroSam(field=1024), "vit_b_lm")[0]
    assert "sees objects at 1.3 times" in warnings_of(MicroSam(tile_shape=(256, 256)), "vit_b_lm")[0]


@pytest.mark.parametrize(
    ("mpp", "words"), [(0.12, "target_mpp: 0.2"), (1.0, "target_mpp: 0.55, or take a finer slide")]
)
def test_other_pixels_than_in_training_are_warned_of(mpp: float, words: str) -> None:
    (warning,) = warnings_of(MicroSam(), "vit_b_histopathology", (mpp, mpp))
    assert warning.endswith(words)
    assert warnings_of(MicroSam(), "vit_b_lm", (mpp, mpp)) == []
    assert warnings_of(MicroSam(), "vit_b_histopathology", (0.25, 0.5)) == []


def test_micro_sams_own_cutting_is_said() -> None:
    found = with_tiles(MicroSam(tiling="micro-sam"), "vit_b_lm", BLOCK)
    assert "cuts them off" in explain_sizes(found, "vit_b_lm", BLOCK)[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (MicroSam(tile_halo=(256, 256)), "128 at most"),
        (MicroSam(field=512, tile_shape=(512, 512)), "a tile with its overlap has 768 px"),
        (MicroSam(field=512, tile_shape="off"), "less than a block with its halo, 2304 px"),
        (MicroSam(mode="apg", options={"mask_threshold": 0.5}), "options.mask_threshold"),
        (MicroSam(mode="apg", options={"refine_with_box_prompts": True}), "options.refine_with_box_prompts"),
    ],
    ids=["no room", "two fields", "whole block", "mask_threshold", "refine_with_box_prompts"],
)
def test_what_cannot_be_is_refused(settings: MicroSam, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        with_tiles(settings, "vit_b_lm", BLOCK)


def test_apg_on_whole_blocks_takes_all_its_options() -> None:
    assert with_tiles(MicroSam(mode="apg", options={"mask_threshold": 0.5}), "vit_b_lm", (320, 320)).tile_shape == "off"
