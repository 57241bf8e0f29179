"""Which micro-sam model the settings mean, where its weights are, and what they are: all without torch or micro_sam.

The submitting machine asks this before any job is queued. Nothing is ever downloaded: jobs run where there is no
internet, and a hundred of them would fetch at once. The message says how to fetch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from slidesam.tasks.config import MicroSam
from slidesam.tasks.errors import SegmenterError

# micro-sam's registry without the vit_t family, which needs mobile_sam; the value says whether a decoder comes with it.
MODELS = {
    "vit_b": False,
    "vit_l": False,
    "vit_h": False,
    "vit_b_lm": True,
    "vit_l_lm": True,
    "vit_b_em_organelles": True,
    "vit_l_em_organelles": True,
    "vit_b_histopathology": True,
    "vit_l_histopathology": True,
    "vit_h_histopathology": True,
    "vit_b_medical_imaging": True,
}
_ARCHITECTURES = ("vit_b", "vit_l", "vit_h")
_NO_WEIGHTS_NEEDED = "or use --segmenter watershed, which needs no weights"


@dataclass(frozen=True)
class Weights:
    """Files of one model.

    Attributes:
        checkpoint: SAM's weights, with or without a decoder's.
        decoder: The decoder's, where they are a file of their own as in micro-sam's registry.
    """

    checkpoint: Path
    decoder: Path | None


def model_name(settings: MicroSam, is_rgb: bool) -> str:
    """Name in micro-sam's registry that these settings mean.

    Example:
        >>> model_name(MicroSam(), is_rgb=True)
        'vit_b_histopathology'
        >>> model_name(MicroSam(model="vit_l_lm"), is_rgb=True)
        'vit_l_lm'
    """
    if settings.model != "auto":
        return settings.model
    return "vit_b_histopathology" if is_rgb else "vit_b_lm"


def model_identity(settings: MicroSam, is_rgb: bool) -> str:
    """Name and hash of the weights (encoder and decoder), for the fingerprint.

    A file is read once per process (375 MB: about a second).

    Args:
        settings: The segmenter's settings.
        is_rgb: Whether the slide is red, green and blue.

    Returns:
        For example "vit_b_lm sha256:..."; "checkpoint sha256:..." for a file of one's own, whatever its name.

    Raises:
        SegmenterError: micro-sam isn't installed, the model is unknown, or its weights aren't there.
    """
    weights = find_weights(settings, is_rgb)
    digest = hashlib.sha256()
    for path in filter(None, (weights.checkpoint, weights.decoder)):
        try:
            facts = path.stat()
            digest.update(_file_hash(path, facts.st_size, facts.st_mtime_ns))
        except OSError as error:
            raise SegmenterError(f"weights {path} can't be read: {error.strerror or error}") from error
    return f"{'checkpoint' if settings.checkpoint else model_name(settings, is_rgb)} sha256:{digest.hexdigest()}"


def find_weights(settings: MicroSam, is_rgb: bool) -> Weights:
    """The weights' files: the settings' checkpoint, else those in micro-sam's cache.

    Raises:
        SegmenterError: micro-sam isn't installed, the model is unknown, or its weights aren't there.
    """
    name = model_name(settings, is_rgb)
    if name.startswith("vit_t"):
        raise SegmenterError(f"model {name} needs mobile_sam, which is not on PyPI: choose one of {', '.join(MODELS)}")
    if settings.checkpoint is None and name not in MODELS:
        raise SegmenterError(
            f"micro-sam has no model {name!r}: choose one of {', '.join(MODELS)}, or give segmenter.checkpoint"
        )
    if settings.checkpoint is not None and not name.startswith(_ARCHITECTURES):
        raise SegmenterError(
            f"segmenter.model {name!r} names no architecture: with a checkpoint, give {' or '.join(_ARCHITECTURES)}"
        )
    for package in ("torch", "micro_sam"):
        if importlib.util.find_spec(package) is None:
            raise SegmenterError(
                f"segmenter micro-sam needs {package}, which is not installed here: "
                f'pip install "slidesam[micro-sam]", {_NO_WEIGHTS_NEEDED}'
            )
    if settings.checkpoint is not None:
        checkpoint = Path(settings.checkpoint).expanduser()
        if not checkpoint.is_file():
            raise SegmenterError(
                f"segmenter.checkpoint {checkpoint} is no file on this machine: "
                f"give a path that the workers see too, {_NO_WEIGHTS_NEEDED}"
            )
        return Weights(checkpoint, None)
    if settings.mode in ("ais", "apg") and not MODELS[name]:
        raise no_decoder(settings.mode, f"model {name}")
    return _find_cached(name)


def no_decoder(mode: str, what: str) -> SegmenterError:
    """The error for a mode that these weights can't serve."""
    return SegmenterError(
        f"segmenter.mode {mode} needs a decoder, and {what} has none: "
        "set mode: amg, or a model with a decoder (vit_b_lm, vit_b_histopathology, ...)"
    )


def _find_cached(name: str) -> Weights:
    """The files of a registry model where micro-sam's own download puts them."""
    import pooch  # type: ignore[import-untyped]

    folder = Path(os.environ.get("MICROSAM_CACHEDIR") or pooch.os_cache("micro_sam")).expanduser() / "models"
    wanted = [name, f"{name}_decoder"] if MODELS[name] else [name]
    missing = [part for part in wanted if not (folder / part).is_file()]
    if missing:
        fetch = f"from micro_sam.util import get_sam_model; get_sam_model('{name}')"
        raise SegmenterError(
            f"weights of model {name} are not on this machine: {folder} has no {' and no '.join(missing)}. "
            f'Where there is internet, run `MICROSAM_CACHEDIR=FOLDER python -c "{fetch}"` with a FOLDER that the '
            f"workers see, and set MICROSAM_CACHEDIR=FOLDER here and for the workers; {_NO_WEIGHTS_NEEDED}"
        )
    return Weights(folder / name, folder / f"{name}_decoder" if MODELS[name] else None)


@lru_cache(maxsize=8)
def _file_hash(path: Path, size: int, mtime_ns: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
