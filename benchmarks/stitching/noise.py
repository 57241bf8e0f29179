"""What neighbouring blocks disagree on: every block sees each of its objects on its own, and errs on its own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label

Labels = NDArray[np.uint32]
# Further than any error reaches: with it an object is changed before the block's view cuts it, not after.
MARGIN = 4
_SQUARE = np.ones((3, 3), bool)


class Noise(NamedTuple):
    """Which share of the objects of a block suffers what; the rest is seen as it is.

    Attributes:
        eroded: By one pixel.
        dilated: By one pixel, over background and over neighbours.
        shifted: By one or two pixels in both directions.
        dropped: Not seen at all.
        split: Cut in two through its middle.
    """

    eroded: float = 0.2
    dilated: float = 0.2
    shifted: float = 0.1
    dropped: float = 0.03
    split: float = 0.03


PERFECT = Noise(0, 0, 0, 0, 0)


def seen_by_block(truth: Labels, outer: tuple[slice, slice], noise: Noise, rng: np.random.Generator) -> Labels:
    """What one block takes for its objects.

    Args:
        truth: (y, x) labels of the whole scene.
        outer: The pixels that the block sees.
        noise: How it errs.
        rng: Where chance comes from.

    Returns:
        (y, x) uint32 labels of the outer region, 1..n in random order. An object whose pieces don't hang together in this view
        counts as several, as it would for any segmenter.
    """
    around = tuple(
        slice(max(s.start - MARGIN, 0), min(s.stop + MARGIN, n)) for s, n in zip(outer, truth.shape, strict=True)
    )
    seen = label(truth[around], background=0, connectivity=2)
    if sum(noise) > 0:
        seen = _blurred(seen, noise, rng)
    view = seen[tuple(slice(s.start - a.start, s.stop - a.start) for s, a in zip(outer, around, strict=True))]
    view = label(view, background=0, connectivity=2)
    order = np.concatenate([[0], 1 + rng.permutation(view.max())])
    return order[view].astype(np.uint32)


def _blurred(labels: NDArray[np.integer], noise: Noise, rng: np.random.Generator) -> NDArray[np.integer]:
    """Draws for each object what happens to it, and paints them in random order."""
    boxes = ndimage.find_objects(labels)
    fates = rng.choice(6, size=len(boxes), p=[1 - sum(noise), *noise])
    painted = np.zeros_like(labels)
    extra = len(boxes)
    for index in rng.permutation(len(boxes)):
        box = tuple(slice(max(s.start - 3, 0), s.stop + 3) for s in boxes[index])
        mask = labels[box] == index + 1
        match fates[index]:
            case 1:
                mask = ndimage.binary_erosion(mask, _SQUARE, border_value=1)
            case 2:
                mask = ndimage.binary_dilation(mask, _SQUARE)
            case 3:
                mask = _shifted(mask, rng.choice([-2, -1, 1, 2], 2))
            case 4:
                continue
        painted[box][mask] = index + 1
        if fates[index] == 5:
            extra += 1
            painted[box][mask & _half(mask, rng)] = extra
    return painted


def _shifted(mask: NDArray[np.bool_], by: NDArray[np.integer]) -> NDArray[np.bool_]:
    """A mask moved by some pixels; what moves out of the array is gone."""
    return ndimage.shift(mask, by, order=0, mode="constant", cval=0)


def _half(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """The pixels on one side of a line through the mask's middle."""
    y, x = np.nonzero(mask)
    if not y.size:
        return mask
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.indices(mask.shape)
    return (rows - y.mean()) * np.sin(angle) + (columns - x.mean()) * np.cos(angle) > 0
