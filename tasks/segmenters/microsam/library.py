"""The one door to micro-sam: no other module imports micro_sam or what it stands on (torch_em, segment_anything, mobile_sam).

Importing this module loads none of them. The functions that need micro-sam import it, which takes 15 s the first time.

What slidesam needs of micro-sam 1.8 beyond its documented functions. Each part has a test in
tests/tasks/segmenters/microsam/test_library.py, which names the part if it moves:

1. `micro_sam/util.py`                the registry of weights, read as text: `find_registry_source`
2. `micro_sam.util.get_sam_model`     replaces the standard library's unpickler, and loads by `torch.load`: `load_model`
3. `micro_sam.util._to_image`         the contrast stretch of `scaling: tile`: `stretch_contrast`
4. `Blocking` in three modules        the places of tiles: `place_tiles`; replaced by `cut_evenly`
5. embeddings of an image             their keys and attributes: `describe_image`, `describe_tiles`
6. `micro_sam.instance_segmentation`  the generators' class names: `find_generator_class`
7. a generator's state                replaced, never changed in place, so that a shallow copy keeps it: `copy_generator`
8. a predictor's `model_type` and `model_name`, which `get_sam_model` sets: `_load_parts` sets them, too
9. `predictor.transform`              its `get_preprocess_shape` says how far images and prompts are scaled: `fix_scale`
10. `InstanceSegmentationWithDecoder`  asks its decoder for three maps, and keeps the first as `foreground`: `_ClassDecoder`

micro-sam 2 brings SAM 2 (https://github.com/computational-cell-analytics/micro-sam/issues/896) and moves these modules to
`micro_sam.v1`; then this module changes, and no other.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.segmenters.microsam.fields import NATIVE
from slidesam.tasks.segmenters.microsam.tiles import EvenTiling
from slidesam.tasks.settings.types import Pair

_GENERATORS = {
    "amg": "AutomaticMaskGenerator",
    "ais": "InstanceSegmentationWithDecoder",
    "apg": "AutomaticPromptGenerator",
}


class Model(NamedTuple):
    """A model that micro-sam has loaded."""

    predictor: Any
    """SAM's predictor, which holds the network."""
    state: dict[str, Any]
    """The content of the checkpoint."""

    @property
    def architecture(self) -> str:
        """Name of the image encoder, such as vit_b."""
        return str(self.predictor.model_type)

    @property
    def has_decoder(self) -> bool:
        """Whether the checkpoint holds micro-sam's decoder, which the modes ais and apg need."""
        return "decoder_state" in self.state


class TileEmbeddings(dict[str, Any]):
    """Embeddings by the tile's number, with attributes: micro-sam's generators expect a Zarr group."""

    def __init__(self, embeddings: Mapping[str, Any], attrs: dict[str, Any]) -> None:
        super().__init__(embeddings)
        self.attrs = attrs


def is_installed() -> bool:
    """Tell whether micro-sam is installed, without importing it."""
    return importlib.util.find_spec("micro_sam") is not None


def find_registry_source() -> Path | None:
    """Find the source file whose function `models` holds micro-sam's registry of weights; None without micro-sam."""
    spec = importlib.util.find_spec("micro_sam")
    folders = getattr(spec, "submodule_search_locations", None) or ()
    return next((Path(folder) / "util.py" for folder in folders), None)


def load_model(name: str, checkpoint: Path, decoder: Path | None, device: str, *, is_trusted: bool = False) -> Model:
    """Load a model from files; given a path, micro-sam asks no server.

    Args:
        name: The model's name in micro-sam's registry, or its architecture.
        checkpoint: SAM's weights, or a folder with the parts of a vit_t and its decoder, as training/train.py saves them.
        decoder: The decoder's weights, if they are a file of their own.
        device: Where to put the model.
        is_trusted: Whether files that hold more than weights are unpickled, which runs code that their makers put in.

    Raises:
        pickle.UnpicklingError: A file holds more than weights, and isn't trusted.
        Exception: Whatever torch and pickle raise for a file that holds no weights of SAM.
    """
    if checkpoint.is_dir():
        return _load_parts(checkpoint, device)
    from micro_sam.util import get_sam_model

    # micro-sam replaces the standard library's unpickler by one that skips what it can't find, for good: put back here.
    unpickler = pickle.Unpickler
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.nullcontext() if is_trusted else _weights_only():
            predictor, state = get_sam_model(
                name, device=device, checkpoint_path=checkpoint, decoder_path=decoder, return_state=True
            )
    finally:
        pickle.Unpickler = unpickler  # type: ignore[misc]
    return Model(predictor, state)


