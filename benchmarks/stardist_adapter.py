"""The StarDist segmenter against StarDist itself: a test that isn't among the others, as TensorFlow takes 1.3 GB.

Makes an environment of its own, with slidesam, stardist and tensorflow-cpu, trains small models on drawn discs in it (a minute),
and compares: labels of the adapter with those of `predict_instances`, labels of blocks with those of the whole, refusals.

    .venv/bin/python -m benchmarks.stardist_adapter [--environment .venv-stardist]

Ends with 0 if all is as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.discs import draw_discs
from tests.support.same import score

ROOT = Path(__file__).resolve().parents[1]
N_TRAINING, SIDE = 6, 192


def main() -> None:
    """Makes the environment where it isn't there, and checks in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", type=Path, default=ROOT / ".venv-stardist")
    parser.add_argument("--inside", action="store_true", help="this is the environment")
    chosen = parser.parse_args()
    if chosen.inside:
        sys.exit(0 if check_all() else 1)
    python = make_environment(chosen.environment.resolve())
    command = [str(python), "-m", "benchmarks.stardist_adapter", "--inside"]
    sys.exit(subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode)


def make_environment(folder: Path) -> Path:
    """Its Python, with what a user installs: `slidesam[stardist]` and a TensorFlow."""
    python, uv = folder / "bin" / "python", str(Path(sys.executable).with_name("uv"))
    if not (folder / ".installed").exists():
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", "3.11", str(folder)], check=True)
        wanted = ["--editable", f"{ROOT}[stardist]", "tensorflow-cpu"]
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *wanted], check=True)
        (folder / ".installed").touch()
    return python


def check_all() -> bool:
    """Whether everything is as it should be; says each thing on a line."""
    import tensorflow

    tensorflow.keras.utils.set_random_seed(0)
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for words, is_right in _checks(Path(scratch)):
            print("ok    " if is_right else "FAILED", words, flush=True)
            failed += not is_right
    print(f"stardist {_version('stardist')}, tensorflow {tensorflow.__version__}: {failed} failed")
    return not failed


def _checks(scratch: Path) -> Iterator[tuple[str, bool]]:
    from slidesam.tasks.segmenters import segmenter_identity
    from slidesam.tasks.settings.methods import StarDist

    for n_channels in (1, 3):
        folder = train(scratch / f"model{n_channels}", n_channels)
        yield from _same_labels(folder, n_channels)
        yield from _refusals(folder, scratch / f"bad{n_channels}", n_channels)
        identity = segmenter_identity(StarDist(kind="stardist", model=str(folder)), n_channels == 3)
        yield f"identity: {identity}", identity.startswith("model sha256:") and ", tensorflow-cpu 2." in identity
        yield from _blocks(folder, scratch, n_channels)


