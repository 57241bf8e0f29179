"""What slidesam needs inside micro-sam, part by part: each test names the part that has moved or changed.

`slidesam.tasks.segmenters.microsam.library` is the one module to adapt then.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slidesam.tasks.segmenters.microsam import library
from slidesam.tasks.segmenters.microsam.encoder import Encoder
from tests.support.microsam_fixtures import MICROSAM_MARKS
from tests.support.sam_inputs import rgb_block
from tests.support.weights_mirror import NEEDS_MICROSAM


def part(module: str, name: str, user: str) -> Any:
    """A part of micro-sam; where it has moved, the test fails and says what uses it."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"micro-sam has no {module}.{name} any more ({error}): adapt `library.{user}`")


def test_importing_is_light() -> None:
    heavy = "{'torch', 'micro_sam', 'mobile_sam', 'segment_anything', 'torch_em'}"
    code = f"import sys; from {library.__package__} import library; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
    assert done.stdout == "set()\n"


@NEEDS_MICROSAM
def test_the_registry_is_a_function_of_util() -> None:
    source = library.find_registry_source()
    assert source is not None
    assert source.is_file(), f"micro-sam has no {source} any more: adapt `library.find_registry_source`"
    functions = {node.name for node in ast.parse(source.read_bytes()).body if isinstance(node, ast.FunctionDef)}
    assert "models" in functions, "micro-sam's util.py has no function `models` any more: adapt `registry._registry_in`"


