"""What a segmenter says of the classes of its objects: each pixel votes, and an object gets the class with the most votes.

The votes of an object's fragments add up, whichever blocks they come from. So an object across a seam gets the class of all its
pixels. Class 0 is background.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.settings.methods import MicroSam, SegmenterSettings

PATHO_SAM_CLASSES = ("background", "neoplastic", "inflammatory", "connective", "dead", "epithelial")
"""The classes of PathoSAM's decoder, in order: those of PanNuke, as its authors' training numbers them.

https://github.com/constantinpape/torch-em/blob/main/torch_em/data/datasets/histopathology/pannuke.py
"""


class Votes(NamedTuple):
    """What pixels say of classes: each pixel has a row of shares.

    Attributes:
        rows: (y, x) uint32 number of each pixel's row.
        shares: (rows, classes) float64 the pixel's vote, divided among the classes.
    """

    rows: NDArray[np.uint32]
    shares: NDArray[np.float64]


class ClassifiedLabels(NamedTuple):
    """Labels, and votes on the classes of their objects.

    Attributes:
        labels: (y, x) integers, 0 = background.
        votes: Votes of the same pixels.
    """

    labels: NDArray[np.integer[Any]]
    votes: Votes


def split_votes(
    result: NDArray[np.integer[Any]] | ClassifiedLabels,
) -> tuple[NDArray[np.integer[Any]], Votes | None]:
    """Return the labels, and the votes if there are any."""
    return result if isinstance(result, ClassifiedLabels) else (result, None)


def has_classes(settings: SegmenterSettings) -> TypeGuard[MicroSam]:
    """Tell whether a segmenter gives classes."""
    return isinstance(settings, MicroSam) and settings.classes != "off"


def name_classes(settings: SegmenterSettings, count: int) -> tuple[str, ...]:
    """Name the classes 0, 1, 2, ...: as the settings do, else as PathoSAM does, else by their numbers.

    Args:
        settings: The segmenter's settings.
        count: How many classes there are.

    Example:
        >>> name_classes(MicroSam(classes="objects"), 3)
        ('background', '1', '2')
        >>> name_classes(MicroSam(classes="objects", class_names=("nothing", "round", "long")), 3)
        ('nothing', 'round', 'long')
    """
    names = settings.class_names if isinstance(settings, MicroSam) else ()
    if not names and isinstance(settings, MicroSam) and settings.classes == "semantic":
        names = PATHO_SAM_CLASSES
    return names[:count] or ("background", *map(str, range(1, count)))
