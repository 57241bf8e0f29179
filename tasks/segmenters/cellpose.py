"""Segment one block with Cellpose 4: Cellpose's code and options, but slide-wide intensities instead of each image's own.

Importing this module loads neither torch nor cellpose; making a `CellposeSegmenter` does.

1. `CellposeSegmenter(...)` checks the options' names and loads the network once per process.
2. `prepare` finds the intensities that become 0 and 1: percentiles of each channel over the whole slide.
3. `segment` scales the block's pixels by them and hands them to `CellposeModel.eval(..., normalize=False)`.

Two of Cellpose's decisions depend on the image that it is given, and would differ from block to block: the percentiles,
hence 2; and it drops objects that are larger than a share of the image, hence `max_size_fraction` is 1 unless it is set.

References:
    Pachitariu, Rariden & Stringer, Cellpose-SAM: superhuman generalization for cellular segmentation. bioRxiv 2025.
    doi:10.1101/2025.04.28.651001
    Stringer et al., Cellpose: a generalist algorithm for cellular segmentation. Nature Methods 18, 2021.
    doi:10.1038/s41592-020-01018-x
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SegmenterError, in_one_line
from slidesam.tasks.segmenters.base import Params, Segmenter
from slidesam.tasks.segmenters.normalize import normalize, slide_range
from slidesam.tasks.segmenters.torch_host import choose_device, find_model_path, hash_files, limit_threads
from slidesam.tasks.settings.methods import Cellpose

if TYPE_CHECKING:
    from slidesam.tasks.slides.facts import Slide

# The settings that each call of eval gets.
_EVAL_SETTINGS = ("diameter", "flow_threshold", "cellprob_threshold", "min_size", "niter", "batch_size")
# Parameters of eval that are slidesam's to set, or that mean nothing on one plane.
_RESERVED = frozenset(
    [
        *("self", "x", "normalize", "channel_axis", "channels", "z_axis", "rescale", "compute_masks", "progress"),
        *("do_3D", "anisotropy", "flow3D_smooth", "stitch_threshold"),
    ]
)
_MODEL = "a file with weights for Cellpose 4"
_CURE = (
    "Where there is internet, `python -c \"from cellpose.models import cache_model_path; print(cache_model_path('cpsam_v2'))\"` "
    "fetches Cellpose's own and says where they are"
)
_NOT_3 = (
    "Cellpose 4 can't use those of Cellpose 3 (cyto3, nuclei and what was trained from them): "
    "give cpsam_v2, or weights trained with Cellpose 4"
)


def identify_cellpose_weights(settings: Cellpose) -> str:
    """Identify the weights for the fingerprint.

    Returns:
        "weights sha256:...", whatever the file's name.

    Raises:
        SegmenterError: Cellpose 4 isn't installed, or the weights are missing.
    """
    return f"weights {hash_files([find_cellpose_weights(settings)])}"


def find_cellpose_weights(settings: Cellpose) -> Path:
    """Find the file with the weights, without importing torch.

    Raises:
        SegmenterError: Cellpose 4 isn't installed, or the file is missing.
    """
    for package in ("torch", "cellpose"):
        if importlib.util.find_spec(package) is None:
            raise SegmenterError(
                f"segmenter cellpose needs {package}, which is not installed here",
                'pip install "slidesam[cellpose]", or use --segmenter watershed',
            )
    version = importlib.metadata.version("cellpose")
    if int(version.split(".")[0]) < 4:
        raise SegmenterError(
            f"segmenter cellpose needs Cellpose 4, and {version} is installed", 'pip install "slidesam[cellpose]"'
        )
    path = find_model_path(settings.model, _MODEL, _CURE)
    if not path.is_file():
        raise SegmenterError(f"segmenter.model {path} is no file", f"give the path of {_MODEL}. {_CURE}")
    return path


class CellposeSegmenter(Segmenter):
    """Cellpose 4 as a segmenter; holds the network (1.2 GB with cpsam), so make it once per process.

    Torch uses OMP_NUM_THREADS threads if that is set.

    Args:
        settings: The segmenter's settings.

    Attributes:
        device: Where the network is: cpu, cuda or mps.

    Raises:
        SegmenterError: Cellpose, the weights, the device or an option is missing; the message says what to do.
    """

    def __init__(self, settings: Cellpose) -> None:
        weights = find_cellpose_weights(settings)
        limit_threads()
        self.device = choose_device(settings.device)
        self._model = _load_model(weights, self.device, settings.use_bfloat16)
        self._percentiles = settings.percentiles
        self._eval_options = _eval_arguments(settings, self._model)
        # There is one network: threads of one worker must take turns.
        self._lock = threading.Lock()

    def prepare(self, sample: NDArray[Any], slide: Slide) -> dict[str, Any]:
        """Find the slide's intensity range.

        Args:
            sample: (y, x[, c]) pixels of the slide, any numeric dtype.
            slide: Not used.

        Returns:
            {"low": [...], "high": [...]}, one number for each of the first three channels.
        """
        return slide_range(_first_three(sample), self._percentiles)

    def segment(self, image: NDArray[Any], params: Params) -> NDArray[np.integer[Any]]:
        """Label one block; threads that call this take turns.

        Args:
            image: (y, x[, c]) any numeric dtype; Cellpose uses the first three channels, in any order.
            params: What `prepare` returned.

        Returns:
            (y, x) uint16 or uint32, 0 = background.

        Raises:
            SegmenterError: `params` are for another number of channels.
        """
        pixels = normalize(_first_three(image), params)
        with self._lock:
            # A mapping, because Cellpose would write a plain False into its module's defaults.
            labels = self._model.eval(pixels, channel_axis=-1, normalize={"normalize": False}, **self._eval_options)[0]
        return np.asarray(labels)


def _load_model(path: Path, device: str, use_bfloat16: bool) -> Any:
    """Load Cellpose's network with the weights of a file: if the file exists, Cellpose asks no server."""
    import torch
    from cellpose.models import CellposeModel

    content = _read_weights(path)
    try:
        model = CellposeModel(pretrained_model=str(path), device=torch.device(device), use_bfloat16=use_bfloat16)
    except MemoryError:
        # On another worker there may be enough.
        raise
    except Exception as error:  # torch raises what it likes
        raise SegmenterError(f"Cellpose can't make its network of {path}: {in_one_line(error, 300)}") from error
    # Cellpose itself leaves layers that the file lacks at random values.
    layers = [name for name, _ in model.net.named_parameters() if name.startswith(("encoder.", "out."))]
    missing = [name for name in layers if name not in content]
    if missing:
        raise SegmenterError(
            f"segmenter.model {path} lacks {len(missing)} of the network's {len(layers)} layers ({missing[0]}, ...)",
            "give the weights of a whole network",
        )
    return model