def train(folder: Path, n_channels: int) -> Path:
    """Trains a small model on drawn discs; its folder."""
    from stardist.models import Config2D, StarDist2D

    started = time.perf_counter()
    drawn = [draw_discs((SIDE, SIDE), seed=200 + number) for number in range(N_TRAINING)]
    images = [_channels(image, n_channels).astype(np.float32) / 3000 - 1 / 3 for image, _ in drawn]
    labels = [each for _, each in drawn]
    config = Config2D(
        n_rays=16, n_channel_in=n_channels, grid=(2, 2), unet_n_depth=2, unet_n_filter_base=8, net_conv_after_unet=16,
        train_patch_size=(96, 96), train_batch_size=4, train_epochs=4, train_steps_per_epoch=40, train_learning_rate=3e-3,
        train_tensorboard=False,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model = StarDist2D(config, name=folder.name, basedir=str(folder.parent))
        model.train(images, labels, validation_data=(images[:1], labels[:1]))
        model.optimize_thresholds(images[:1], labels[:1])
    print(f"trained {folder.name} in {time.perf_counter() - started:.0f} s")
    return folder


def _same_labels(folder: Path, n_channels: int) -> Iterator[tuple[str, bool]]:
    """The adapter's labels are StarDist's own, of pixels that were normalised by the same percentiles."""
    from csbdeep.utils import normalize
    from stardist.models import StarDist2D

    from slidesam.tasks.segmenters.stardist import StarDistSegmenter
    from slidesam.tasks.settings.methods import StarDist

    image, truth = draw_discs((250, 330), seed=1)
    image = _channels(image, n_channels)
    alone = StarDist2D(None, name=folder.name, basedir=str(folder.parent))
    others = {"prob_thresh": 0.3, "nms_thresh": 0.2, "n_tiles": (2, 3)}
    for is_rgb, options in [(False, {}), (True, {}), (False, others)]:
        segmenter = StarDistSegmenter(StarDist(kind="stardist", model=str(folder), **options), is_rgb)
        labels = segmenter.segment(image, segmenter.prepare(image, None))
        pixels = normalize(image, 1, 99.8, axis=None if is_rgb else (0, 1))
        tiles = (*options["n_tiles"], *[1] * (image.ndim - 2)) if options else None
        expected, _ = alone.predict_instances(
            pixels, prob_thresh=options.get("prob_thresh"), nms_thresh=options.get("nms_thresh"), n_tiles=tiles,
            show_tile_progress=False,
        )  # fmt: skip
        differing, found = np.count_nonzero(labels != expected), score(labels, truth)
        what = f"{n_channels} channels, RGB {is_rgb}, {options or 'defaults'}: {labels.max()} objects of {truth.max()}"
        yield f"{what}, F1 {found:.2f}, {differing} px differ from StarDist's", differing == 0 and found > 0.8
    blank = segmenter.segment(np.full_like(image, 1000), segmenter.prepare(image, None))
    yield f"a blank block: {blank.max()} objects, {blank.dtype}", not blank.any()


def _refusals(folder: Path, bad: Path, n_channels: int) -> Iterator[tuple[str, bool]]:
    from slidesam.tasks.errors import SegmenterError
    from slidesam.tasks.segmenters.stardist import StarDistSegmenter
    from slidesam.tasks.settings.methods import StarDist

    def refused(words: str, model: Path, **options: Any) -> tuple[str, bool]:
        try:
            StarDistSegmenter(StarDist(kind="stardist", model=str(model), **options), False).prepare(image, None)
        except SegmenterError as error:
            return f"refused: {error}", words in str(error) and "\n" not in str(error)
        return f"not refused: {words}", False

    image = np.zeros((32, 32, 2), np.uint8)
    yield refused(f"takes {n_channels} channels, but is given 2", folder)
    yield refused("finds no GPU", folder, device="cuda")
    shutil.copytree(folder, bad)
    shutil.copy(bad / "weights_best.h5", bad / "also_best.h5")
    yield refused("has several", bad)
    (bad / "also_best.h5").unlink()
    (bad / "weights_best.h5").write_bytes(b"no weights")
    yield refused("can't be loaded as a StarDist2D model", bad)


def _blocks(folder: Path, scratch: Path, n_channels: int) -> Iterator[tuple[str, bool]]:
    """A slide in blocks, through the pipeline's own steps."""
    import tifffile

    import slidesam
    from slidesam.tasks.segmenters import load_segmenter

    image, truth = draw_discs((400, 600), seed=3)
    slide = scratch / f"discs{n_channels}.ome.tif"
    pixels = image[..., 0] if n_channels == 1 else image.transpose(2, 0, 1)
    tifffile.imwrite(slide, pixels, photometric="minisblack", metadata={"axes": "YX" if n_channels == 1 else "CYX"})
    found = {}
    for block in (128, 608):
        overrides = {
            "segmenter.kind": "stardist", "segmenter.model": str(folder), "blocks.tissue": "off", "blocks.halo": 32,
            "blocks.block_shape": block, "slide.channels": list(range(n_channels)),
        }  # fmt: skip
        load_segmenter.cache_clear()
        result = slidesam.segment(slide, scratch / f"out{n_channels}-{block}", overrides, progress=False)
        found[block] = np.asarray(result.labels)
        right = score(found[block], truth)
        yield f"blocks of {block} px: F1 {right:.2f} beside the truth", right > 0.8
    same = score(found[128], found[608], 0.9)
    yield f"blocks beside the whole: {same:.3f} of objects at IoU 0.9", same > 0.97


def _channels(image: np.ndarray, n_channels: int) -> np.ndarray:
    return image[..., 0] if n_channels == 1 else image


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    main()