def _load_parts(folder: Path, device: str) -> Model:
    """Join the parts of a vit_t and its decoder; make prompt encoder and mask decoder, which no part holds, from a fixed seed."""
    import torch
    from micro_sam.util import SamPredictor, sam_model_registry

    weights: dict[str, Any] = {}
    for path in sorted(folder.glob("*.pt")):
        part = torch.load(path, map_location="cpu", weights_only=True)
        weights |= {key: value.float() if value.is_floating_point() else value for key, value in part.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sam = sam_model_registry["vit_t"]()
    prefix = "encoder."
    encoder = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    sam.image_encoder.load_state_dict(encoder)
    predictor = SamPredictor(sam.to(device))
    predictor.model_type = predictor.model_name = "vit_t"
    decoder = {key: value for key, value in weights.items() if not key.startswith(prefix)}
    return Model(predictor, {"decoder_state": decoder})


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Let torch load weights and plain values only: micro-sam itself asks for whole pickles."""
    import torch

    load = torch.load

    def load_weights(file: Any, map_location: Any = None, **_: Any) -> Any:
        return load(file, map_location=map_location, weights_only=True)

    torch.load = load_weights  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.load = load


def find_generator_class(mode: str, *, is_tiled: bool) -> Any:
    """Find the class that segments in a mode (ais, amg or apg)."""
    from micro_sam import instance_segmentation

    return getattr(instance_segmentation, f"{'Tiled' if is_tiled else ''}{_GENERATORS[mode]}")


def make_generator(model: Model, mode: str, device: str, *, is_tiled: bool, options: Mapping[str, Any]) -> Any:
    """Make a generator: what turns the embeddings of an image into labels.

    Args:
        model: The model, which the generator shares.
        mode: ais, amg or apg.
        device: Where the model is.
        is_tiled: Whether embeddings come in tiles.
        options: Options of the generator's class.
    """
    from micro_sam.automatic_segmentation import get_predictor_and_segmenter

    _, generator = get_predictor_and_segmenter(
        model.predictor.model_name,
        device=device,
        segmentation_mode=mode,
        is_tiled=is_tiled,
        predictor=model.predictor,
        state=model.state,
        **options,
    )
    return generator


def make_class_generator(model: Model, decoder_state: Mapping[str, Any], device: str, *, is_tiled: bool) -> Any:
    """Make a generator whose foreground map is the number of each pixel's class, as patho-sam finds it.

    patho-sam takes the class with the highest score after scaling the scores to the image. So it isn't averaged:
    https://github.com/computational-cell-analytics/patho-sam/blob/master/patho_sam/semantic_segmentation.py

    Args:
        model: The model, whose embeddings will be given.
        decoder_state: Weights of a decoder with an output per class.
        device: Where the model is.
        is_tiled: Whether embeddings come in tiles.

    Raises:
        Exception: Whatever torch raises for weights of another network.
    """
    from micro_sam.instance_segmentation import DecoderAdapter, get_unetr

    count = len(decoder_state["out_conv.bias"])
    unetr = get_unetr(model.predictor.model.image_encoder, decoder_state, device, out_channels=count)
    generator = find_generator_class("ais", is_tiled=is_tiled)
    return generator(model.predictor, _ClassDecoder(DecoderAdapter(unetr)))


class _ClassDecoder:
    """Answers as the decoder of three maps does that micro-sam's generators take; each is the number of the pixel's class."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter

    def __call__(self, features: Any, input_shape: Pair, original_shape: Pair) -> Any:
        return self.postprocess_masks(self._forward_impl(features), input_shape, original_shape)

    def _forward_impl(self, features: Any) -> Any:
        return self._adapter._forward_impl(features)

    def postprocess_masks(self, scores: Any, input_shape: Pair, original_shape: Pair) -> Any:
        scaled = self._adapter.postprocess_masks(scores, input_shape, original_shape)
        return scaled.argmax(1, keepdim=True).float().expand(-1, 3, -1, -1)


def read_class_map(generator: Any) -> NDArray[np.uint32]:
    """Take the numbers of classes, (y, x), out of an initialised generator of `make_class_generator`."""
    numbers: NDArray[np.uint32] = generator.get_state()["foreground"].astype(np.uint32)
    generator.clear_state()
    return numbers


def copy_to_host(embeddings: Mapping[str, Any]) -> dict[str, Any]:
    """Copy embeddings, in the form that generators take, to the host, in the form that `compute_features` takes."""
    features = embeddings["features"]
    if isinstance(features, TileEmbeddings):
        tiles = {number: tile.cpu().numpy() for number, tile in features.items()}
        return {**embeddings, "features": TileEmbeddings(tiles, features.attrs)}
    return {**embeddings, "features": features.cpu().numpy()}


def compute_features(embeddings: Mapping[str, Any], labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Compute what micro-sam's object classifier knows of objects: (n,) ids, and (n, 257) area and mean embeddings.

    Objects that vanish where labels are scaled to the embeddings are left out.

    Args:
        embeddings: As `copy_to_host` returns them.
        labels: (y, x) ids, 0 = background.
    """
    from micro_sam import object_classification

    object_classification.Blocking = _make_tiling
    if not labels.any():
        return np.zeros(0, np.int64), np.zeros((0, 257))
    if embeddings["input_size"] is not None:
        # micro-sam takes it that the image fills what SAM sees along its longer side.
        side = round(max(labels.shape) * NATIVE / max(embeddings["input_size"]))
        if side > max(labels.shape):
            labels = np.pad(labels, [(0, side - length) for length in labels.shape])
    ids, features = object_classification.compute_object_features(embeddings, labels, verbose=False)
    return np.asarray(ids), np.asarray(features)


def copy_generator(generator: Any) -> Any:
    """Copy an initialised generator, so that it keeps its maps when the original is initialised with the next image."""
    return copy.copy(generator)


def stretch_contrast(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Make (y, x, 3) uint8 as micro-sam does it: each channel by its own minimum and maximum.

    Another normalisation is under discussion: https://github.com/computational-cell-analytics/micro-sam/pull/1058.
    """
    from micro_sam.util import _to_image

    rgb: NDArray[np.uint8] = _to_image(pixels)
    return rgb


def place_tiles(shape: Pair, tile_shape: Pair, halo: Pair) -> list[tuple[slice, slice]]:
    """Cut an image into tiles with their overlap, by micro-sam's numbers.

    Args:
        shape: Height and width of the image.
        tile_shape: Height and width of its tiles; of `cut_evenly`, or as micro-sam cuts.
        halo: Their overlap on each side.
    """
    tiling = _make_tiling([0, 0], shape, tile_shape)
    blocks = [tiling.get_block_with_halo(tile, list(halo)).outer_block for tile in range(tiling.number_of_blocks)]
    return [(slice(block.begin[0], block.end[0]), slice(block.begin[1], block.end[1])) for block in blocks]


class _EvenSide(int):
    """The side of an even tile, which knows its overlap: micro-sam hands the sides of tiles on to what cuts images."""

    halo: int


def cut_evenly(tile_shape: Pair, halo: Pair) -> Pair:
    """Return a shape of tiles with which micro-sam's code, and `place_tiles`, cut images into tiles of one scale."""
    from micro_sam import inference, instance_segmentation

    for module in (inference, instance_segmentation):
        module.Blocking = _make_tiling
    sides = [_EvenSide(side) for side in tile_shape]
    for side, overlap in zip(sides, halo, strict=True):
        side.halo = overlap
    return sides[0], sides[1]


def _make_tiling(begin: Sequence[int], shape: Pair, tile_shape: Pair) -> Any:
    """Make what cuts an image: evenly, or as micro-sam does it."""
    from micro_sam.util import Blocking

    height, width = tile_shape
    if isinstance(height, _EvenSide) and isinstance(width, _EvenSide):
        return EvenTiling(shape, tile_shape, (height.halo, width.halo))
    return Blocking(begin, shape, tile_shape)


def fix_scale(predictor: Any, scale: float) -> None:
    """Let a predictor scale all images, and the prompts in them, by one number, instead of each to SAM's side.

    What is smaller than SAM's side is filled up with the mean colour, as SAM does it for images that aren't square.
    """
    side = int(predictor.transform.target_length)

    class FixedScale(type(predictor.transform)):  # type: ignore[misc]
        def get_preprocess_shape(self, height: int, width: int, _: int) -> Pair:
            return min(int(height * scale + 0.5), side), min(int(width * scale + 0.5), side)

    predictor.transform = FixedScale(side)


def describe_image(features: Any) -> dict[str, Any]:
    """Give the embedding of a whole image the form that generators take.

    Args:
        features: (1, 256, 64, 64) tensor whose `attrs` hold `input_size` and `original_size`.
    """
    return {"features": features, **features.attrs}


def describe_tiles(embeddings: Sequence[Any], shape: Pair, tile_shape: Pair, halo: Pair) -> dict[str, Any]:
    """Give the embeddings of an image's tiles the form that generators take.

    Args:
        embeddings: A tensor per tile, in the order of `place_tiles`.
        shape: Height and width of the image.
        tile_shape: Height and width of its tiles.
        halo: Their overlap on each side.
    """
    numbered = {str(number): features for number, features in enumerate(embeddings)}
    features = TileEmbeddings(numbered, {"shape": shape, "tile_shape": tile_shape, "halo": halo})
    return {"features": features, "input_size": None, "original_size": None}
