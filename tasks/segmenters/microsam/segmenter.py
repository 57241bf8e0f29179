"""micro-sam's automatic segmentation of one block: its own code, with slide-wide intensities unless asked otherwise.

Importing this module loads neither torch nor micro_sam; making a `MicroSamSegmenter` does, and takes about 15 s.

1. `MicroSamSegmenter(...)` loads model, decoder and generator once per process and checks every option's name.
2. `prepare` finds the channels or stains that SAM is to see, and the slide's range of each (`inputs`).
3. `segment` computes embeddings, then micro-sam's generator makes labels of them.

With `scaling: tile` the labels are those of micro-sam's `automatic_instance_segmentation(..., ndim=2)`. With `scaling:
slide` only the way to 8 bit differs: micro-sam stretches whatever it is given by the minimum and maximum of that tile, so
that one cell looks different in two tiles (micro-sam issue 1114), and undoes any scaling done before; so here the
predictor is given pixels that are 8 bit already, by the slide's range, past that step.

References:
    Archit et al., Segment Anything for Microscopy. Nature Methods 22, 2025. doi:10.1038/s41592-024-02580-4
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import inspect
import io
import pickle
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SegmenterError, in_one_line
from slidesam.tasks.segmenters.microsam.encoder import Encoder
from slidesam.tasks.segmenters.microsam.inputs import check_inputs, compose, intensity_range, pick, ranges, to_rgb8
from slidesam.tasks.segmenters.microsam.weights import Weights, find_weights, model_identity, model_name, no_decoder
from slidesam.tasks.segmenters.torch_host import choose_device, keep_to_threads
from slidesam.tasks.settings.methods import MicroSam
from slidesam.tasks.settings.types import Pair

if TYPE_CHECKING:
    from slidesam.tasks.slides.facts import Slide

__all__ = ["MicroSamSegmenter", "intensity_range", "model_identity", "model_name", "to_rgb8"]

_GENERATORS = {
    "amg": "AutomaticMaskGenerator",
    "ais": "InstanceSegmentationWithDecoder",
    "apg": "AutomaticPromptGenerator",
}
# Parameters of micro-sam's generators that are slidesam's to set, or that a settings file can't hold.
_OURS = frozenset(
    [
        *("self", "predictor", "decoder", "verbose", "output_mode", "tile_shape", "halo", "n_threads"),
        *("segmentation", "optimize_memory", "prompt_function", "point_grids"),
    ]
)
_UNLOADABLE = (
    *(
        ArithmeticError,
        AttributeError,
        EOFError,
        ImportError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ),
    pickle.UnpicklingError,
)


class MicroSamSegmenter:
    """micro-sam's generators as a segmenter; holds the model, so make it once per process.

    Torch uses OMP_NUM_THREADS threads where that is set.

    Args:
        settings: The segmenter's settings.
        is_rgb: Whether the slide is red, green and blue.

    Attributes:
        device: Where the model is: cpu, cuda or mps.

    Raises:
        SegmenterError: micro-sam, the weights, the device or an option isn't there; the message says what to do.
    """

    def __init__(self, settings: MicroSam, is_rgb: bool) -> None:
        weights = find_weights(settings, is_rgb)
        from micro_sam.automatic_segmentation import get_predictor_and_segmenter

        keep_to_threads()
        device = self.device = choose_device(settings.device)
        predictor, state = _load_model(settings, model_name(settings, is_rgb), weights, device)
        mode = _mode(settings, weights, "decoder_state" in state)
        made_with, self._generate_with = _split_options(settings, mode)
        try:
            self._predictor, self._segmenter = get_predictor_and_segmenter(
                predictor.model_name,
                device=device,
                segmentation_mode=mode,
                is_tiled=_is_tiled(settings),
                predictor=predictor,
                state=state,
                **made_with,
            )
        except _UNLOADABLE as error:
            raise SegmenterError(f"micro-sam can't make its {mode} generator: {in_one_line(error, 300)}") from error
        self._settings = settings
        self._is_rgb = is_rgb
        self._tile_shape, self._tile_halo = tiling(settings)
        if mode == "ais" and self._tile_shape is not None:
            # As automatic_instance_segmentation does, but with one thread: python-elf smooths the maps in place, tile by
            # tile, and threads read each other's half-smoothed borders, so that labels differ from run to run.
            self._generate_with |= {"tile_shape": self._tile_shape, "halo": self._tile_halo, "n_threads": 1}
        self._has_rest = mode == "ais"
        # It draws its progress bar whatever `verbose` says.
        self._is_chatty = mode == "apg" and self._tile_shape is not None
        self._encoder = Encoder(self._predictor, settings.batch_size, settings.precision)
        # The predictor holds the current image: threads of one worker must take turns.
        self._lock = threading.Lock()

    def prepare(self, sample: NDArray[Any], slide: Slide) -> dict[str, Any]:
        """The slide's intensity range, or nothing where each tile is scaled by itself; and what `inputs` names.

        Args:
            sample: (y, x[, c]) pixels of the slide, any numeric dtype.
            slide: Its channels, of which `inputs` names some; not looked at where it names none.

        Returns:
            {"low": [...], "high": [...]} as `intensity_range` has it, {} for `scaling: tile`. Where `inputs` names
            something: what `ranges` returns, what `resolve` returns for `scaling: tile`.

        Raises:
            SegmenterError: `inputs` names what the slide doesn't have.
        """
        is_by_tile = self._settings.scaling == "tile"
        if self._settings.inputs:
            plan = check_inputs(self._settings, slide)
            return plan if is_by_tile else ranges(sample, plan)
        return {} if is_by_tile else intensity_range(sample, self._is_rgb)

    def segment(self, image: NDArray[Any], params: Mapping[str, Any]) -> NDArray[np.integer[Any]]:
        """Labels of one block; threads that call it take turns.

        Args:
            image: (y, x[, c]) any numeric dtype; without `inputs` the first three channels are used.
            params: What `prepare` returned.

        Returns:
            (y, x) uint64 (ais) or uint32 (amg, apg), 0 = background; all 0 where nothing was found.

        Raises:
            SegmenterError: `params` are for another number of channels.
        """
        return self.begin(image, params)()

    def begin(self, image: NDArray[Any], params: Mapping[str, Any]) -> Callable[[], NDArray[np.integer[Any]]]:
        """The part of `segment` that wants the device; the function that is returned does the rest.

        For AIS the rest is the watershed of the decoder's maps, on the host. The other modes ask the model for masks as they
        go, so that nothing is left of them.
        """
        import torch

        with self._lock, torch.inference_mode():
            if self._settings.scaling == "tile":
                pixels, seen = _finite(pick(image, params)), _stretched
            else:
                pixels, seen = compose(image, params), _as_it_is
            embeddings = self._embeddings(pixels, seen)
            # From here on micro-sam's generators look at the image's shape only.
            self._segmenter.initialize(image=pixels, image_embeddings=embeddings, verbose=False)
            # A copy, which keeps the decoder's maps when the next block's replace them.
            rest = functools.partial(self._generate, copy.copy(self._segmenter), image.shape[:2])
            labels = None if self._has_rest else rest()
            self._segmenter.clear_state()
            self._predictor.reset_image()
        return rest if labels is None else lambda: labels

    def _generate(self, generator: Any, shape: tuple[int, int]) -> NDArray[np.integer[Any]]:
        """Labels of the block that a generator was initialised with."""
        with contextlib.redirect_stderr(io.StringIO()) if self._is_chatty else contextlib.nullcontext():
            labels = generator.generate(**self._generate_with)
        # Whoever holds the function that did this need not hold the maps.
        generator.clear_state()
        return labels if isinstance(labels, np.ndarray) else np.zeros(shape, np.uint32)

    @property
    def computing(self) -> dict[str, Any]:
        """What else labels may hang on: `precision`, and `batch_size` as far as memory sufficed."""
        return {"precision": self._encoder.precision, "batch_size": self._encoder.batch_size}

    def _embeddings(self, pixels: NDArray[Any], seen: Callable[[NDArray[Any]], NDArray[np.uint8]]) -> dict[str, Any]:
        """What SAM's encoder makes of an image, whole or in tiles; `seen` makes 8 bit of what it is given."""
        if self._tile_shape is None or self._tile_halo is None:
            return self._encoder.whole(seen(pixels))
        shape = (pixels.shape[0], pixels.shape[1])
        return self._encoder.tiled(shape, self._tile_shape, self._tile_halo, lambda place: seen(pixels[place]))


