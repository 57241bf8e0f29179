"""Fixtures and marks for tests that run the real micro-sam, on small networks with random weights made on the spot."""

from __future__ import annotations

import hashlib
import importlib.util
import multiprocessing
import os
import runpy
import sys
import warnings
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.microsam_small import FULL, use_small_networks

_MAKES = [Path(__file__).with_name(f"microsam_{name}.py") for name in ("checkpoint", "small")]

# For `pytestmark`. torch and micro_sam import packages whose deprecation warnings are none of ours.
MICROSAM_MARKS = [
    pytest.mark.microsam,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (importlib.util.find_spec("micro_sam") and importlib.util.find_spec("torch")),
        reason="micro_sam is not installed",
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:(torch|pydantic|zarr|micro_sam|bioimageio).*"),
]
# With the random weights these give tens of objects in 256 x 256 pixels; AIS does so by its defaults.
AMG_OPTIONS = {"points_per_side": 4, "stability_score_thresh": 0.3, "box_nms_thresh": 0.5}
APG_OPTIONS = {"foreground_threshold": 0.8, "center_distance_threshold": 0.15, "boundary_distance_threshold": 0.4}


@pytest.fixture(scope="session")
def microsam_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small ViT-B with decoder, which this process then has; kept between sessions where SLIDESAM_TEST_CHECKPOINT_DIR is set."""
    return _make_checkpoint("vit_b", tmp_path_factory)


@pytest.fixture(scope="session")
def vit_t_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of vit_t."""
    return _make_checkpoint("vit_t", tmp_path_factory)


def _make_checkpoint(model: str, folders: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("micro_sam") is None:
        pytest.skip("micro_sam is not installed")
    folder = os.environ.get("SLIDESAM_TEST_CHECKPOINT_DIR")
    version = hashlib.sha256(b"".join(path.read_bytes() for path in _MAKES)).hexdigest()[:8]
    path = Path(folder or folders.mktemp("checkpoint")) / f"random_{model}_{'full_' if FULL else ''}{version}.pt"
    if not path.exists():
        alone("checkpoint", *([] if FULL else ["--small"]), "--model", model, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        use_small_networks()
    return path


def alone(script: str, *arguments: object) -> None:
    """Run one of the scripts beside this file to its end, in a process of its own, on one thread.

    All are forked from one process that has imported micro-sam, and nothing of slidesam: importing it takes 6 s.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.microsam_checkpoint", "tests.support.microsam_reference"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.chdir(ROOT)
        process = context.Process(target=_run, args=(script, list(map(str, arguments))))
        process.start()
    process.join(800)
    process.kill()
    assert process.exitcode == 0, f"{script} {arguments} ended with {process.exitcode}"


def _run(script: str, arguments: list[str]) -> None:
    sys.argv = [script, *arguments]
    warnings.simplefilter("ignore")
    runpy.run_module(f"tests.support.microsam_{script}", run_name="__main__")
