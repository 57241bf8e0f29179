"""One block: read its outer region, hand the segmenter an image of the grid's one shape, keep the labels that lie on the slide.

No Prefect, no Dask: the same function runs serially, in a local cluster and in a job.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fastremap
import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.grid import Block, BlockGrid
from slidesam.tasks.segmenters import InTwoParts, Params, Segmenter

LABEL_DTYPE = np.uint32


def segment_outer(
    image: NDArray[Any], block: Block, grid: BlockGrid, segmenter: Segmenter, params: Params, fill: NDArray[Any]
) -> NDArray[np.uint32]:
    """Local labels of a block's outer region.

    Args:
        image: (y, x, c) pixels of the outer region.
        block: The block.
        grid: Its grid, whose `outer_shape` the segmenter sees whatever the block's place.
        segmenter: What turns pixels into labels.
        params: What its `prepare` returned for this slide.
        fill: (c,) the slide's background, put where the image reaches past the slide.

    Returns:
        (y, x) uint32 of the outer region's shape, ids 1..n in order of appearance, 0 = background.

    Raises:
        SegmenterError: The segmenter returned no label image of its input's shape.
    """
    return begin_outer(image, block, grid, segmenter, params, fill)()


def begin_outer(
    image: NDArray[Any], block: Block, grid: BlockGrid, segmenter: Segmenter, params: Params, fill: NDArray[Any]
) -> Callable[[], NDArray[np.uint32]]:
    """The part of `segment_outer` that wants the device, and a function for the rest, which any thread may call later.

    Only a segmenter that is `InTwoParts` leaves a rest.
    """
    window = grid.window(block)
    padded = _squeezed(pad_to(image, grid.outer_shape, (block.outer.y0 - window.y0, block.outer.x0 - window.x0), fill))
    own = block.outer.relative_to(window).slices

    def in_order(labels: object) -> NDArray[np.uint32]:
        return renumbered(checked_labels(labels, grid.outer_shape)[own])

    if isinstance(segmenter, InTwoParts):
        rest = segmenter.begin(padded, params)
        return lambda: in_order(rest())
    labels = in_order(segmenter.segment(padded, params))
    return lambda: labels


def renumbered(labels: NDArray[Any]) -> NDArray[np.uint32]:
    """The same (y, x) objects with ids 1..n in order of appearance."""
    in_order, _ = fastremap.renumber(np.ascontiguousarray(labels), preserve_zero=True, in_place=False)
    return np.asarray(in_order, LABEL_DTYPE)


def pad_to(image: NDArray[Any], shape: tuple[int, int], offset: tuple[int, int], fill: NDArray[Any]) -> NDArray[Any]:
    """An image of `shape` that holds `image` at `offset` and `fill` around it.

    Args:
        image: (y, x, c) pixels.
        shape: Height and width of the result.
        offset: Row and column at which the image starts.
        fill: (c,) value of the padding.

    Returns:
        (y, x, c) in the image's dtype; the image itself where there is nothing to pad.
    """
    if image.shape[:2] == shape:
        return image
    padded = np.empty((*shape, image.shape[2]), image.dtype)
    padded[...] = fill
    padded[offset[0] : offset[0] + image.shape[0], offset[1] : offset[1] + image.shape[1]] = image
    return padded


def checked_labels(labels: object, shape: tuple[int, int]) -> NDArray[np.integer[Any]]:
    """The labels, if they are a (y, x) array of non-negative integers of the given shape.

    Raises:
        SegmenterError: They aren't; the message says what they are.
    """
    array = np.asarray(labels)
    if array.shape != shape:
        raise SegmenterError(f"the segmenter returned shape {array.shape} for an image of {shape}: it must keep (y, x)")
    if array.dtype == bool or not np.issubdtype(array.dtype, np.integer):
        raise SegmenterError(f"the segmenter returned {array.dtype}: labels are integers, one number per object")
    if np.issubdtype(array.dtype, np.signedinteger) and array.size and array.min() < 0:
        raise SegmenterError("the segmenter returned negative labels: 0 is background, objects count from 1")
    return array


def _squeezed(image: NDArray[Any]) -> NDArray[Any]:
    """(y, x) where there is one channel: what most methods expect."""
    return image[..., 0] if image.shape[2] == 1 else image