def _read_weights(path: Path) -> Mapping[str, Any]:
    """Read the file of weights without running code in it.

    Raises:
        SegmenterError: It can't be read, isn't for Cellpose 4, or needs a missing package.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except MemoryError:
        # On another worker there may be enough.
        raise
    except Exception as error:  # torch raises what it likes
        raise SegmenterError(
            f"segmenter.model {path} can't be loaded as weights of Cellpose 4 ({in_one_line(error, 200)}). {_NOT_3}"
        ) from error
    # Cellpose 4 itself tells its weights from older ones by this key.
    if not isinstance(content, Mapping) or "W2" not in content:
        raise SegmenterError(f"segmenter.model {path} holds no weights for Cellpose 4. {_NOT_3}")
    if "encoder.cls_token" in content and importlib.util.find_spec("dinov3") is None:
        raise SegmenterError(
            f"segmenter.model {path} holds weights of cpdino, which needs dinov3, a package that isn't on PyPI",
            "pip install git+https://github.com/facebookresearch/dinov3, or give cpsam_v2",
        )
    return content


def _eval_arguments(settings: Cellpose, model: Any) -> dict[str, Any]:
    """Collect the arguments of each call of Cellpose's eval beside the image.

    Raises:
        SegmenterError: An option is unknown, or reserved for slidesam.
    """
    options = inspect.signature(model.eval).parameters.keys() - _RESERVED - {*_EVAL_SETTINGS}
    for option in settings.options:
        if option not in options:
            reason = (
                "is a setting of its own or slidesam's to set"
                if option in _RESERVED | {*_EVAL_SETTINGS}
                else "is unknown"
            )
            raise SegmenterError(
                f"segmenter.options.{option} {reason}", f"Cellpose's further options are {', '.join(sorted(options))}"
            )
    return {"max_size_fraction": 1.0, **{name: getattr(settings, name) for name in _EVAL_SETTINGS}, **settings.options}


def _first_three(image: NDArray[Any]) -> NDArray[Any]:
    return image if image.ndim == 2 else image[..., :3]
