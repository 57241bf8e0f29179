"""StarDist on one block: StarDist's own code and options, with slide-wide intensities instead of each image's own.

Importing this module loads neither TensorFlow nor stardist; making a `StarDistSegmenter` does, and takes about 5 s.

1. `StarDistSegmenter(...)` loads the model once per process.
2. `prepare` finds the intensities that become 0 and 1: percentiles over the whole slide.
3. `segment` scales the block's pixels by them and hands them to `StarDist2D.predict_instances`, which normalises nothing.

References:
    Schmidt, Weigert et al., Cell detection with star-convex polygons. MICCAI 2018. doi:10.1007/978-3-030-00934-2_30
    Weigert & Schmidt, Nuclei instance segmentation and classification in histopathology images with StarDist. ISBIC 2022.
    doi:10.1109/ISBIC56247.2022.9854534
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SegmenterError, in_one_line
from slidesam.tasks.segmenters.normalize import normalized, slide_range
from slidesam.tasks.segmenters.torch_host import given_path, given_threads, hash_of
from slidesam.tasks.settings.methods import StarDist

if TYPE_CHECKING:
    from slidesam.tasks.slides.facts import Slide

_WHAT = "the folder of a StarDist2D model (config.json and weights)"
_HOW = (
    'Where there is internet, `python -c "from stardist.models import StarDist2D; '
    "print(StarDist2D.from_pretrained('2D_versatile_he').logdir)\"` fetches one of StarDist's own and says where it is"
)
# Names under which TensorFlow is published.
_TENSORFLOW = ("tensorflow", "tensorflow-cpu", "tensorflow-macos", "tensorflow-rocm")


@dataclass(frozen=True)
class ModelFiles:
    """Files of one model.

    Attributes:
        config: Architecture.
        weights: Weights, the one file of them that counts.
        thresholds: The model's own thresholds, where it has them.
    """

    config: Path
    weights: Path
    thresholds: Path | None


def model_identity(settings: StarDist) -> str:
    """What the model is, for the fingerprint.

    Returns:
        "model sha256:..." of architecture, weights and thresholds, whatever the folder's name.

    Raises:
        SegmenterError: StarDist or TensorFlow isn't installed, or the model isn't there.
    """
    files = find_model(settings)
    return f"model {hash_of(filter(None, (files.config, files.weights, files.thresholds)))}"


def packages() -> tuple[str, ...]:
    """Names of the installed packages that compute, TensorFlow under the name that it has here."""
    installed = {name for name in _TENSORFLOW if any(importlib.metadata.distributions(name=name))}
    return ("stardist", "csbdeep", *sorted(installed), "keras")


def find_model(settings: StarDist) -> ModelFiles:
    """The files of the model; light.

    StarDist takes the newest of several files of weights, which a copy of the folder changes. Here it is the one named
    *best*, as StarDist prefers, or the only one.

    Raises:
        SegmenterError: StarDist or TensorFlow isn't installed, or the folder isn't that of one model.
    """
    for package in ("stardist", "tensorflow"):
        if importlib.util.find_spec(package) is None:
            raise SegmenterError(
                f"segmenter stardist needs {package}, which is not installed here",
                'pip install "slidesam[stardist]" tensorflow, or use --segmenter watershed',
            )
    folder = given_path(settings.model, _WHAT, _HOW)
    config, thresholds = folder / "config.json", folder / "thresholds.json"
    if not config.is_file():
        raise SegmenterError(f"segmenter.model {folder} has no config.json", f"give the path of {_WHAT}. {_HOW}")
    weights = sorted(path for path in folder.iterdir() if path.suffix in (".h5", ".hdf5"))
    chosen = [path for path in weights if "best" in path.name] or weights
    if len(chosen) != 1:
        there = f"several: {', '.join(path.name for path in chosen)}" if chosen else "none"
        raise SegmenterError(
            f"segmenter.model {folder} must hold one file of weights (.h5), and has {there}: "
            "keep the one to use, for example as weights_best.h5"
        )
    return ModelFiles(config, chosen[0], thresholds if thresholds.is_file() else None)


class StarDistSegmenter:
    """A StarDist2D model as a segmenter; make it once per process.

    TensorFlow uses OMP_NUM_THREADS threads where that is set, unless this process has begun to compute with it.

    Args:
        settings: The segmenter's settings.
        is_rgb: Whether the slide is red, green and blue; decides `normalize_channels: auto`.

    Attributes:
        device: Where the model runs: cpu or cuda.

    Raises:
        SegmenterError: StarDist, TensorFlow, the model or the device isn't there; the message says what to do.
    """

    def __init__(self, settings: StarDist, is_rgb: bool) -> None:
        files = find_model(settings)
        self.device = _start_tensorflow(settings.device)
        self._model = _load_model(files)
        self._settings = settings
        auto = "jointly" if is_rgb else "independently"
        self._is_joint = (auto if settings.normalize_channels == "auto" else settings.normalize_channels) == "jointly"
        # Keras' models aren't made for threads: those of one worker take turns.
        self._lock = threading.Lock()

    def prepare(self, sample: NDArray[Any], slide: Slide) -> dict[str, Any]:
        """The slide's intensity range.

        Args:
            sample: (y, x[, c]) pixels of the slide, any numeric dtype.
            slide: Not needed: what counts is in the sample.

        Returns:
            {"low": [...], "high": [...]}, one number for each channel.

        Raises:
            SegmenterError: The model is for another number of channels.
        """
        self._check_channels(sample)
        return slide_range(sample, self._settings.percentiles, jointly=self._is_joint)

    def segment(self, image: NDArray[Any], params: Mapping[str, Any]) -> NDArray[np.integer[Any]]:
        """Labels of one block; threads that call it take turns.

        Args:
            image: (y, x[, c]) any numeric dtype, with the channels that the model was trained on.
            params: What `prepare` returned.

        Returns:
            (y, x) int32, 0 = background.

        Raises:
            SegmenterError: The model, or `params`, are for another number of channels.
        """
        self._check_channels(image)
        pixels = normalized(image, params)
        tiles = self._settings.n_tiles
        with self._lock:
            labels, _ = self._model.predict_instances(
                pixels,
                axes="YXC",
                prob_thresh=self._settings.prob_thresh,
                nms_thresh=self._settings.nms_thresh,
                n_tiles=None if tiles is None else (*tiles, 1),
                show_tile_progress=False,
            )
        return np.asarray(labels)

    def _check_channels(self, image: NDArray[Any]) -> None:
        wanted, given = self._model.config.n_channel_in, 1 if image.ndim == 2 else image.shape[2]
        if wanted != given:
            raise SegmenterError(
                f"the StarDist model takes {wanted} channels, but is given {given}",
                "choose the slide's with slide.channels, or give another segmenter.model",
            )


def _start_tensorflow(wanted: str) -> str:
    """Loads TensorFlow and says what it computes on: cpu or cuda.

    Raises:
        SegmenterError: It can't be loaded, or has no GPU where one is wanted.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # else it writes pages as it starts
    try:
        import tensorflow
    except Exception as error:  # its libraries raise what they like
        raise SegmenterError(f"TensorFlow can't be loaded: {in_one_line(error, 300)}: install it anew") from error
    config = tensorflow.config
    gpus = [] if wanted == "cpu" else config.list_physical_devices("GPU")
    if wanted == "cuda" and not gpus:
        raise SegmenterError(
            f"segmenter.device is cuda, but TensorFlow {tensorflow.__version__} finds no GPU on this machine",
            'let the profile ask for one and pip install "tensorflow[and-cuda]", or set segmenter.device: auto',
        )
    # All three are refused once it has computed something in this process, as it then has its devices and threads.
    with contextlib.suppress(RuntimeError):
        config.set_visible_devices(gpus, "GPU")
        for gpu in gpus:
            config.experimental.set_memory_growth(gpu, True)
        if (threads := given_threads()) is not None:
            config.threading.set_intra_op_parallelism_threads(threads)
            config.threading.set_inter_op_parallelism_threads(threads)
    return "cuda" if gpus else "cpu"


def _load_model(files: ModelFiles) -> Any:
    """The model with its weights.

    Raises:
        SegmenterError: It can't be made of these files.
    """
    folder = files.config.parent.resolve()
    try:
        if json.loads(files.config.read_text()).get("n_dim", 2) != 2:
            raise ValueError("it is a 3D model")
        from stardist.models import StarDist2D

        # It says on stdout what it loads.
        with contextlib.redirect_stdout(io.StringIO()):
            model = StarDist2D(None, name=folder.name, basedir=str(folder.parent))
            model.load_weights(files.weights.name)
    except Exception as error:  # Keras raises what it likes
        raise SegmenterError(
            f"segmenter.model {folder} can't be loaded as a StarDist2D model: {in_one_line(error, 300)}"
        ) from error
    return model
