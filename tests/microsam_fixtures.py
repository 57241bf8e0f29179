"""Fixtures and marks for tests that run the real micro-sam, with random weights made on the spot."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).with_name("microsam_checkpoint.py")

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
    """ViT-B with decoder, 410 MB; kept between sessions where SLIDESAM_TEST_CHECKPOINT_DIR is set."""
    if importlib.util.find_spec("micro_sam") is None:
        pytest.skip("micro_sam is not installed")
    folder = os.environ.get("SLIDESAM_TEST_CHECKPOINT_DIR")
    version = hashlib.sha256(_SCRIPT.read_bytes()).hexdigest()[:8]
    path = Path(folder or tmp_path_factory.mktemp("checkpoint")) / f"random_vit_b_{version}.pt"
    if not path.exists():
        subprocess.run([sys.executable, "-W", "ignore", str(_SCRIPT), str(path)], check=True, timeout=600)
    return path
