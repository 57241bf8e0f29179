"""How many blocks a task takes: one, or as many as make some seconds of work."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

# What a batch of short blocks takes together.
_BATCH_SECONDS = 5.0


class Batches:
    """Block ids in batches, some of which may be put back while others are at work.

    Short blocks go together, up to some seconds of work, as soon as it is known how long they take: a task costs a tenth of a
    second, and one that takes minutes would keep whoever watches waiting.

    Args:
        ids: The blocks.
        size: How many a batch holds at first.
        largest: How many it may hold at most.
        workers: Who share them, if that is known: towards the end batches shrink, so that all are done at about the same time.
    """

    def __init__(self, ids: Iterable[int], size: int, largest: int, workers: int | None = None) -> None:
        self._ids, self._size, self._largest, self._workers = deque(ids), size, largest, workers
        self._done, self._seconds = 0, 0.0

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return self

    def __next__(self) -> tuple[int, ...]:
        """The next batch, if there is one now."""
        if not self._ids:
            raise StopIteration
        return tuple(self._ids.popleft() for _ in range(min(self.size, len(self._ids))))

    @property
    def size(self) -> int:
        """How many blocks a batch holds now."""
        if not self._done:
            return self._size
        fitting = min(self._largest, round(_BATCH_SECONDS * self._done / max(self._seconds, 1e-9)))
        if self._workers is not None:
            fitting = min(fitting, -(-len(self._ids) // (2 * self._workers)))
        return max(self._size, fitting)

    def learn(self, blocks: int, seconds: float) -> None:
        """Takes note of how long a batch took."""
        self._done += blocks
        self._seconds += seconds

    def put_back(self, ids: Iterable[int]) -> None:
        """Adds blocks, to be taken after those that wait."""
        self._ids.extend(ids)
