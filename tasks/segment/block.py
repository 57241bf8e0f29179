"""Segment one block: pad its pixels to the one shape of the grid, call the segmenter, keep the labels that lie on the slide.

Arrays in, arrays out: this module reads and writes no files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fastremap
import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.grid import Block, BlockGrid
from slidesam.tasks.segmenters.base import Params, Segmenter
from slidesam.tasks.segmenters.votes import ClassifiedLabels, Votes, split_votes
from slidesam.tasks.slides.no_data import fill_no_data

LABEL_DTYPE = np.uint32


def segment_outer(
    image: NDArray[Any], block: Block, grid: BlockGrid, segmenter: Segmenter, params: Params, fill: NDArray[Any]
) -> NDArray[np.uint32]:
    """Compute the local labels of a block's outer region.

    Args:
        image: (y, x, c) pixels of the outer region.
        block: The block.
        grid: Its grid, whose `outer_shape` is the shape of every input tile.
        segmenter: What turns pixels into labels.
        params: What its `prepare` returned for this slide.
        fill: (c,) the slide's background, put where the input tile reaches past the slide and where pixels hold no data.

    Returns:
        (y, x) uint32 of the outer region's shape, ids 1..n in order of appearance, 0 = background.

    Raises:
        SegmenterError: The segmenter returned no label image of its input's shape.
    """
    return np.asarray(split_votes(begin_outer(image, block, grid, segmenter, params, fill)())[0], LABEL_DTYPE)


def begin_outer(
    image: NDArray[Any], block: Block, grid: BlockGrid, segmenter: Segmenter, params: Params, fill: NDArray[Any]
) -> Callable[[], NDArray[np.uint32] | ClassifiedLabels]:
    """Do the device's part of `segment_outer`, and return a function for the rest, which any thread may call later.

    Only two-phase segmenters return deferred work; of the others only the labels' order and place are left. A segmenter that
    gives classes has votes returned with the labels, of the same pixels.
    """
    tile = grid.input_tile(block)
    image = fill_no_data(image, fill)
    padded = _squeeze(pad_to(image, grid.outer_shape, (block.outer.y0 - tile.y0, block.outer.x0 - tile.x0), fill))
    on_slide = block.outer.relative_to(tile).slices
    deferred = segmenter.begin(padded, params)

    def finish() -> NDArray[np.uint32] | ClassifiedLabels:
        whole, votes = split_votes(deferred())
        labels = renumber(check_labels(whole, grid.outer_shape)[on_slide])
        return labels if votes is None else ClassifiedLabels(labels, Votes(votes.rows[on_slide], votes.shares))

    return finish


def renumber(labels: NDArray[Any]) -> NDArray[np.uint32]:
    """Give the same (y, x) objects the ids 1..n in order of appearance."""
    in_order, _ = fastremap.renumber(np.ascontiguousarray(labels), preserve_zero=True, in_place=False)
    return np.asarray(in_order, LABEL_DTYPE)


def pad_to(image: NDArray[Any], shape: tuple[int, int], offset: tuple[int, int], fill: NDArray[Any]) -> NDArray[Any]:
    """Make an image of `shape` that holds `image` at `offset` and `fill` around it.

    Args:
        image: (y, x, c) pixels.
        shape: Height and width of the result.
        offset: Row and column at which the image starts.
        fill: (c,) value of the padding.

    Returns:
        (y, x, c) in the image's dtype; the image itself if there is nothing to pad.
    """
    if image.shape[:2] == shape:
        return image
    padded = np.empty((*shape, image.shape[2]), image.dtype)
    padded[...] = fill
    padded[offset[0] : offset[0] + image.shape[0], offset[1] : offset[1] + image.shape[1]] = image
    return padded


def check_labels(labels: object, shape: tuple[int, int]) -> NDArray[np.integer[Any]]:
    """Return the labels if they are a (y, x) array of non-negative integers of the given shape.

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
    # Compiled loops take the machine's own byte order only.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _squeeze(image: NDArray[Any]) -> NDArray[Any]:
    """Return (y, x) if there is one channel: most methods expect that."""
    return image[..., 0] if image.shape[2] == 1 else image
