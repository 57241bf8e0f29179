"""A user's own method: a function `image -> labels`, or a class with `prepare` and `segment`, named `package.module:name`."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SegmenterError, in_one_line
from slidesam.tasks.segmenters.base import DeferredLabels, Params, Segmenter
from slidesam.tasks.settings.methods import Function

if TYPE_CHECKING:
    from slidesam.tasks.slides.facts import Slide


class PlainFunction(Segmenter):
    """A function of the image alone as a segmenter that needs no parameters.

    Args:
        function: (y, x[, c]) image → (y, x) integer labels.
    """

    def __init__(self, function: Callable[[NDArray[Any]], NDArray[np.integer[Any]]]) -> None:
        self.function = function

    def prepare(self, sample: NDArray[Any], slide: Slide) -> dict[str, Any]:
        """Return no parameters."""
        return {}

    def segment(self, image: NDArray[Any], params: Params) -> NDArray[np.integer[Any]]:
        """Return the function's labels."""
        return self.function(image)


class OwnClass(Segmenter):
    """An object of the user's class as a segmenter: its `device` and `begin` are optional.

    Args:
        method: The object, with `prepare` and `segment`.
    """

    def __init__(self, method: Any) -> None:
        self.method = method

    @property
    def device(self) -> str:  # type: ignore[override]  # the user's object may change its own
        """The object's `device`, or cpu."""
        return str(getattr(self.method, "device", "cpu"))

    def prepare(self, sample: NDArray[Any], slide: Slide) -> dict[str, Any]:
        """Return the parameters from the object."""
        params: dict[str, Any] = self.method.prepare(sample, slide)
        return params

    def segment(self, image: NDArray[Any], params: Params) -> NDArray[np.integer[Any]]:
        """Return the labels from the object."""
        labels: NDArray[np.integer[Any]] = self.method.segment(image, params)
        return labels

    def begin(self, image: NDArray[Any], params: Params) -> DeferredLabels:
        """Call the object's `begin`, if it has one; otherwise nothing is left for later."""
        if not callable(getattr(self.method, "begin", None)):
            return super().begin(image, params)
        deferred: DeferredLabels = self.method.begin(image, params)
        return deferred


def load_function(settings: Function) -> Segmenter:
    """Load the segmenter that `target` names: a class with `prepare` and `segment`, or a plain function.

    The caller has made sure that the target is allowed (`allowed.permit`): importing a module runs its code.

    Raises:
        SegmenterError: The target can't be imported, is neither, or doesn't take what a segmenter is given.
    """
    module_name, name = settings.target.split(":")
    try:
        target = getattr(importlib.import_module(module_name), name)
    except Exception as error:  # the module is the user's: anything can come out of it
        raise SegmenterError(f"{_describe_target(settings)} can't be imported ({in_one_line(error)})", _CURE) from error
    if inspect.isclass(target):
        return _make(target, settings)
    if not callable(target):
        raise SegmenterError(f"{_describe_target(settings)} is neither a function nor a class")
    _check_call(settings, target, 1, settings.options, "called with an image and segmenter.options")
    return PlainFunction(functools.partial(target, **settings.options) if settings.options else target)


def _make(target: type, settings: Function) -> Segmenter:
    """Make an instance of the user's class, once it is known to be a segmenter: making one runs its code."""
    for method, arguments in (("prepare", "sample, slide"), ("segment", "image, params")):
        function = getattr(target, method, None)
        if not callable(function):
            raise SegmenterError(
                f"{_describe_target(settings)} is a class without prepare and segment", "see docs/own-segmenter.md"
            )
        is_bound = isinstance(inspect.getattr_static(target, method), classmethod | staticmethod)
        _check_call(settings, function, 2 if is_bound else 3, {}, f"used: its {method} doesn't take ({arguments})")
    _check_call(settings, target, 0, settings.options, "made with segmenter.options")
    try:
        segmenter = target(**settings.options)
    except MemoryError:
        # On another worker there may be enough.
        raise
    except Exception as error:  # as above
        raise SegmenterError(
            f"{_describe_target(settings)} can't be made with segmenter.options ({in_one_line(error)})",
            "correct the options or the class",
        ) from error
    return OwnClass(segmenter)


def _check_call(
    settings: Function, function: Callable[..., Any], n_arguments: int, options: dict[str, Any], purpose: str
) -> None:
    """Check that a function takes so many arguments and these options, without calling it.

    Raises:
        SegmenterError: It doesn't.
    """
    try:
        inspect.signature(function).bind(*[None] * n_arguments, **options)
    except (TypeError, ValueError) as error:
        raise SegmenterError(
            f"{_describe_target(settings)} can't be {purpose} ({error})", "correct the options or the code"
        ) from error


def identify_source(settings: Function) -> str:
    """Return name and hash of the file that holds the function: another source is another segmenter.

    Raises:
        SegmenterError: The module can't be found.
    """
    module_name = settings.target.split(":")[0]
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError) as error:
        raise SegmenterError(f"{_describe_target(settings)} can't be found ({error})", _CURE) from error
    if spec is None:
        raise SegmenterError(f"{_describe_target(settings)} can't be found", _CURE)
    source = Path(spec.origin).read_bytes() if spec.origin and Path(spec.origin).is_file() else b""
    return f"{settings.target} sha256:{hashlib.sha256(source).hexdigest()[:16]}"


_CURE = "install its package where the workers run, or put its folder on PYTHONPATH"


def _describe_target(settings: Function) -> str:
    return f"setting segmenter.target: {settings.target}"
