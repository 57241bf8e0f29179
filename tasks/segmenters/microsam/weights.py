"""Find the micro-sam model that the settings mean, its weights, and their identity: all without torch or micro-sam.

The submitting machine does this before any job is queued, and each worker before it loads the weights. A file of micro-sam's
registry with another hash is refused. Unpickling a file runs code that its maker put in, so only weights and plain values are
loaded, unless the person trusts a checkpoint (`segmenter.trust`, see `segmenters.allowed`), or the site gives a registry file's
SHA-256 in SLIDESAM_MODELS: micro-sam's own xxh128 keeps out damage, not forgery. Nothing is downloaded: jobs run
without internet, and a hundred of them would fetch at once. The error message says how to fetch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters.microsam.registry import (
    INSTALL,
    MODELS,
    OVERRIDES,
    Registered,
    find_cache_folder,
    list_files,
    read_registry,
)
from slidesam.tasks.segmenters.microsam.shipped import ARCHITECTURE, CURE, FILES, FOLDER, NUCLEI_SMALL, check_shipped
from slidesam.tasks.segmenters.torch_host import can_hash, hash_file, make_read_error
from slidesam.tasks.settings.methods import MicroSam

_UNFORGEABLE = ("sha256", "sha512")
_ARCHITECTURES = ("vit_t", "vit_b", "vit_l", "vit_h")
_NO_WEIGHTS_NEEDED = "or use --segmenter watershed, which needs no weights"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """Files of one model.

    Attributes:
        checkpoint: SAM's weights, with or without a decoder's; of the model that slidesam ships, the folder of its parts.
        decoder: The decoder's weights, if they are a separate file as in micro-sam's registry.
        is_trusted: Whether a file that holds more than weights may be unpickled.
    """

    checkpoint: Path
    decoder: Path | None
    is_trusted: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """All files, in the order in which they are hashed."""
        if self.checkpoint == FOLDER:
            return tuple(FOLDER / name for name in FILES)
        return tuple(path for path in (self.checkpoint, self.decoder) if path is not None)


def choose_model(settings: MicroSam, is_rgb: bool) -> str:
    """Choose the model that these settings mean: its name in micro-sam's registry, or nuclei-small.

    Example:
        >>> choose_model(MicroSam(), is_rgb=True)
        'vit_b_histopathology'
        >>> choose_model(MicroSam(model="vit_l_lm"), is_rgb=True)
        'vit_l_lm'
    """
    if settings.model != "auto":
        return settings.model
    return "vit_b_histopathology" if is_rgb else "vit_b_lm"


def find_architecture(model: str) -> str:
    """Find the name of a model's encoder.

    Example:
        >>> find_architecture("vit_b_lm"), find_architecture("nuclei-small")
        ('vit_b', 'vit_t')
    """
    return ARCHITECTURE if model == NUCLEI_SMALL else model[:5]


def identify_model(settings: MicroSam, is_rgb: bool) -> str:
    """Return name and hash of the weights (encoder and decoder), for the fingerprint.

    A file is read once per process (375 MB: about a second).

    Args:
        settings: The segmenter's settings.
        is_rgb: Whether the slide is red, green and blue.

    Returns:
        For example "vit_b_lm sha256:..."; "checkpoint sha256:..." for a user's own file, whatever its name.

    Raises:
        SegmenterError: micro-sam isn't installed, the model is unknown, its weights are missing, or a file isn't the one of
            micro-sam's registry, or that slidesam ships. A user's own file is taken as it is.
    """
    weights = find_weights(settings, is_rgb)
    is_own = settings.checkpoint is not None
    registry = {} if is_own else FILES if weights.checkpoint == FOLDER else read_registry()
    digest = hashlib.sha256()
    for path in weights.files:
        entry = registry.get(path.name)
        if entry is not None and not can_hash(entry.algorithm):
            entry = None
        if entry is None and not is_own:
            _log.warning("slidesam finds no hash of %s that it can check in micro-sam's registry: taken as it is", path)
        digest.update(_check_hash(path, entry))
    return f"{'checkpoint' if is_own else choose_model(settings, is_rgb)} sha256:{digest.hexdigest()}"


def _check_hash(path: Path, entry: Registered | None) -> bytes:
    """Compute the file's sha256, and check the registry's hash in the same reading."""
    try:
        sha256, *other_digests = hash_file(path, "sha256", *([entry.algorithm] if entry else []))
    except OSError as error:
        raise make_read_error(path, error) from error
    for digest in other_digests:
        if entry is None or digest.hex() == entry.digest:
            continue
        if path.parent == FOLDER:
            raise SegmenterError(
                f"{path} is not the file that slidesam ships, so it isn't loaded", "install slidesam again"
            )
        raise SegmenterError(
            f"{path} is not the file of micro-sam's registry ({entry.algorithm}:{digest.hex()}, not {entry.hash}), "
            f"so it isn't loaded",
            f"run `slidesam models fetch {path.name.removesuffix('_decoder')}` where there is "
            "internet, or name your own weights by segmenter.checkpoint",
        )
    return sha256


def find_weights(settings: MicroSam, is_rgb: bool) -> Weights:
    """Find the weights' files: the settings' checkpoint, else those in micro-sam's cache.

    Raises:
        SegmenterError: micro-sam isn't installed, the model is unknown, or its weights are missing.
    """
    name = choose_model(settings, is_rgb)
    if settings.checkpoint is None and name not in (*MODELS, NUCLEI_SMALL):
        raise SegmenterError(
            f"micro-sam has no model {name!r}",
            f"choose one of {', '.join(MODELS)}, or {NUCLEI_SMALL}, or give segmenter.checkpoint",
        )
    if settings.checkpoint is not None and not name.startswith(_ARCHITECTURES):
        raise SegmenterError(
            f"segmenter.model {name!r} names no architecture", f"with a checkpoint, give {' or '.join(_ARCHITECTURES)}"
        )
    for package in ("torch", "micro_sam", *(("mobile_sam",) if find_architecture(name) == "vit_t" else ())):
        if importlib.util.find_spec(package) is None:
            raise SegmenterError(
                f"segmenter micro-sam needs {package}, which is not installed here", f"{INSTALL}, {_NO_WEIGHTS_NEEDED}"
            )
    if settings.checkpoint is not None:
        checkpoint = Path(settings.checkpoint).expanduser()
        if not checkpoint.is_file():
            raise SegmenterError(
                f"segmenter.checkpoint {checkpoint} is no file on this machine",
                f"give a path that the workers see too, {_NO_WEIGHTS_NEEDED}",
            )
        return Weights(checkpoint, None, is_trusted=settings.trust)
    if name == NUCLEI_SMALL:
        check_shipped(settings.mode)
        return Weights(FOLDER, None)
    if settings.mode in ("ais", "apg") and not MODELS[name]:
        raise make_decoder_error(settings.mode, f"model {name}")
    return _find_cached(name)


def make_trust_cure(settings: MicroSam, weights: Weights) -> str:
    """Say what to do with a file that holds more than weights."""
    if settings.checkpoint is not None:
        return (
            "only weights are loaded, because more can run any code: save them alone (micro_sam.util.export_custom_sam_model "
            "does), or, if you trust who made the file, add `--set segmenter.trust=true` to the command"
        )
    names = " and ".join(path.name for path in weights.files)
    return (
        f"if you trust micro-sam's file, pin it: lines `NAME sha256:DIGEST` for {names} in a file that {OVERRIDES} names "
        "(`sha256sum` prints a digest)"
    )


def make_decoder_error(mode: str, weights: str) -> SegmenterError:
    """Make the error for a mode that needs a decoder with weights that have none."""
    return SegmenterError(
        f"segmenter.mode {mode} needs a decoder, and {weights} has none",
        "set mode: amg, or a model with a decoder (vit_b_lm, vit_b_histopathology, ...)",
    )


def _find_cached(name: str) -> Weights:
    """Find the files of a registry model where micro-sam's own download puts them."""
    folder, files = find_cache_folder(), list_files(name)
    missing = [part for part in files if not (folder / part).is_file()]
    if missing:
        raise SegmenterError(
            f"weights of model {name} are not on this machine",
            f"{folder} has no {' and no '.join(missing)}. "
            f"Where there is internet, run `slidesam models fetch {name} --cache FOLDER` with a FOLDER that the "
            f"workers see, and set MICROSAM_CACHEDIR=FOLDER here and for the workers. "
            f"Without a download: {CURE}, {_NO_WEIGHTS_NEEDED}",
        )
    registry = read_registry()
    # `identify_model` has compared the files with these.
    is_pinned = all((entry := registry.get(file)) is not None and entry.algorithm in _UNFORGEABLE for file in files)
    return Weights(folder / name, folder / files[1] if len(files) > 1 else None, is_trusted=is_pinned)
