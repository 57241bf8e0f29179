"""micro-sam as its users call it: the reference that slidesam's labels are compared with.

Runs in a process of its own and imports micro_sam, NumPy and the standard library only, never slidesam.

    python -m tests.support.microsam_reference CASES.json

CASES.json is a list of objects with the keys `checkpoint`, `mode`, `image` and `labels` (.npy files, read and written),
and optionally `model`, `tile_shape`, `halo`, `init_options` and `generate_options` (for the generator's class and for its
`generate`), and `range`: {"low": [...], "high": [...]} per channel, which replaces micro-sam's own stretch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from micro_sam import util
from micro_sam.automatic_segmentation import automatic_instance_segmentation, get_predictor_and_segmenter

from tests.support.microsam_small import use_small_networks

_STRETCH = util._to_image


def segment(case: dict[str, Any]) -> np.ndarray:
    """(y, x) labels of one case."""
    tile_shape, halo = (tuple(case[key]) if case.get(key) else None for key in ("tile_shape", "halo"))
    predictor, segmenter = get_predictor_and_segmenter(
        case.get("model", "vit_b"),
        checkpoint=case["checkpoint"],
        segmentation_mode=case["mode"],
        is_tiled=tile_shape is not None,
        **case.get("init_options", {}),
    )
    return automatic_instance_segmentation(
        predictor,
        segmenter,
        np.load(case["image"]),
        ndim=2,
        tile_shape=tile_shape,
        halo=halo,
        verbose=False,
        **case.get("generate_options", {}),
    )


def by_range(low: list[float], high: list[float]) -> Any:
    """A `_to_image` for one or three channels that maps low..high to 0..255, whatever is in the image."""

    def to_image(image: np.ndarray) -> np.ndarray:
        planes = image.reshape(*image.shape[:2], -1)
        share = (planes - np.array(low)) / (np.array(high) - np.array(low))
        return np.broadcast_to(np.rint(share.clip(0, 1) * 255).astype("uint8"), (*image.shape[:2], 3)).copy()

    return to_image


if __name__ == "__main__":
    use_small_networks()
    for case in json.loads(Path(sys.argv[1]).read_text()):
        util._to_image = by_range(**case["range"]) if case.get("range") else _STRETCH
        np.save(case["labels"], segment(case))
