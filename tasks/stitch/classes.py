"""Add up the votes on the classes of the slide's objects, over the block labels that painting keeps of each.

Of a label that gives its object's outline all pixels vote, of a fragment those that its block owns: the pixels that the object
claims (`Resolution.size`). A pixel that two objects claim votes for both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.labels.results import BlockResults
from slidesam.tasks.stitch.paint import Numbers


class ObjectVotes(NamedTuple):
    """Votes on the classes of objects; on disk these are arrays beside what painting measures.

    Attributes:
        voted: (n,) int64 ids in the slide, ascending.
        votes: (n, classes) float64.
    """

    voted: NDArray[np.int64]
    votes: NDArray[np.float64]


def add_up_votes(block_ids: Iterable[int], numbering: Numbers, results: BlockResults) -> ObjectVotes:
    """Add up the votes of what is painted of these blocks' labels, by object.

    Args:
        block_ids: Segmented blocks, ascending.
        numbering: The ids of their labels.
        results: The blocks' results.

    Raises:
        DamagedError: A block's result or the numbering is damaged or gone.
    """
    parts = []
    for block_id in block_ids:
        if results.count(block_id):
            ids, votes = numbering.ids(block_id)[1:], results.votes(block_id)
            kept = np.where(ids[:, None] > 0, votes[:, 0], votes[:, 1])
            parts.append(ObjectVotes(np.abs(ids)[ids != 0], kept[ids != 0]))
    return join_votes(parts)


def join_votes(parts: Sequence[ObjectVotes]) -> ObjectVotes:
    """Join votes from several places, in this order, so that the last bits of sums are always the same.

    Example:
        >>> one = ObjectVotes(np.array([3, 5]), np.array([[1.0, 4.0], [2.0, 0.0]]))
        >>> join_votes([one, ObjectVotes(np.array([3]), np.array([[0.0, 9.0]]))]).votes.tolist()
        [[1.0, 13.0], [2.0, 0.0]]
    """
    parts = [part for part in parts if part.voted.size]
    if not parts:
        return ObjectVotes(np.zeros(0, np.int64), np.zeros((0, 1)))
    ids, rows = np.unique(np.concatenate([part.voted for part in parts]), return_inverse=True)
    votes = np.zeros((ids.size, parts[0].votes.shape[1]))
    np.add.at(votes, rows, np.concatenate([part.votes for part in parts]))
    return ObjectVotes(ids, votes)
