"""Cellpose 4 on one block: Cellpose's own code and options, with slide-wide intensities instead of each image's own.

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
from slidesam.tasks.segmenters.normalize import normalized, slide_range
from slidesam.tasks.segmenters.torch_host import choose_device, given_path, hash_of, keep_to_threads
from slidesam.tasks.settings.methods import Cellpose

if TYPE_CHECKING:
    from slidesam.tasks.slides.facts import Slide

# Of the settings, what each call of eval gets.
_FIELDS = ("diameter", "flow_threshold", "cellprob_threshold", "min_size", "niter", "batch_size")
# Parameters of eval that are slidesam's to set, or that mean nothing on one plane.
_OURS = frozenset(
    [
        *("self", "x", "normalize", "channel_axis", "channels", "z_axis", "rescale", "compute_masks", "progress"),
        *("do_3D", "anisotropy", "flow3D_smooth", "stitch_threshold"),
    ]
)
_WHAT = "a file with weights for Cellpose 4"
_HOW = (
    "Where there is internet, `python -c \"from cellpose.models import cache_model_path; print(cache_model_path('cpsam_v2'))\"` "
    "fetches Cellpose's own and says where they are"
)
_NOT_3 = (
    "Cellpose 4 can't use those of Cellpose 3 (cyto3, nuclei and what was trained from them): "
    "give cpsam_v2, or weights trained with Cellpose 4"
)


def model_identity(settings: Cellpose) -> str:
    """What the weights are, for the fingerprint.

    Returns:
        "weights sha256:...", whatever the file's name.

    Raises:
        SegmenterError: Cellpose 4 isn't installed, or the weights aren't there.
    """
    return f"weights {hash_of([find_weights(settings)])}"


def find_weights(settings: Cellpose) -> Path:
    """The file with the weights; light.

    Raises:
        SegmenterError: Cellpose 4 isn't installed, or the file isn't there.
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
    path = given_path(settings.model, _WHAT, _HOW)
    if not path.is_file():
        raise SegmenterError(f"segmenter.model {path} is no file", f"give the path of {_WHAT}. {_HOW}")
    return path


class CellposeSegmenter:
    """Cellpose 4 as a segmenter; holds the network (1.2 GB with cpsam), so make it once per process.

    Torch uses OMP_NUM_THREADS threads where that is set.

    Args:
        settings: The segmenter's settings.

    Attributes:
        device: Where the network is: cpu, cuda or mps.

    Raises:
        SegmenterError: Cellpose, the weights, the device or an option isn't there; the message says what to do.
    """

    def __init__(self, settings: Cellpose) -> None:
        weights = find_weights(settings)
        keep_to_threads()
        self.device = choose_device(settings.device)
        self._model = _load_model(weights, self.device, settings.use_bfloat16)
        self._percentiles = settings.percentiles
        self._eval_with = _eval_arguments(settings, self._model)
        # The network is one: threads of one worker must take turns.
        self._lock = threading.Lock()

    def prepare(self, sample: NDArray[Any], slide: Slide) -> dict[str, Any]:
        """The slide's intensity range.

        Args:
            sample: (y, x[, c]) pixels of the slide, any numeric dtype.
            slide: Not needed: what counts is in the sample.

        Returns:
            {"low": [...], "high": [...]}, one number for each of the first three channels.
        """
        return slide_range(_first_three(sample), self._percentiles)

    def segment(self, image: NDArray[Any], params: Mapping[str, Any]) -> NDArray[np.integer[Any]]:
        """Labels of one block; threads that call it take turns.

        Args:
            image: (y, x[, c]) any numeric dtype; Cellpose uses the first three channels, in any order.
            params: What `prepare` returned.

        Returns:
            (y, x) uint16 or uint32, 0 = background.

        Raises:
            SegmenterError: `params` are for another number of channels.
        """
        pixels = normalized(_first_three(image), params)
        with self._lock:
            # A mapping, since Cellpose notes a plain False in its module's defaults.
            labels = self._model.eval(pixels, channel_axis=-1, normalize={"normalize": False}, **self._eval_with)[0]
        return np.asarray(labels)


def _load_model(path: Path, device: str, use_bfloat16: bool) -> Any:
    """Cellpose's network with the weights of a file: given one that is there, Cellpose asks no server."""
    import torch
    from cellpose.models import CellposeModel

    content = _read_weights(path)
    try:
        model = CellposeModel(pretrained_model=str(path), device=torch.device(device), use_bfloat16=use_bfloat16)
    except Exception as error:  # torch raises what it likes
        raise SegmenterError(f"Cellpose can't make its network of {path}: {in_one_line(error, 300)}") from error
    # Cellpose itself leaves at random what the file lacks.
    layers = [name for name, _ in model.net.named_parameters() if name.startswith(("encoder.", "out."))]
    missing = [name for name in layers if name not in content]
    if missing:
        raise SegmenterError(
            f"segmenter.model {path} lacks {len(missing)} of the network's {len(layers)} layers ({missing[0]}, ...)",
            "give the weights of a whole network",
        )
    return model


def _read_weights(path: Path) -> Mapping[str, Any]:
    """What the file holds, read without running anything in it.

    Raises:
        SegmenterError: It can't be read, isn't for Cellpose 4, or needs a package that isn't there.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises what it likes
        raise SegmenterError(
            f"segmenter.model {path} can't be loaded as weights of Cellpose 4 ({in_one_line(error, 200)}). {_NOT_3}"
        ) from error
    # As Cellpose 4 itself tells its weights from older ones.
    if not isinstance(content, Mapping) or "W2" not in content:
        raise SegmenterError(f"segmenter.model {path} holds no weights for Cellpose 4. {_NOT_3}")
    if "encoder.cls_token" in content and importlib.util.find_spec("dinov3") is None:
        raise SegmenterError(
            f"segmenter.model {path} holds weights of cpdino, which needs dinov3, a package that isn't on PyPI",
            "pip install git+https://github.com/facebookresearch/dinov3, or give cpsam_v2",
        )
    return content


def _eval_arguments(settings: Cellpose, model: Any) -> dict[str, Any]:
    """What each call of Cellpose's eval is given beside the image.

    Raises:
        SegmenterError: An option is unknown, or not one's to set.
    """
    known = inspect.signature(model.eval).parameters.keys() - _OURS - {*_FIELDS}
    for option in settings.options:
        if option not in known:
            why = "is a setting of its own or slidesam's to set" if option in _OURS | {*_FIELDS} else "is unknown"
            raise SegmenterError(
                f"segmenter.options.{option} {why}", f"Cellpose's further options are {', '.join(sorted(known))}"
            )
    return {"max_size_fraction": 1.0, **{name: getattr(settings, name) for name in _FIELDS}, **settings.options}


def _first_three(image: NDArray[Any]) -> NDArray[Any]:
    return image if image.ndim == 2 else image[..., :3]
