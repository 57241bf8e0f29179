"""Segment one block with micro-sam: its own code, with slide-wide intensities unless the settings say otherwise.

Importing this module loads neither torch nor micro-sam; making a `MicroSamSegmenter` does, and takes about 15 s.

1. `MicroSamSegmenter(...)` loads model, decoder and generator once per process and checks every option's name.
2. `prepare` finds the channels or stains that SAM sees, and the slide's range of each (`inputs`).
3. `segment` computes embeddings, from which micro-sam's generator makes labels.

With `scaling: tile` and `tiling: micro-sam` the labels are those of micro-sam's `automatic_instance_segmentation(..., ndim=2)`.
With `tiling: even` SAM sees all tiles at one scale. With `scaling: slide` only the conversion to 8 bit differs: micro-sam
stretches every tile by its own minimum and maximum. So one cell looks different in two tiles (micro-sam issue 1114), and any
scaling done before is undone. Here the predictor gets pixels that are 8 bit already, by the slide's range, without that step.

References:
    Archit et al., Segment Anything for Microscopy. Nature Methods 22, 2025. doi:10.1038/s41592-024-02580-4
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import io
import pickle
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SegmenterError, in_one_line
from slidesam.tasks.segmenters.base import Arithmetic, DeferredLabels, Params, Segmenter
from slidesam.tasks.segmenters.microsam import library
from slidesam.tasks.segmenters.microsam.classes import make_classifier
from slidesam.tasks.segmenters.microsam.encoder import Encoder
from slidesam.tasks.segmenters.microsam.fields import NATIVE
from slidesam.tasks.segmenters.microsam.inputs import check_inputs, compose, intensity_range, pick, ranges
from slidesam.tasks.segmenters.microsam.options import split_options
from slidesam.tasks.segmenters.microsam.shipped import NUCLEI_SMALL
from slidesam.tasks.segmenters.microsam.variants import SharedResults, copy_maps, suggest_grids
from slidesam.tasks.segmenters.microsam.weights import (
    Weights,
    choose_model,
    find_architecture,
    find_weights,
    make_decoder_error,
    make_trust_cure,
)
from slidesam.tasks.segmenters.torch_host import UNUSABLE, choose_device, limit_threads
from slidesam.tasks.segmenters.votes import ClassifiedLabels, Votes, split_votes
from slidesam.tasks.settings.methods import MicroSam
from slidesam.tasks.settings.types import Pair

if TYPE_CHECKING:
    from slidesam.tasks.slides.facts import Slide
_UNLOADABLE = (*UNUSABLE, pickle.UnpicklingError)


class MicroSamSegmenter(Segmenter):
    """micro-sam's generators as a segmenter; holds the model, so make it once per process.

    Torch uses OMP_NUM_THREADS threads if that is set.

    Args:
        settings: The segmenter's settings.
        is_rgb: Whether the slide is red, green and blue.

    Attributes:
        device: Where the model is: cpu, cuda or mps.

    Raises:
        SegmenterError: micro-sam, the weights, the device or an option is missing; the message says what to do.
    """

    def __init__(self, settings: MicroSam, is_rgb: bool) -> None:
        weights = find_weights(settings, is_rgb)
        limit_threads()
        self.device = choose_device(settings.device)
        self._model = _load_model(settings, choose_model(settings, is_rgb), weights, self.device)
        self._predictor = self._model.predictor
        self._is_rgb = is_rgb
        self._encoder = Encoder(self._predictor, settings.batch_size, settings.precision)
        # The predictor holds the current image: threads of one worker must take turns.
        self._lock = threading.Lock()
        self._shared = SharedResults()
        self._configure(settings, weights)

    def _configure(self, settings: MicroSam, weights: Weights) -> None:
        """Make the generator of a mode, with its options; the model stays."""
        model, mode = self._model, _choose_mode(settings, weights, self._model.has_decoder)
        self._mode = mode
        init_options, self._generate_options = split_options(settings, mode, is_tiled=_is_tiled(settings))
        try:
            self._segmenter = library.make_generator(
                model, mode, self.device, is_tiled=_is_tiled(settings), options=init_options
            )
        except _UNLOADABLE as error:
            raise SegmenterError(f"micro-sam can't make its {mode} generator: {in_one_line(error, 300)}") from error
        self._settings = settings
        self._tile_shape, self._tile_halo = read_tiling(settings)
        if mode == "ais" and self._tile_shape is not None:
            # As automatic_instance_segmentation does, but with one thread: python-elf smooths the maps in place, tile by tile.
            # Threads would read each other's half-smoothed borders, so labels would differ from run to run.
            self._generate_options |= {"tile_shape": self._tile_shape, "halo": self._tile_halo, "n_threads": 1}
        if settings.tiling == "even":
            self._use_one_scale()
        self._is_two_phase = mode == "ais"
        # It draws its progress bar even if `verbose` is False.
        self._is_verbose = mode == "apg" and self._tile_shape is not None
        self._classifier = make_classifier(settings, self._is_rgb, model, self.device, is_tiled=_is_tiled(settings))

    def suggest_trials(self, params: Params) -> list[dict[str, list[Any]]]:
        """Suggest thresholds of the decoder's maps, or of AMG's masks, and the other mode that a fine-tuned model has."""
        # Without SAM's own prompt encoder and mask decoder there is no other mode.
        has_prompts = choose_model(self._settings, self._is_rgb) != NUCLEI_SMALL
        return suggest_grids(self._mode, has_other_mode=has_prompts and self._settings.mode == "auto")

    def vary(self, settings: MicroSam) -> MicroSamSegmenter | None:
        """Return the same model with another mode or other options, which takes over what this one computes of an image.

        One thread may use both: they share the model.

        Args:
            settings: With another mode or options; with other differences the result is None.
        """
        changeable = {"mode", "options"}
        if settings.model_dump(exclude=changeable) != self._settings.model_dump(exclude=changeable):
            return None
        self._shared.is_kept = True
        variant = copy.copy(self)
        variant._configure(settings, find_weights(settings, self._is_rgb))
        return variant

    def _use_one_scale(self) -> None:
        """Let SAM see all tiles, and blocks that are smaller than the field, at the scale of the field."""
        field = read_field(self._settings)
        if field is not None:
            library.fix_scale(self._predictor, NATIVE / field)
        if self._tile_shape is not None and self._tile_halo is not None:
            self._tile_shape = library.cut_evenly(self._tile_shape, self._tile_halo)

    def prepare(self, sample: NDArray[Any], slide: Slide) -> dict[str, Any]:
        """Find the slide's intensity range, unless each tile is scaled by itself, and what `inputs` names.

        Args:
            sample: (y, x[, c]) pixels of the slide, any numeric dtype.
            slide: Its channels, of which `inputs` may name some.

        Returns:
            {"low": [...], "high": [...]} from `intensity_range`, or {} for `scaling: tile`. If `inputs` names something:
            the result of `ranges`, or of `resolve` for `scaling: tile`.

        Raises:
            SegmenterError: `inputs` names something that the slide doesn't have.
        """
        is_by_tile = self._settings.scaling == "tile"
        if self._settings.inputs:
            plan = check_inputs(self._settings, slide)
            return plan if is_by_tile else ranges(sample, plan)
        return {} if is_by_tile else intensity_range(sample, self._is_rgb)

    def segment(self, image: NDArray[Any], params: Params) -> NDArray[np.integer[Any]]:
        """Label one block; threads that call this take turns.

        Args:
            image: (y, x[, c]) any numeric dtype; without `inputs` the first three channels are used.
            params: What `prepare` returned.

        Returns:
            (y, x) uint64 (ais) or uint32 (amg, apg), 0 = background; all 0 if nothing was found.

        Raises:
            SegmenterError: `params` are for another number of channels.
        """
        return split_votes(self.begin(image, params)())[0]

    def begin(self, image: NDArray[Any], params: Params) -> DeferredLabels:
        """Do the device's part of `segment`, and return a function that does the rest.

        For AIS the rest is the watershed of the decoder's maps, on the host. The other modes ask the model for masks until the
        end, so they return no deferred work.
        """
        import torch

        with self._lock, torch.inference_mode():
            if self._settings.scaling == "tile":
                pixels, to_8bit = _replace_non_numbers(pick(image, params)), library.stretch_contrast
            else:
                pixels, to_8bit = compose(image, params), _keep
            embeddings = self._initialize(pixels, to_8bit)
            classify = None if self._classifier is None else self._classifier.begin(pixels, embeddings)
            # A copy keeps the decoder's maps when the next block's maps replace them.
            deferred = functools.partial(self._generate, library.copy_generator(self._segmenter), image.shape[:2])
            labels = None if self._is_two_phase else deferred()
            self._segmenter.clear_state()
            self._predictor.reset_image()
        finish = deferred if labels is None else lambda: labels
        return finish if classify is None else functools.partial(_classify, finish, classify)

    def measure_work(self, shape: tuple[int, int]) -> float:
        """Return the number of tiles that the model takes for an image of this height and width."""
        if self._tile_shape is None or self._tile_halo is None:
            return 1.0
        return float(len(library.place_tiles(shape, self._tile_shape, self._tile_halo)))

    def _initialize(self, pixels: NDArray[Any], to_8bit: Callable[[NDArray[Any]], NDArray[np.uint8]]) -> dict[str, Any]:
        """Compute what the generator makes labels of, or take it over from a variant; return the embeddings."""
        image = (
            pixels.shape,
            hashlib.sha256(np.ascontiguousarray(pixels).data).digest() if self._shared.is_kept else b"",
        )
        embeddings, seconds = self._shared.take(("embeddings", image), lambda: self._embed(pixels, to_8bit))

        def initialize() -> Any:
            # From here on micro-sam's generators use only the image's shape.
            self._segmenter.initialize(image=pixels, image_embeddings=embeddings, verbose=False)
            return library.copy_generator(self._segmenter)

        self.reused_seconds = seconds
        if self._mode != "ais":
            initialize()
        else:
            decoded, seconds = self._shared.take(("maps", image), initialize)
            self.reused_seconds += seconds
            self._segmenter = copy_maps(library.copy_generator(decoded)) if self._shared.is_kept else decoded
        return dict(embeddings)

    def _generate(self, generator: Any, shape: tuple[int, int]) -> NDArray[np.integer[Any]]:
        """Make the labels of the block that a generator was initialised with."""
        with contextlib.redirect_stderr(io.StringIO()) if self._is_verbose else contextlib.nullcontext():
            labels = generator.generate(**self._generate_options)
        # So that the deferred function doesn't keep the maps.
        generator.clear_state()
        return labels if isinstance(labels, np.ndarray) else np.zeros(shape, np.uint32)

    @property
    def arithmetic(self) -> Arithmetic:
        """How the image encoder computes."""
        return Arithmetic(self._encoder.precision, self._encoder.batch_size)

    def _embed(self, pixels: NDArray[Any], to_8bit: Callable[[NDArray[Any]], NDArray[np.uint8]]) -> dict[str, Any]:
        """Compute the embeddings of an image, whole or in tiles, each converted by `to_8bit`."""
        if self._tile_shape is None or self._tile_halo is None:
            return self._encoder.encode_image(to_8bit(pixels))
        shape = (pixels.shape[0], pixels.shape[1])
        return self._encoder.encode_tiles(
            shape, self._tile_shape, self._tile_halo, lambda place: to_8bit(pixels[place])
        )


def _classify(
    finish: Callable[[], NDArray[np.integer[Any]]], classify: Callable[[NDArray[np.integer[Any]]], Votes]
) -> ClassifiedLabels:
    labels = finish()
    return ClassifiedLabels(labels, classify(labels))


def _keep(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels


def read_tiling(settings: MicroSam) -> tuple[Pair | None, Pair | None]:
    """Return tile shape and halo, or nothing; an `auto` that `sizes.with_tiles` hasn't replaced counts as off."""
    shape, halo = settings.tile_shape, settings.tile_halo
    if isinstance(shape, str):
        return None, None
    return shape, (shape[0] // 4, shape[1] // 4) if isinstance(halo, str) else halo


def read_field(settings: MicroSam) -> int | None:
    """Return the side of the square that SAM sees, in pixels; None = whatever a block is, for an `auto` that stayed."""
    shape, halo = read_tiling(settings)
    if settings.field != "auto" or shape is None or halo is None:
        return None if settings.field == "auto" else settings.field
    return max(shape[0] + 2 * halo[0], shape[1] + 2 * halo[1])


def _is_tiled(settings: MicroSam) -> bool:
    return read_tiling(settings)[0] is not None


def _load_model(settings: MicroSam, name: str, weights: Weights, device: str) -> library.Model:
    """Load the model of these weights, and check that it is the one that the settings name."""
    try:
        model = library.load_model(name, weights.checkpoint, weights.decoder, device, is_trusted=weights.is_trusted)
    except _UNLOADABLE as error:
        is_refused = isinstance(error, pickle.UnpicklingError) and not weights.is_trusted
        raise SegmenterError(
            f"{weights.checkpoint} can't be loaded as weights of SAM ({_shorten(error)})",
            make_trust_cure(settings, weights) if is_refused else "",
        ) from error
    actual = model.architecture
    if settings.model != "auto" and actual != find_architecture(name):
        raise SegmenterError(
            f"{weights.checkpoint} holds weights of {actual}, not {name}", f"set segmenter.model: {actual}"
        )
    return model


def _shorten(error: Exception) -> str:
    """Take what is wrong out of torch's page of advice."""
    reason = str(error).partition("WeightsUnpickler error: ")[2].partition("\n")[0]
    return in_one_line(reason or error, 300)


def _choose_mode(settings: MicroSam, weights: Weights, has_decoder: bool) -> str:
    if settings.mode == "auto":
        return "ais" if has_decoder else "amg"
    if settings.mode != "amg" and not has_decoder:
        raise make_decoder_error(settings.mode, str(weights.checkpoint))
    return settings.mode


def _replace_non_numbers(image: NDArray[Any]) -> NDArray[Any]:
    """Replace NaN and infinity by the image's smallest number: either would spoil micro-sam's minimum."""
    is_number = np.isfinite(image)
    if is_number.all():
        return image
    return np.where(is_number, image, image[is_number].min() if is_number.any() else 0)
