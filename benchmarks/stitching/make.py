"""Makes cases: a scene, and what each block sees of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import zarr

from benchmarks.stitching.case import Case
from benchmarks.stitching.noise import Noise, seen_by_block
from benchmarks.stitching.scenes import SCENES


def make_case(
    folder: Path, scene: str, noise: Noise, seed: int, *, side: int = 2048, block: int = 256, halo: int = 32
) -> Case:
    """Writes a case.

    Args:
        folder: Where to; what is there is replaced.
        scene: One of `SCENES`.
        noise: How each block errs.
        seed: Of the scene and of all chance; the same scene for every kind of noise.
        side: Of the scene, in pixels.
        block: Side of a block, in pixels.
        halo: In pixels.
    """
    shutil.rmtree(folder, ignore_errors=True)
    case = Case(folder, (side, side), (block, block), halo)
    case.save()
    truth = SCENES[scene](side, np.random.default_rng(seed))
    zarr.save_array(folder / "truth.zarr", truth)
    blocks = case.create_blocks()
    rng = np.random.default_rng([seed, 1])
    for block_id in range(len(case)):
        seen = seen_by_block(truth, case.outer(block_id), noise, rng)
        blocks[block_id, : seen.shape[0], : seen.shape[1]] = seen
    return case
