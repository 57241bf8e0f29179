"""The classes of a slide's objects: the table `<name>.<label>.classes.csv`, and the colours of the label image.

An object gets the class that most of its pixels vote for, background left out; background where all do. So what the segmenter
found stays an object of some kind even where the decoder of classes sees background in most of its pixels. The probability tells:
it is the share of all pixels, and below a half in that case. HoVer-Net decides alike
(https://github.com/vqdang/hover_net/blob/master/models/hovernet/post_proc.py).
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run.array_files import load_arrays
from slidesam.tasks.run.files import write_atomic
from slidesam.tasks.run.run import Run
from slidesam.tasks.segmenters.votes import has_classes, name_classes
from slidesam.tasks.stitch.batches import batch_name, block_batches
from slidesam.tasks.stitch.classes import ObjectVotes, join_votes

COLUMNS = ("object", "class", "probability")
_DIGITS = 4
# Viewers read colours and properties whole, some 250 bytes of JSON for each object: of more objects the table alone tells.
_MOST_COLOURED = 50_000
# Background, then as HoVer-Net shows PanNuke's classes, then others; classes beyond these share colours.
_COLOURS = (
    (128, 128, 128),
    *((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 165, 0)),
    *((0, 255, 255), (255, 0, 255), (128, 0, 255), (0, 128, 128), (255, 128, 192)),
)


def choose_classes(votes: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Choose each object's class.

    Args:
        votes: (n, classes) votes; class 0 is background.

    Returns:
        (n,) numbers of classes, of equals the lower one; (n,) probability: the share of the object's votes that the class has.

    Example:
        >>> numbers, probability = choose_classes(np.array([[60.0, 10.0, 30.0], [8.0, 0.0, 0.0]]))
        >>> numbers.tolist(), probability.tolist()
        ([2, 0], [0.3, 1.0])
    """
    kinds = votes[:, 1:]
    numbers = np.zeros(len(votes), np.int64)
    is_kind = kinds.any(axis=1)
    numbers[is_kind] = 1 + kinds[is_kind].argmax(axis=1)
    total = np.maximum(votes.sum(axis=1), np.finfo(float).tiny)
    return numbers, votes[np.arange(len(votes)), numbers] / total


def write_classes(run: Run) -> dict[str, Any]:
    """Write the table of the objects' classes.

    Returns:
        What the label image's metadata says of them, `colors` and `properties` of NGFF's `image-label`; nothing of a run without
        classes, which writes no table.

    Raises:
        DamagedError: What painting measured is damaged or gone.
        OutputError: The table can't be written.
    """
    if not has_classes(run.settings.segmenter):
        return {}
    measured = [load_arrays(run.paint_folder.measures(batch_name(batch))) for batch in block_batches(run)]
    voted = join_votes([ObjectVotes(arrays["voted"], arrays["votes"]) for arrays in measured])
    names = name_classes(run.settings.segmenter, voted.votes.shape[1])
    numbers, probability = choose_classes(voted.votes)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    columns = voted.voted.tolist(), numbers.tolist(), probability.round(_DIGITS).tolist()
    rows.writerows(
        (value, names[number], f"{share:.{_DIGITS}f}") for value, number, share in zip(*columns, strict=True)
    )
    write_atomic(run.paths.classes, text.getvalue().encode())
    return _describe(columns, names) if voted.voted.size <= _MOST_COLOURED else {}


def _describe(columns: tuple[list[int], list[int], list[float]], names: tuple[str, ...]) -> dict[str, Any]:
    """Return colours and properties of the label image: https://ngff.openmicroscopy.org/0.5/#labels-md."""
    # Validators want a property of each value that has a colour, so of 0 too, whose colour is there already.
    colours: list[dict[str, Any]] = []
    properties: list[dict[str, Any]] = [{"label-value": 0, "class": "none", "probability": 0.0}]
    for value, number, share in zip(*columns, strict=True):
        colours.append({"label-value": value, "rgba": [*choose_colour(number), 255]})
        properties.append({"label-value": value, "class": names[number], "probability": share})
    return {"colors": colours, "properties": properties}


def choose_colour(number: int) -> tuple[int, int, int]:
    """Return red, green and blue of a class."""
    return _COLOURS[number if number < len(_COLOURS) else 1 + (number - 1) % (len(_COLOURS) - 1)]


def read_classes(path: Path) -> NDArray[Any]:
    """Read a table of classes.

    Returns:
        (n,) structured array of `object` (int64), `class` (text) and `probability` (float64), by object.

    Raises:
        OutputError: There is no such table, or it can't be read as one.
    """
    try:
        header, *rows = csv.reader(io.StringIO(path.read_text()))
        if tuple(header) != COLUMNS:
            raise ValueError(f"its columns are {header}")
        values = [(int(value), name, float(share)) for value, name, share in rows]
    except FileNotFoundError as error:
        raise OutputError(f"{path} isn't there: the run gave its objects no classes (segmenter.classes)") from error
    except (OSError, ValueError) as error:
        raise OutputError(f"{path} is damaged ({error}): `slidesam verify --repair` takes it back") from error
    width = max((len(name) for _, name, _ in values), default=1)
    return np.array(values, np.dtype([("object", np.int64), ("class", f"U{width}"), ("probability", np.float64)]))
