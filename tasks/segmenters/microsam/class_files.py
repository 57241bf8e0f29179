"""Find the file that objects' classes come from, and its identity: without torch, micro-sam or unpickling anything."""

from __future__ import annotations

from pathlib import Path

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters.microsam.registry import CLASS_DECODERS, check_file, find_cache_folder, read_registry
from slidesam.tasks.segmenters.microsam.weights import choose_model
from slidesam.tasks.segmenters.torch_host import hash_files
from slidesam.tasks.settings.methods import MicroSam


def identify_classes(settings: MicroSam, is_rgb: bool) -> str:
    """Return what the fingerprint says of the classes: their kind and the file's hash; empty if objects get none.

    Raises:
        SegmenterError: See `find_class_file`.
    """
    if settings.classes == "off":
        return ""
    return f" with {settings.classes} classes {hash_files([find_class_file(settings, is_rgb)])}"


def find_class_file(settings: MicroSam, is_rgb: bool) -> Path:
    """Find the decoder or classifier that the settings name.

    Raises:
        SegmenterError: It isn't there, isn't the registered one, belongs to another model, or isn't trusted though it must be.
    """
    if settings.class_file is None:
        return _find_registered(settings, is_rgb)
    path = Path(settings.class_file).expanduser()
    if settings.classes == "objects" and not settings.class_trust:
        raise SegmenterError(
            f"segmenter.class_file {path} is a pickle, which runs whatever code its maker put in, so it isn't loaded",
            "if you trust who made it, add `--set segmenter.class_trust=true` to the command",
        )
    if not path.is_file():
        raise SegmenterError(
            f"segmenter.class_file {path} is no file on this machine", "give a path that the workers see too"
        )
    return path


def _find_registered(settings: MicroSam, is_rgb: bool) -> Path:
    """Find PathoSAM's decoder in micro-sam's cache, whole."""
    if settings.classes == "objects":
        raise SegmenterError(
            "segmenter.classes: objects needs segmenter.class_file",
            "the .joblib file that micro-sam's object classifier exported",
        )
    model = choose_model(settings, is_rgb)
    if settings.checkpoint is not None or model not in CLASS_DECODERS:
        of = "your own checkpoint" if settings.checkpoint is not None else model
        raise SegmenterError(
            f"segmenter.classes: semantic has no decoder of classes for {of}",
            f"set segmenter.model to {' or '.join(CLASS_DECODERS)}, or give segmenter.class_file",
        )
    name = CLASS_DECODERS[model]
    path = find_cache_folder() / name
    state = check_file(path, read_registry().get(name))
    if state in ("missing", "wrong"):
        reason = "is not on this machine" if state == "missing" else "is not the file of slidesam's registry"
        raise SegmenterError(
            f"the decoder of classes {path} {reason}",
            f"where there is internet, run `slidesam models fetch {name} --cache FOLDER` with a FOLDER that the workers see, "
            "and set MICROSAM_CACHEDIR=FOLDER here and for the workers",
        )
    return path
