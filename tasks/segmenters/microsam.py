"""micro-sam's automatic segmentation of one block: its own code, with slide-wide intensities unless asked otherwise.

Importing this module loads neither torch nor micro_sam; making a `MicroSamSegmenter` does, and takes about 15 s.

1. `MicroSamSegmenter(...)` loads model, decoder and generator once per process and checks every option's name.
2. `prepare` chooses the slide's intensity range.
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
import importlib.util
import inspect
import io
import os
import pickle
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.config import MicroSam, Pair
from slidesam.tasks.errors import SegmenterError, in_one_line
from slidesam.tasks.segmenters.microsam_weights import Weights, find_weights, model_identity, model_name, no_decoder

if TYPE_CHECKING:
    from slidesam.tasks.slide import Slide

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
_PERCENTILES = (0.1, 99.9)
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


def intensity_range(sample: NDArray[Any], is_rgb: bool) -> dict[str, list[float]]:
    """The intensities that become 0 and 255 on the whole slide.

    - 8 bit red, green and blue: 0 and the 99.9th percentile of the brightest channel, one range for all three. Such
      pixels were made for the eye, and micro-sam's own training takes 8 bit as it is (`training.util.require_8bit`); a
      range per channel would shift the stains' colours.
    - All else: percentiles 0.1 and 99.9 of each channel, so that a few hot or dead pixels don't decide.

    Args:
        sample: (y, x[, c]) pixels of the slide, any numeric dtype; NaN and infinity are left out.
        is_rgb: Whether the channels are red, green and blue.

    Returns:
        {"low": [...], "high": [...]}, one number for each of the first three channels; high > low on a blank slide too.

    Example:
        >>> intensity_range(np.full((4, 4), 7), is_rgb=False)
        {'low': [7.0], 'high': [8.0]}
    """
    low, high = [], []
    for channel in np.moveaxis(_planes(sample), -1, 0):
        numbers = channel[np.isfinite(channel)]
        ends = np.percentile(numbers, _PERCENTILES) if numbers.size else (0.0, 1.0)
        low.append(float(ends[0]))
        high.append(float(ends[1]))
    if is_rgb and sample.dtype == np.uint8:
        low, high = [0.0] * len(low), [max(high)] * len(high)
    high = [top if top > bottom else bottom + 1.0 for bottom, top in zip(low, high, strict=True)]
    return {"low": low, "high": high}


def to_rgb8(image: NDArray[Any], params: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Pixels as SAM's encoder takes them, by a fixed range; channels are filled up to three as micro-sam does.

    Args:
        image: (y, x[, c]) any numeric dtype. One channel is repeated, after two comes a zero one, only three are used.
        params: "low" and "high" as `intensity_range` returns them.

    Returns:
        (y, x, 3) uint8: low and below become 0, high and above 255, NaN 0.

    Raises:
        SegmenterError: The range is for another number of channels.

    Example:
        >>> to_rgb8(np.array([[0, 100, 150, 300]]), {"low": [100.0], "high": [200.0]})[0, :, 0].tolist()
        [0, 0, 128, 255]
    """
    planes = _planes(image)
    low, high = params.get("low", ()), params.get("high", ())
    n_channels = planes.shape[-1]
    if not len(low) == len(high) == n_channels:
        raise SegmenterError(f"the slide's intensity range is for {len(low)} channels, but the block has {n_channels}")
    rgb = np.zeros((*planes.shape[:2], 3), np.uint8)
    for channel, (bottom, top) in enumerate(zip(low, high, strict=True)):
        scaled = np.clip((planes[..., channel].astype(np.float64) - bottom) / (top - bottom), 0, 1)
        rgb[..., channel] = np.rint(np.nan_to_num(scaled) * 255)
    if n_channels == 1:
        rgb[..., 1:] = rgb[..., :1]
    return rgb


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
        import torch
        from micro_sam.automatic_segmentation import get_predictor_and_segmenter

        threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
        if threads.isdigit() and int(threads) > 0:
            torch.set_num_threads(int(threads))
        device = self.device = _device(settings.device)
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
        # It draws its progress bar whatever `verbose` says.
        self._is_chatty = mode == "apg" and self._tile_shape is not None
        # The predictor holds the current image: threads of one worker must take turns.
        self._lock = threading.Lock()

    def prepare(self, sample: NDArray[Any], slide: Slide) -> dict[str, Any]:
        """The slide's intensity range, or nothing where each tile is scaled by itself.

        Args:
            sample: (y, x[, c]) pixels of the slide, any numeric dtype.
            slide: Not needed: what counts is in the sample.

        Returns:
            {"low": [...], "high": [...]} as `intensity_range` has it; {} for `scaling: tile`.
        """
        return {} if self._settings.scaling == "tile" else intensity_range(sample, self._is_rgb)

    def segment(self, image: NDArray[Any], params: Mapping[str, Any]) -> NDArray[np.integer[Any]]:
        """Labels of one block; threads that call it take turns.

        Args:
            image: (y, x[, c]) any numeric dtype; micro-sam uses the first three channels.
            params: What `prepare` returned.

        Returns:
            (y, x) uint64 (ais) or uint32 (amg, apg), 0 = background; all 0 where nothing was found.

        Raises:
            SegmenterError: `params` are for another number of channels.
        """
        import torch

        with self._lock, torch.no_grad():
            if self._settings.scaling == "tile":
                pixels = _finite(image if image.ndim == 2 else image[..., :3])
                embeddings = self._embeddings_stretched(pixels)
            else:
                pixels = to_rgb8(image, params)
                embeddings = self._embeddings(pixels)
            # From here on micro-sam's generators look at the image's shape only.
            self._segmenter.initialize(image=pixels, image_embeddings=embeddings, verbose=False)
            with contextlib.redirect_stderr(io.StringIO()) if self._is_chatty else contextlib.nullcontext():
                labels = self._segmenter.generate(**self._generate_with)
            self._segmenter.clear_state()
            self._predictor.reset_image()
        return labels if isinstance(labels, np.ndarray) else np.zeros(image.shape[:2], np.uint32)

    def _embeddings_stretched(self, image: NDArray[Any]) -> dict[str, Any]:
        from micro_sam.util import precompute_image_embeddings

        embeddings: dict[str, Any] = precompute_image_embeddings(
            self._predictor, image, ndim=2, tile_shape=self._tile_shape, halo=self._tile_halo, verbose=False
        )
        return embeddings

    def _embeddings(self, rgb: NDArray[np.uint8]) -> dict[str, Any]:
        """What `precompute_image_embeddings` returns, for pixels that are 8 bit already and stay as they are."""
        if self._tile_shape is None or self._tile_halo is None:
            return self._encode(rgb)
        import zarr
        from micro_sam.util import Blocking

        features = zarr.group().require_group("features")
        features.attrs.update({"shape": rgb.shape[:2], "tile_shape": self._tile_shape, "halo": self._tile_halo})
        tiling = Blocking([0, 0], rgb.shape[:2], self._tile_shape)
        for tile_id in range(tiling.number_of_blocks):
            tile = tiling.get_block_with_halo(tile_id, list(self._tile_halo)).outer_block
            encoded = self._encode(rgb[tile.begin[0] : tile.end[0], tile.begin[1] : tile.end[1]])
            data = encoded.pop("features")
            array = features.create_array(str(tile_id), data=data, chunks=data.shape, compressors=None)
            array.attrs.update(encoded)
        return {"features": features, "input_size": None, "original_size": None}

    def _encode(self, rgb: NDArray[np.uint8]) -> dict[str, Any]:
        """One encoder pass: (y, x, 3) uint8 → (1, 256, 64, 64) float32, and the sizes that lead back to pixels."""
        self._predictor.set_image(np.ascontiguousarray(rgb))
        return {
            "features": self._predictor.get_image_embedding().cpu().numpy(),
            "input_size": self._predictor.input_size,
            "original_size": self._predictor.original_size,
        }