class TestParts:
    pytestmark = MICROSAM_MARKS

    @pytest.fixture(scope="class")
    def model(self, microsam_checkpoint: Path) -> library.Model:
        return library.load_model("vit_b", microsam_checkpoint, None, "cpu")

    def test_loading_takes_these_arguments_and_tells_what_it_loaded(self, model: library.Model) -> None:
        function = part("micro_sam.util", "get_sam_model", "load_model")
        wanted = {"model_type", "device", "checkpoint_path", "decoder_path", "return_state"}
        assert wanted <= inspect.signature(function).parameters.keys(), "get_sam_model: adapt `library.load_model`"
        assert (model.architecture, model.has_decoder) == ("vit_b", True)

    def test_loading_leaves_the_standard_unpickler(self, microsam_checkpoint: Path) -> None:
        standard = pickle.Unpickler
        library.load_model("vit_b", microsam_checkpoint, None, "cpu")
        assert pickle.Unpickler is standard
        assert part("micro_sam.util", "_CustomUnpickler", "load_model") is not standard

    def test_the_stretch_is_by_each_channels_own_range(self) -> None:
        part("micro_sam.util", "_to_image", "stretch_contrast")
        image = np.stack([np.arange(100, 200), np.arange(0, 1000, 10), np.full(100, 7)], axis=1)[None].astype(np.uint16)
        stretched = library.stretch_contrast(image)
        assert stretched.dtype == np.uint8
        assert stretched.shape == (1, 100, 3)
        assert stretched[0, [0, -1]].tolist() == [[0, 0, 0], [255, 255, 0]]

    def test_tiles_are_numbered_by_rows_and_cut_at_the_image(self) -> None:
        part("micro_sam.util", "Blocking", "place_tiles")
        places = library.place_tiles((100, 150), (64, 64), (8, 8))
        corners = [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in places]
        assert corners == [
            *((0, 72, 0, 72), (0, 72, 56, 136), (0, 72, 120, 150)),
            *((56, 100, 0, 72), (56, 100, 56, 136), (56, 100, 120, 150)),
        ]

    def test_even_tiles_are_what_their_code_cuts_by(self) -> None:
        modules = ("micro_sam.instance_segmentation", "micro_sam.inference")
        for module in modules:
            part(module, "Blocking", "cut_evenly")
        tile_shape = library.cut_evenly((64, 64), (8, 8))
        even = library.place_tiles((100, 150), tile_shape, (8, 8))
        for module in modules:
            # As micro-sam takes the shape out of the embeddings.
            tiling = importlib.import_module(module).Blocking([0, 0], (100, 150), tuple(tile_shape))
            assert tiling.number_of_blocks == len(even)
            outer = [tiling.get_block_with_halo(tile, [8, 8]).outer_block for tile in range(len(even))]
            assert [(box.begin, box.shape) for box in outer] == [
                ([rows.start, columns.start], [80, 80]) for rows, columns in even
            ], "tiles are cut by another class: adapt `library.cut_evenly`"
        assert len(library.place_tiles((100, 150), (64, 64), (8, 8))) == 6
        assert (even[0], even[-1]) == ((slice(0, 80), slice(0, 80)), (slice(20, 100), slice(70, 150)))

    def test_a_fixed_scale_is_that_of_images_and_of_prompts(self, microsam_checkpoint: Path) -> None:
        predictor = library.load_model("vit_b", microsam_checkpoint, None, "cpu").predictor
        library.fix_scale(predictor, 2.0)
        assert predictor.transform.apply_image(np.zeros((100, 150, 3), np.uint8)).shape == (200, 300, 3)
        assert predictor.transform.apply_image(np.zeros((512, 512, 3), np.uint8)).shape == (1024, 1024, 3)
        points = predictor.transform.apply_coords(np.array([[7.0, 5.0]]), (100, 150))
        assert points.tolist() == [[14.0, 10.0]], "prompts are scaled elsewhere: adapt `library.fix_scale`"

    def test_the_tests_own_network_has_positions(self, model: library.Model) -> None:
        """SAM initialises them with zero, so that code which forgot them would find the same."""
        names = [name for name in model.state["model_state"] if "rel_pos" in name or name.endswith("pos_embed")]
        assert len(names) >= 3
        assert all(model.state["model_state"][name].std() > 0.05 for name in names)

    def test_the_embedding_of_an_image_has_their_form(self, model: library.Model) -> None:
        embed = part("micro_sam.util", "precompute_image_embeddings", "describe_image")
        image = rgb_block()
        theirs = embed(model.predictor, image, ndim=2, verbose=False)
        ours = Encoder(model.predictor, 1, "float32").encode_image(library.stretch_contrast(image))
        assert ours.keys() == theirs.keys(), "embeddings: adapt `library.describe_image`"
        assert (ours["input_size"], ours["original_size"]) == (theirs["input_size"], theirs["original_size"])
        np.testing.assert_array_equal(ours["features"].detach().numpy(), theirs["features"])

    def test_the_embeddings_of_tiles_have_their_form(self, model: library.Model) -> None:
        embed = part("micro_sam.util", "precompute_image_embeddings", "describe_tiles")
        image = np.ascontiguousarray(rgb_block()[:96])
        theirs = embed(model.predictor, image, ndim=2, tile_shape=(96, 96), halo=(16, 16), verbose=False)
        ours = Encoder(model.predictor, 2, "float32").encode_tiles(
            (96, 256), (96, 96), (16, 16), lambda place: library.stretch_contrast(image[place])
        )
        assert ours.keys() == theirs.keys(), "embeddings: adapt `library.describe_tiles`"
        assert set(ours["features"]) == set(theirs["features"]) == {"0", "1", "2"}
        for name, value in ours["features"].attrs.items():
            assert list(theirs["features"].attrs[name]) == list(value), f"attribute {name}: `library.describe_tiles`"
        for number, features in ours["features"].items():
            expected = theirs["features"][number]
            np.testing.assert_allclose(features.detach().numpy(), expected[:], atol=1e-5)
            for name, value in features.attrs.items():
                assert list(expected.attrs[name]) == list(value), f"attribute {name}: `Encoder._encode_batch`"

    @pytest.mark.parametrize("is_tiled", [False, True])
    @pytest.mark.parametrize("mode", ["amg", "ais", "apg"])
    def test_each_mode_has_a_class(self, mode: str, is_tiled: bool, model: library.Model) -> None:
        kind = library.find_generator_class(mode, is_tiled=is_tiled)
        for method in ("initialize", "generate", "clear_state"):
            assert callable(getattr(kind, method, None)), f"{kind.__name__}.{method}: adapt `MicroSamSegmenter`"
        generator = library.make_generator(model, mode, "cpu", is_tiled=is_tiled, options={})
        assert type(generator) is kind, "get_predictor_and_segmenter: adapt `library.make_generator`"

    def test_a_copy_of_a_generator_keeps_its_maps(self, model: library.Model) -> None:
        generator = library.make_generator(model, "ais", "cpu", is_tiled=False, options={})
        encoder = Encoder(model.predictor, 1, "float32")
        image = rgb_block()
        generator.initialize(image=image, image_embeddings=encoder.encode_image(image), verbose=False)
        kept = library.copy_generator(generator)
        before = {name: maps.copy() for name, maps in kept.get_state().items()}
        other = np.ascontiguousarray(image[::-1])
        generator.initialize(image=other, image_embeddings=encoder.encode_image(other), verbose=False)
        generator.clear_state()
        for name, maps in kept.get_state().items():
            np.testing.assert_array_equal(maps, before[name], f"{name} changed in place: `library.copy_generator`")
