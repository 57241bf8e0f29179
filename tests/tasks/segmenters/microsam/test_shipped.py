"""nuclei-small, the model that slidesam ships: its files, and that they find nuclei."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import numpy as np
import pytest

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters.microsam import library
from slidesam.tasks.segmenters.microsam.inputs import intensity_range
from slidesam.tasks.segmenters.microsam.registry import Registered
from slidesam.tasks.segmenters.microsam.segmenter import MicroSamSegmenter
from slidesam.tasks.segmenters.microsam.shipped import FILES, FOLDER
from slidesam.tasks.segmenters.microsam.weights import choose_model, identify_model
from slidesam.tasks.settings.methods import MicroSam
from tests.support.discs import draw_discs
from tests.support.microsam_fixtures import MICROSAM_MARKS
from tests.support.microsam_small import use_full_networks
from tests.support.weights_mirror import NEEDS_MICROSAM

MODEL = MicroSam(model="nuclei-small", device="cpu")


class TestFiles:
    """Without torch: fast."""

    pytestmark = NEEDS_MICROSAM

    def test_are_those_of_one_training_and_small_enough_for_a_package(self) -> None:
        assert {path.name for path in FOLDER.glob("*.pt")} == FILES.keys()
        assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 35e6
        assert json.loads((FOLDER / "facts.json").read_text())["crops"] > 100_000

    def test_have_one_identity_and_no_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            identities = {identify_model(MODEL, is_rgb) for is_rgb in (True, False)}
        assert len(identities) == 1
        assert identities.pop().startswith("nuclei-small sha256:")
        assert caplog.text == ""

    def test_another_file_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(FILES, "unetr_part1.pt", Registered(f"sha256:{'0' * 64}"))
        with pytest.raises(
            SegmenterError, match=r"unetr_part1.pt is not the file that slidesam ships.*install slidesam"
        ):
            identify_model(MODEL, is_rgb=True)

    def test_a_missing_file_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(FILES, "unetr_part3.pt", Registered(f"sha256:{'0' * 64}"))
        with pytest.raises(SegmenterError, match=r"incomplete: .* has no unetr_part3.pt: install slidesam again"):
            identify_model(MODEL, is_rgb=True)

    def test_the_model_is_never_chosen_by_itself(self) -> None:
        assert "nuclei-small" not in {choose_model(MicroSam(), is_rgb) for is_rgb in (True, False)}


class TestModel:
    """The real weights, in networks of full size."""

    pytestmark = MICROSAM_MARKS

    @pytest.fixture(autouse=True)
    def _networks(self) -> Iterator[None]:
        with use_full_networks():
            yield

    def test_holds_the_files_weights_and_the_same_rest_each_time(self) -> None:
        import torch

        before = torch.random.get_rng_state()
        first, second = (library.load_model("nuclei-small", FOLDER, None, "cpu") for _ in range(2))
        assert torch.equal(before, torch.random.get_rng_state())
        assert (first.architecture, first.has_decoder) == ("vit_t", True)
        networks = [model.predictor.model.state_dict() for model in (first, second)]
        assert all(torch.equal(value, networks[1][name]) for name, value in networks[0].items())
        used = {f"encoder.{name}": value for name, value in first.predictor.model.image_encoder.state_dict().items()}
        used |= first.state["decoder_state"]
        shipped = {name: value for file in FILES for name, value in torch.load(FOLDER / file).items()}
        assert used.keys() == shipped.keys()
        assert all(torch.equal(used[name], value.to(used[name].dtype)) for name, value in shipped.items())

    def test_finds_bright_discs(self) -> None:
        image, truth = draw_discs((256, 256), seed=3)
        segmenter = MicroSamSegmenter(MODEL, is_rgb=False)
        labels = segmenter.segment(image, intensity_range(image, is_rgb=False)).astype(np.int64)
        both = np.bincount(
            (truth * (labels.max() + 1) + labels).ravel(), minlength=(truth.max() + 1) * (labels.max() + 1)
        )
        both = both.reshape(truth.max() + 1, -1)
        union = both.sum(1, keepdims=True) + both.sum(0) - both
        assert ((both / np.maximum(union, 1))[1:, 1:] > 0.5).sum() >= 0.95 * truth.max()
        assert labels.max() <= 1.05 * truth.max()