def tiling(settings: MicroSam) -> tuple[Pair | None, Pair | None]:
    """Tiles and their halo, or nothing; `auto` that wasn't made numbers (`sizes.with_sizes`) counts as off."""
    shape, halo = settings.tile_shape, settings.tile_halo
    if isinstance(shape, str):
        return None, None
    return shape, (shape[0] // 4, shape[1] // 4) if isinstance(halo, str) else halo


def _is_tiled(settings: MicroSam) -> bool:
    return tiling(settings)[0] is not None


def _device(wanted: str) -> str:
    import torch

    is_there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and torch.backends.mps.is_built(),
        "cpu": True,
    }
    here = [name for name in is_there if is_there[name]]
    if wanted == "auto":
        return here[0]
    if wanted not in here:
        raise SegmenterError(
            f"segmenter.device is {wanted}, but torch {torch.__version__} only has {', '.join(here)} on this machine: "
            "let the profile ask for a GPU, or set segmenter.device: auto"
        )
    return wanted


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
        raise SegmenterError(f"{weights.checkpoint} holds weights of {found}, not {name}: set segmenter.model: {found}")
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
            raise SegmenterError(f"segmenter.options.{option} {why}: options of mode {mode} are {known}")
    if settings.scaling == "slide" and settings.options.get("crop_n_layers", 0):
        raise SegmenterError(
            "segmenter.options.crop_n_layers makes micro-sam stretch every crop by itself: set segmenter.scaling: tile"
        )
    if settings.options.get("min_mask_region_area", 0) and importlib.util.find_spec("cv2") is None:
        raise SegmenterError(
            "segmenter.options.min_mask_region_area needs OpenCV: pip install opencv-python-headless, or leave it out"
        )
    made_with = {key: value for key, value in settings.options.items() if key in of_init}
    return made_with, {key: value for key, value in settings.options.items() if key in of_generate}


def _planes(image: NDArray[Any]) -> NDArray[Any]:
    return image[..., None] if image.ndim == 2 else image[..., :3]


def _finite(image: NDArray[Any]) -> NDArray[Any]:
    """The image, with NaN and infinity replaced by its smallest number: one would spoil micro-sam's own minimum."""
    is_number = np.isfinite(image)
    if is_number.all():
        return image
    return np.where(is_number, image, image[is_number].min() if is_number.any() else 0)
