"""How blocks end while the next ones begin: the device computes, the host makes labels of the last and writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from slidesam.tasks.retry import Action, decide


class Finisher:
    """Finishes one block at a time, in order, in a thread of its own.

    Never more than one waits, so that memory holds two blocks at most.

    Args:
        failures: Gets what a block raises, but for what ends them all: `note`.
    """

    def __init__(self, failures: dict[int, Exception]) -> None:
        self._failures = failures
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="finish")
        self._last: tuple[int, Future[None]] | None = None

    def __enter__(self) -> Finisher:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def add(self, block_id: int, finish: Callable[[], None], marked: ExitStack) -> None:
        """Finishes a block, once the one before is.

        Args:
            block_id: The block.
            finish: What there is to do.
            marked: Left when it is finished, or has failed: its start-mark.

        Raises:
            OutputError, SlideGoneError: Those of the block before.
        """

        def in_marks() -> None:
            with marked:
                finish()

        try:
            self.wait()
        except BaseException:
            marked.close()
            raise
        self._last = block_id, self._thread.submit(in_marks)

    def wait(self) -> None:
        """Until the last block is finished.

        Raises:
            OutputError, SlideGoneError: It can't be, nor can any other.
        """
        if self._last is None:
            return
        (block_id, future), self._last = self._last, None
        with self.note(block_id):
            future.result()

    @contextmanager
    def note(self, block_id: int) -> Iterator[None]:
        """Keeps what a block raises for later; lets through what no other block would get past."""
        try:
            yield
        except Exception as error:
            if decide(error) is Action.STOP:
                raise
            self._failures[block_id] = error