def _stretched(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """As micro-sam does it: each channel by its own minimum and maximum."""
    from micro_sam.util import _to_image

    rgb: NDArray[np.uint8] = _to_image(pixels)
    return rgb


def _as_it_is(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return pixels


def tiling(settings: MicroSam) -> tuple[Pair | None, Pair | None]:
    """Tiles and their halo, or nothing; `auto` that wasn't made numbers (`sizes.with_sizes`) counts as off."""
    shape, halo = settings.tile_shape, settings.tile_halo
    if isinstance(shape, str):
        return None, None
    return shape, (shape[0] // 4, shape[1] // 4) if isinstance(halo, str) else halo


def _is_tiled(settings: MicroSam) -> bool:
    return tiling(settings)[0] is not None


def _load_model(settings: MicroSam, name: str, weights: Weights, device: str) -> tuple[Any, dict[str, Any]]:
    """micro-sam's predictor and the checkpoint's content, from files: given a path, micro-sam asks no server."""
    from micro_sam.util import get_sam_model

    # micro-sam puts an unpickler that skips what it can't find into the standard library, for good: taken out again.
    unpickler = pickle.Unpickler
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            predictor, state = get_sam_model(
                name,
                device=device,
                checkpoint_path=weights.checkpoint,
                decoder_path=weights.decoder,
                return_state=True,
            )
    except _UNLOADABLE as error:
        raise SegmenterError(
            f"{weights.checkpoint} can't be loaded as weights of SAM: {in_one_line(error, 300)}"
        ) from error
    finally:
        pickle.Unpickler = unpickler  # type: ignore[misc]
    found = predictor.model_type
    if settings.model != "auto" and found != name[:5]:
        raise SegmenterError(
            f"{weights.checkpoint} holds weights of {found}, not {name}", f"set segmenter.model: {found}"
        )
    return predictor, state


def _mode(settings: MicroSam, weights: Weights, has_decoder: bool) -> str:
    if settings.mode == "auto":
        return "ais" if has_decoder else "amg"
    if settings.mode != "amg" and not has_decoder:
        raise no_decoder(settings.mode, str(weights.checkpoint))
    return settings.mode


def _split_options(settings: MicroSam, mode: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that make the generator, and those of each call of its `generate`."""
    from micro_sam import instance_segmentation

    tiled = "Tiled" if _is_tiled(settings) else ""
    generator = getattr(instance_segmentation, tiled + _GENERATORS[mode])
    of_init = inspect.signature(generator.__init__).parameters.keys() - _OURS
    of_generate = inspect.signature(generator.generate).parameters.keys() - _OURS
    for option in settings.options:
        if option not in of_init | of_generate:
            why = "is slidesam's to set" if option in _OURS else f"is unknown to micro-sam's {generator.__name__}"
            known = ", ".join(sorted(of_init | of_generate))
            raise SegmenterError(f"segmenter.options.{option} {why}", f"options of mode {mode} are {known}")
    if settings.scaling == "slide" and settings.options.get("crop_n_layers", 0):
        raise SegmenterError(
            "segmenter.options.crop_n_layers makes micro-sam stretch every crop by itself",
            "set segmenter.scaling: tile",
        )
    if settings.options.get("min_mask_region_area", 0) and importlib.util.find_spec("cv2") is None:
        raise SegmenterError(
            "segmenter.options.min_mask_region_area needs OpenCV", "pip install opencv-python-headless, or leave it out"
        )
    made_with = {key: value for key, value in settings.options.items() if key in of_init}
    return made_with, {key: value for key, value in settings.options.items() if key in of_generate}


def _finite(image: NDArray[Any]) -> NDArray[Any]:
    """The image, with NaN and infinity replaced by its smallest number: one would spoil micro-sam's own minimum."""
    is_number = np.isfinite(image)
    if is_number.all():
        return image
    return np.where(is_number, image, image[is_number].min() if is_number.any() else 0)
