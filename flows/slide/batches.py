"""Decides how many blocks a task takes: one, or enough for some seconds of work."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

# Seconds of work in a batch of short blocks.
_BATCH_SECONDS = 5.0


class Batches:
    """Iterates over block ids in batches; blocks can be put back while other batches are computed.

    Once the duration of blocks is known, batches of short blocks grow up to some seconds of work: a task costs a tenth of a
    second, but a task of minutes would show no progress.

    Args:
        ids: The blocks.
        size: Number of blocks per batch at first.
        largest: Largest number of blocks per batch.
        workers: Number of workers, if known: batches shrink towards the end, so that all workers finish at about the same time.
    """

    def __init__(self, ids: Iterable[int], size: int, largest: int, workers: int | None = None) -> None:
        self._ids, self._size, self._largest, self._workers = deque(ids), size, largest, workers
        self._done, self._seconds = 0, 0.0

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return self

    def __next__(self) -> tuple[int, ...]:
        """Return the next batch, if there is one now."""
        if not self._ids:
            raise StopIteration
        return tuple(self._ids.popleft() for _ in range(min(self.size, len(self._ids))))

    @property
    def size(self) -> int:
        """Current number of blocks per batch."""
        if not self._done:
            return self._size
        size = min(self._largest, round(_BATCH_SECONDS * self._done / max(self._seconds, 1e-9)))
        if self._workers is not None:
            size = min(size, -(-len(self._ids) // (2 * self._workers)))
        return max(self._size, size)

    def learn(self, blocks: int, seconds: float) -> None:
        """Record how long a batch took."""
        self._done += blocks
        self._seconds += seconds

    def put_back(self, ids: Iterable[int]) -> None:
        """Add blocks after those that wait."""
        self._ids.extend(ids)
