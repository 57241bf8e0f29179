"""One's own method: a plain function `image -> labels`, or a class with `prepare` and `segment`, named `package.module:name`."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SegmenterError, in_one_line
from slidesam.tasks.settings.methods import Function

if TYPE_CHECKING:
    from slidesam.tasks.segmenters import Params, Segmenter
    from slidesam.tasks.slides.facts import Slide


class PlainFunction:
    """A function of the image alone as a segmenter that needs no parameters.

    Args:
        function: (y, x[, c]) image → (y, x) integer labels.
    """

    def __init__(self, function: Callable[[NDArray[Any]], NDArray[np.integer[Any]]]) -> None:
        self.function = function

    def prepare(self, sample: NDArray[Any], slide: Slide) -> dict[str, Any]:
        """Nothing to prepare."""
        return {}

    def segment(self, image: NDArray[Any], params: Params) -> NDArray[np.integer[Any]]:
        """What the function returns."""
        return self.function(image)


def load_function(settings: Function) -> Segmenter:
    """The segmenter that `target` names: a class with `prepare` and `segment`, or a plain function.

    Raises:
        SegmenterError: It can't be imported or made, or is neither.
    """
    module_name, name = settings.target.split(":")
    try:
        target = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # the module is the user's: anything can come out of it
        raise SegmenterError(f"{_where(settings)} can't be imported ({in_one_line(error)})", _CURE) from error
    if inspect.isclass(target):
        return _made(target, settings)
    if not callable(target):
        raise SegmenterError(f"{_where(settings)} is neither a function nor a class")
    try:
        inspect.signature(target).bind(None, **settings.options)
    except (TypeError, ValueError) as error:
        raise SegmenterError(
            f"{_where(settings)} can't be called with an image and segmenter.options ({error})"
        ) from error
    return PlainFunction(functools.partial(target, **settings.options) if settings.options else target)


def _made(target: type, settings: Function) -> Segmenter:
    """An instance of the user's class."""
    try:
        segmenter = target(**settings.options)
    except Exception as error:  # likewise
        raise SegmenterError(
            f"{_where(settings)} can't be made with segmenter.options ({in_one_line(error)})",
            "mend the options or the class",
        ) from error
    if not all(callable(getattr(segmenter, method, None)) for method in ("prepare", "segment")):
        raise SegmenterError(f"{_where(settings)} is a class without prepare and segment", "see docs/own-segmenter.md")
    return cast("Segmenter", segmenter)


def source_identity(settings: Function) -> str:
    """Name and hash of the file that holds the function: another source is another segmenter.

    Raises:
        SegmenterError: The module can't be found.
    """
    module_name = settings.target.split(":")[0]
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError) as error:
        raise SegmenterError(f"{_where(settings)} can't be found ({error})", _CURE) from error
    if spec is None:
        raise SegmenterError(f"{_where(settings)} can't be found", _CURE)
    source = Path(spec.origin).read_bytes() if spec.origin and Path(spec.origin).is_file() else b""
    return f"{settings.target} sha256:{hashlib.sha256(source).hexdigest()[:16]}"


_CURE = "install its package where the workers run, or put its folder on PYTHONPATH"


def _where(settings: Function) -> str:
    return f"setting segmenter.target: {settings.target}"
