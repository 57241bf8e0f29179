"""Sort micro-sam's own options, `segmenter.options`, and refuse those that it doesn't know or that can't work."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters.microsam import library
from slidesam.tasks.settings.methods import MicroSam

# Parameters of micro-sam's generators that are slidesam's to set, or that a settings file can't hold.
_RESERVED = frozenset(
    [
        *("self", "predictor", "decoder", "verbose", "output_mode", "tile_shape", "halo", "n_threads"),
        *("segmentation", "optimize_memory", "prompt_function", "point_grids"),
    ]
)


def split_options(settings: MicroSam, mode: str, *, is_tiled: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the options into those of the generator's class and those of each call of its `generate`.

    Args:
        settings: The segmenter's settings.
        mode: ais, amg or apg.
        is_tiled: Whether a block is cut into tiles.

    Raises:
        SegmenterError: micro-sam doesn't know an option, or it can't be used.
    """
    generator = library.find_generator_class(mode, is_tiled=is_tiled)
    init_names = inspect.signature(generator.__init__).parameters.keys() - _RESERVED
    generate_names = inspect.signature(generator.generate).parameters.keys() - _RESERVED
    for option in settings.options:
        if option not in init_names | generate_names:
            reason = (
                "is slidesam's to set" if option in _RESERVED else f"is unknown to micro-sam's {generator.__name__}"
            )
            names = ", ".join(sorted(init_names | generate_names))
            raise SegmenterError(f"segmenter.options.{option} {reason}", f"options of mode {mode} are {names}")
    if settings.scaling == "slide" and settings.options.get("crop_n_layers", 0):
        raise SegmenterError(
            "segmenter.options.crop_n_layers makes micro-sam stretch every crop by itself",
            "set segmenter.scaling: tile",
        )
    if settings.options.get("min_mask_region_area", 0) and importlib.util.find_spec("cv2") is None:
        raise SegmenterError(
            "segmenter.options.min_mask_region_area needs OpenCV", "pip install opencv-python-headless, or leave it out"
        )
    init_options = {key: value for key, value in settings.options.items() if key in init_names}
    generate_options = {key: value for key, value in settings.options.items() if key in generate_names}
    # By default micro-sam's AMG drops the largest object of what it segments: of each block, here.
    return init_options, {"with_background": False} | generate_options if mode == "amg" else generate_options
