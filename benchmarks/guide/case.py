"""What all methods are given: the image, the weights, micro-sam's options, and how blocks are tiled."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
# Named so by micro_sam.sample_data, in the folder sample_data of micro-sam's cache.
_WHOLE_SLIDE = "whole-slide-example-image.tif"
_LEAST_SIDE = 1024
# So that a process keeps memory that it has freed: micro-sam on the CPU takes 0.6 of the time (benchmarks/block.py). slidesam's
# local workers always do; sequential micro-sam is given the same.
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**35), "MALLOC_TRIM_THRESHOLD_": str(2**35), "MALLOC_ARENA_MAX": "1"}
# With random weights AMG's own thresholds let next to nothing through.
RANDOM_AMG = {"stability_score_thresh": 0.3, "box_nms_thresh": 0.5}
# Which of micro-sam's options make its generator; the others go to `generate`.
OF_INIT = ("points_per_side", "points_per_batch", "stability_score_offset")


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        folder: Scratch folder, with room for image, stores and weights.
        image: .npy file of the (y, x[, c]) image, which micro-sam is given.
        slide: TIFF of the same pixels without loss, which slidesam is given.
        name: What the image is, in words.
        shape: Its height and width in pixels.
        mode: micro-sam's: ais or amg.
        model: Name in micro-sam's registry; with a checkpoint, its architecture.
        checkpoint: File of weights; None = those of the registry, in micro-sam's cache.
        weights: What the weights are, in words.
        device: cpu or cuda.
        threads: Of sequential micro-sam, and of all of slidesam's workers together.
        mpp: Pixel size in µm.
        scaling: Intensities to 8 bit by tile, as micro-sam does, or by slide.
        options: micro-sam's generator options by their names.
        settings: Further settings of slidesam, by dotted name.
        small: Whether micro-sam's networks are made small (tests/support/microsam_small.py): a smoke test, times mean nothing.
    """

    folder: Path
    image: Path
    slide: Path
    name: str
    shape: tuple[int, int]
    mode: str
    model: str
    checkpoint: Path | None
    weights: str
    device: str
    threads: int
    mpp: float
    scaling: str = "tile"
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    small: bool = False


@dataclass(frozen=True)
class Tiling:
    """How a chunk is shown to SAM.

    Attributes:
        block: Side of what a block owns, the guide's chunk, in pixels.
        halo: What it reads beyond on each side, in pixels.
        tile: Side of micro-sam's tiles inside, in pixels; None = the window is one.
        tile_halo: Their overlap per side, in pixels.
        passes: Encoder passes that a block takes.
    """

    block: int
    halo: int
    tile: int | None
    tile_halo: int
    passes: int


