"""Give objects classes from the embeddings that are there already: by a decoder of classes, or by a classifier of objects.

semantic    a decoder that names the class of each pixel, one more pass per tile; PathoSAM's, or one that was trained alike
objects     micro-sam's object classifier: a random forest on the mean embedding of each object, by the user

References:
    PathoSAM: https://github.com/computational-cell-analytics/patho-sam
    Object classifier: https://computational-cell-analytics.github.io/micro-sam/micro_sam.html#object-classifier
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import fastremap
import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SegmenterError, in_one_line
from slidesam.tasks.segmenters.microsam import library
from slidesam.tasks.segmenters.microsam.class_files import find_class_file
from slidesam.tasks.segmenters.torch_host import UNUSABLE
from slidesam.tasks.segmenters.votes import Votes, name_classes
from slidesam.tasks.settings.methods import MicroSam

Labels = NDArray[np.integer[Any]]


class Classifier(Protocol):
    """What gives a block's objects classes."""

    def begin(self, image: NDArray[Any], embeddings: dict[str, Any]) -> Callable[[Labels], Votes]:
        """Do the device's part, and return a function that makes votes of the block's labels, in any thread.

        Args:
            image: (y, x[, c]) the block's pixels, of which only the shape counts.
            embeddings: Its embeddings, in the form that micro-sam's generators take.
        """


def make_classifier(
    settings: MicroSam, is_rgb: bool, model: library.Model, device: str, *, is_tiled: bool
) -> Classifier | None:
    """Make what the settings name; None if objects get no classes.

    Args:
        settings: The segmenter's settings.
        is_rgb: Whether the slide is red, green and blue.
        model: The model, whose embeddings will be given.
        device: Where it is.
        is_tiled: Whether embeddings come in tiles.

    Raises:
        SegmenterError: The file is missing, or holds nothing of the kind.
    """
    if settings.classes == "off":
        return None
    path = find_class_file(settings, is_rgb)
    if settings.classes == "objects":
        return _ObjectClassifier(settings, path)
    return _PixelClassifier(settings, path, model, device, is_tiled=is_tiled)


class _PixelClassifier:
    """Lets each pixel vote for the class that the decoder gives it."""

    def __init__(self, settings: MicroSam, path: Path, model: library.Model, device: str, *, is_tiled: bool) -> None:
        import torch

        try:
            state = torch.load(path, map_location="cpu", weights_only=not settings.class_trust)
            self._count = len(state["out_conv.bias"])
            self._generator = library.make_class_generator(model, state, device, is_tiled=is_tiled)
        except (*UNUSABLE, pickle.UnpicklingError) as error:
            raise SegmenterError(
                f"{path} can't be loaded as weights of a decoder of classes ({in_one_line(error, 300)})",
                "save the decoder's weights alone (patho_sam's export_semantic_segmentation_decoder does)",
            ) from error
        _check_names(settings, path, self._count)

    def begin(self, image: NDArray[Any], embeddings: dict[str, Any]) -> Callable[[Labels], Votes]:
        self._generator.initialize(image=image, image_embeddings=embeddings, verbose=False)
        votes = Votes(library.read_class_map(self._generator), np.eye(self._count))
        return lambda labels: votes


class _ObjectClassifier:
    """Lets each object's pixels vote with the probabilities that the classifier gives the object."""

    def __init__(self, settings: MicroSam, path: Path) -> None:
        import joblib  # type: ignore[import-untyped]

        try:
            # `allowed.permit` and `find_class_file` have made sure that the file is trusted: this runs what is in it.
            self._forest = joblib.load(path)
            self._numbers = np.asarray(self._forest.classes_, np.int64)
            has_probabilities = callable(self._forest.predict_proba)
        except (*UNUSABLE, pickle.UnpicklingError) as error:
            raise SegmenterError(
                f"{path} can't be loaded as an object classifier ({in_one_line(error, 300)})",
                "export one from micro-sam's object classifier, with the same version of scikit-learn",
            ) from error
        if not has_probabilities or not self._numbers.size or self._numbers.min() < 0:
            raise SegmenterError(f"{path} is no classifier with classes 0, 1, 2, ... and probabilities")
        # Several threads add probabilities up in any order, which changes the last bits.
        self._forest.n_jobs = 1
        self._count = int(self._numbers.max()) + 1
        _check_names(settings, path, self._count)

    def begin(self, image: NDArray[Any], embeddings: dict[str, Any]) -> Callable[[Labels], Votes]:
        return functools.partial(self._vote, library.copy_to_host(embeddings))

    def _vote(self, embeddings: dict[str, Any], labels: Labels) -> Votes:
        numbered, _ = fastremap.renumber(np.ascontiguousarray(labels), preserve_zero=True, in_place=False)
        rows = np.asarray(numbered, np.uint32)
        ids, features = library.compute_features(embeddings, rows)
        shares = np.zeros((int(rows.max(initial=0)) + 1, self._count))
        # An object too small to be seen in the embeddings is background, as in micro-sam's own prediction.
        shares[:, 0] = 1
        if ids.size:
            shares[ids] = 0
            shares[np.ix_(ids, self._numbers)] = self._forest.predict_proba(features)
        return Votes(rows, shares)


def _check_names(settings: MicroSam, path: Path, count: int) -> None:
    names = name_classes(settings, count)
    if len(names) != count or len(settings.class_names) > count:
        given = len(settings.class_names) or len(names)
        raise SegmenterError(
            f"segmenter.class_names are {given}, but {path} tells {count} classes apart",
            "give a name for each, the background's first",
        )
