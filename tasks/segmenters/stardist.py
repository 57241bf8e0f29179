"""Segment one block with StarDist: StarDist's code and options, but slide-wide intensities instead of each image's own.

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
import importlib.util
import io
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SegmenterError, in_one_line
from slidesam.tasks.segmenters.base import Params, Segmenter
from slidesam.tasks.segmenters.normalize import normalize, slide_range
from slidesam.tasks.segmenters.torch_host import find_model_path, hash_files, read_thread_limit
from slidesam.tasks.settings.methods import StarDist

if TYPE_CHECKING:
    from slidesam.tasks.slides.facts import Slide

_MODEL = "the folder of a StarDist2D model (config.json and weights)"
_CURE = (
    'Where there is internet, `python -c "from stardist.models import StarDist2D; '
    "print(StarDist2D.from_pretrained('2D_versatile_he').logdir)\"` fetches one of StarDist's own and says where it is"
)


@dataclass(frozen=True)
class StarDistFiles:
    """Files of one model.

    Attributes:
        config: Architecture.
        weights: The one file of weights that is used.
        thresholds: The model's own thresholds, if it has them.
    """

    config: Path
    weights: Path
    thresholds: Path | None


def identify_stardist_model(settings: StarDist) -> str:
    """Identify the model for the fingerprint.

    Returns:
        "model sha256:..." of architecture, weights and thresholds, whatever the folder's name.

    Raises:
        SegmenterError: StarDist or TensorFlow isn't installed, or the model is missing.
    """
    files = find_stardist_model(settings)
    return f"model {hash_files(filter(None, (files.config, files.weights, files.thresholds)))}"


def find_stardist_model(settings: StarDist) -> StarDistFiles:
    """Find the files of the model, without importing TensorFlow.

    Of several files of weights StarDist takes the newest, which a copy of the folder changes. Here it is the one named *best*, as
    StarDist prefers, or the only one.

    Raises:
        SegmenterError: StarDist or TensorFlow isn't installed, or the folder isn't that of one model.
    """
    for package in ("stardist", "tensorflow"):
        if importlib.util.find_spec(package) is None:
            raise SegmenterError(
                f"segmenter stardist needs {package}, which is not installed here",
                'pip install "slidesam[stardist]" tensorflow, or use --segmenter watershed',
            )
    folder = find_model_path(settings.model, _MODEL, _CURE)
    config, thresholds = folder / "config.json", folder / "thresholds.json"
    if not config.is_file():
        raise SegmenterError(f"segmenter.model {folder} has no config.json", f"give the path of {_MODEL}. {_CURE}")
    weights = sorted(path for path in folder.iterdir() if path.suffix in (".h5", ".hdf5"))
    candidates = [path for path in weights if "best" in path.name] or weights
    if len(candidates) != 1:
        state = f"several: {', '.join(path.name for path in candidates)}" if candidates else "none"
        raise SegmenterError(
            f"segmenter.model {folder} must hold one file of weights (.h5), and has {state}: "
            "keep the one to use, for example as weights_best.h5"
        )
    return StarDistFiles(config, candidates[0], thresholds if thresholds.is_file() else None)


class StarDistSegmenter(Segmenter):
    """A StarDist2D model as a segmenter; make it once per process.

    TensorFlow uses OMP_NUM_THREADS threads if that is set, unless this process has already computed with it.

    Args:
        settings: The segmenter's settings.
        is_rgb: Whether the slide is red, green and blue; decides `normalize_channels: auto`.

    Attributes:
        device: Where the model runs: cpu or cuda.

    Raises:
        SegmenterError: StarDist, TensorFlow, the model or the device is missing; the message says what to do.
    """

    def __init__(self, settings: StarDist, is_rgb: bool) -> None:
        files = find_stardist_model(settings)
        self.device = _start_tensorflow(settings.device)
        self._model = _load_model(files)
        self._settings = settings
        auto = "jointly" if is_rgb else "independently"
        self._is_joint = (auto if settings.normalize_channels == "auto" else settings.normalize_channels) == "jointly"
        # Keras' models aren't safe for threads: those of one worker take turns.
        self._lock = threading.Lock()

    def prepare(self, sample: NDArray[Any], slide: Slide) -> dict[str, Any]:
        """Find the slide's intensity range.

        Args:
            sample: (y, x[, c]) pixels of the slide, any numeric dtype.
            slide: Not used.

        Returns:
            {"low": [...], "high": [...]}, one number for each channel.

        Raises:
            SegmenterError: The model is for another number of channels.
        """
        self._check_channels(sample)
        return slide_range(sample, self._settings.percentiles, jointly=self._is_joint)

    def segment(self, image: NDArray[Any], params: Params) -> NDArray[np.integer[Any]]:
        """Label one block; threads that call this take turns.

        Args:
            image: (y, x[, c]) any numeric dtype, with the channels that the model was trained on.
            params: What `prepare` returned.

        Returns:
            (y, x) int32, 0 = background.

        Raises:
            SegmenterError: The model, or `params`, are for another number of channels.
        """
        self._check_channels(image)
        pixels = normalize(image, params)
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
        n_model, n_image = self._model.config.n_channel_in, 1 if image.ndim == 2 else image.shape[2]
        if n_model != n_image:
            raise SegmenterError(
                f"the StarDist model takes {n_model} channels, but is given {n_image}",
                "choose the slide's with slide.channels, or give another segmenter.model",
            )


def _start_tensorflow(device: str) -> str:
    """Load TensorFlow and tell what it computes on: cpu or cuda.

    Raises:
        SegmenterError: It can't be loaded, or finds no GPU though the settings ask for one.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # otherwise it prints pages of messages at start
    try:
        import tensorflow
    except Exception as error:  # its libraries raise what they like
        raise SegmenterError(f"TensorFlow can't be loaded: {in_one_line(error, 300)}: install it again") from error
    config = tensorflow.config
    gpus = [] if device == "cpu" else config.list_physical_devices("GPU")
    if device == "cuda" and not gpus:
        raise SegmenterError(
            f"segmenter.device is cuda, but TensorFlow {tensorflow.__version__} finds no GPU on this machine",
            'let the profile ask for one and pip install "tensorflow[and-cuda]", or set segmenter.device: auto',
        )
    # TensorFlow refuses all three once it has computed something in this process: its devices and threads are fixed then.
    with contextlib.suppress(RuntimeError):
        config.set_visible_devices(gpus, "GPU")
        for gpu in gpus:
            config.experimental.set_memory_growth(gpu, True)
        if (threads := read_thread_limit()) is not None:
            config.threading.set_intra_op_parallelism_threads(threads)
            config.threading.set_inter_op_parallelism_threads(threads)
    return "cuda" if gpus else "cpu"


def _load_model(files: StarDistFiles) -> Any:
    """Load the model with its weights.

    Raises:
        SegmenterError: These files hold no StarDist2D model.
    """
    folder = files.config.parent.resolve()
    try:
        if json.loads(files.config.read_text()).get("n_dim", 2) != 2:
            raise ValueError("it is a 3D model")
        from stardist.models import StarDist2D

        # It prints what it loads.
        with contextlib.redirect_stdout(io.StringIO()):
            model = StarDist2D(None, name=folder.name, basedir=str(folder.parent))
            model.load_weights(files.weights.name)
    except MemoryError:
        # On another worker there may be enough.
        raise
    except Exception as error:  # Keras raises what it likes
        raise SegmenterError(
            f"segmenter.model {folder} can't be loaded as a StarDist2D model: {in_one_line(error, 300)}"
        ) from error
    return model