def tiling_of(chunk: int, tile: int, fitted: bool = True) -> Tiling:
    """How slidesam is told to segment a chunk of the guide's by tiles of a shape.

    The guide's chunks end where they end; a block's window is wider by its halo. Cut from the window's corner, tiles of the very
    same shape would leave a rim for which micro-sam takes another row and column of tiles: 4 passes for 1 where tile and chunk
    are the same. Fitted ones are as much larger as the window is, so that there are as many as in the chunk. SAM sees a tile
    with its overlap of a quarter on each side, 1.5 tiles; fitted ones are between 1.25 and 1.75, and exactly 1.5 where a chunk
    is one or two tiles wide.

    Args:
        chunk: Side of the guide's chunk in pixels.
        tile: Side of a tile in pixels, no more than the chunk.
        fitted: Whether tiles fit the window, or have the shape as it is.

    Example:
        >>> tiling_of(1024, 512)
        Tiling(block=1024, halo=128, tile=640, tile_halo=128, passes=4)
        >>> tiling_of(1024, 1024).tile is None, tiling_of(1024, 1024, fitted=False).passes
        (True, 4)
    """
    halo = tile // 4
    window = chunk + 2 * halo
    across = max(1, chunk // tile)
    if fitted and across == 1:
        return Tiling(chunk, halo, None, halo, 1)
    shape = -(-window // across) if fitted else tile
    return Tiling(chunk, halo, shape, halo, (-(-window // shape)) ** 2)


def ours_settings(case: Case, tiling: Tiling) -> dict[str, Any]:
    """What slidesam is told, by dotted name: to segment all blocks, with the same model and options."""
    segmenter: dict[str, Any] = {
        "kind": "micro-sam", "mode": case.mode, "model": case.model, "device": case.device, "scaling": case.scaling,
        "tile_shape": tiling.tile or "off", "tile_halo": tiling.tile_halo, "options": case.options,
    }  # fmt: skip
    if case.checkpoint is not None:
        segmenter["checkpoint"] = str(case.checkpoint)
    blocks = {"blocks.block_shape": tiling.block, "blocks.halo": tiling.halo, "blocks.tissue": "off"}
    named = {f"segmenter.{key}": value for key, value in segmenter.items()}
    return {"slide.mpp": case.mpp, **blocks, **named, **case.settings}


def default_image(side: int) -> tuple[NDArray[np.uint8], str]:
    """The guide's own image if it lies in micro-sam's cache, else slidesam's demo image; nothing is fetched."""
    path = _cached_example()
    if path is not None:
        image, _ = read_image(path, side)
        return image, "micro-sam's whole-slide example"
    from slidesam.tasks.folder.demo import demo_image

    # A smaller one it can't make.
    image = np.ascontiguousarray(demo_image(max(side, _LEAST_SIDE))[:side, :side])
    return image, "slidesam's demo image (scikit-image's immunohistochemistry, mirrored)"


def _cached_example() -> Path | None:
    folder = os.environ.get("MICROSAM_CACHEDIR")
    if folder is None:
        try:
            import pooch
        except ImportError:
            return None
        folder = str(pooch.os_cache("micro_sam"))
    path = Path(folder).expanduser() / "sample_data" / _WHOLE_SLIDE
    return path if path.is_file() else None


def read_image(path: Path, side: int | None) -> tuple[NDArray[Any], str]:
    """(y, x[, c]) pixels of an image file's first page, its middle if it is larger than wanted, and its name."""
    if path.suffix == ".npy":
        image = np.load(path)
    elif path.suffix.lower() in (".tif", ".tiff", ".svs", ".ndpi"):
        image = tifffile.imread(path, key=0)
    else:
        from skimage.io import imread

        image = imread(path)
    if image.ndim == 3:
        image = image[..., :3] if image.shape[2] >= 3 else image[..., 0]
    if image.ndim != 2 and image.ndim != 3:
        raise SystemExit(f"{path} has shape {image.shape}: (y, x) or (y, x, c) is needed")
    return np.ascontiguousarray(image[_middle(image.shape[0], side), _middle(image.shape[1], side)]), path.name


def _middle(size: int, side: int | None) -> slice:
    if side is None or side >= size:
        return slice(0, size)
    return slice((size - side) // 2, (size - side) // 2 + side)


def write_image(folder: Path, image: NDArray[Any]) -> tuple[Path, Path]:
    """The same pixels as .npy for micro-sam and as a tiled TIFF for slidesam."""
    folder.mkdir(parents=True, exist_ok=True)
    array, slide = folder / "image.npy", folder / "slide.tif"
    np.save(array, image)
    photometric = "rgb" if image.ndim == 3 else "minisblack"
    tifffile.imwrite(slide, image, tile=(256, 256), compression="zlib", photometric=photometric)
    return array, slide


def random_weights(path: Path, small: bool) -> Path:
    """A ViT-B with decoder and random weights, made unless it is there (400 MB; small networks: 40)."""
    if not path.exists():
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.support.microsam_checkpoint",
            str(path),
            *["--small"] * small,
        ]
        subprocess.run(command, check=True, cwd=ROOT)
    return path
