"""Finish a block while the device computes the next: the host makes its labels and writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from slidesam.tasks.retry import Action, decide


class Finisher:
    """Finishes one block at a time, in order, in a thread.

    At most one block is being finished, so memory holds two blocks at most.

    Args:
        failures: Collects the errors of single blocks, by their ids (`note`).
    """

    def __init__(self, failures: dict[int, Exception]) -> None:
        self._failures = failures
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="finish")
        self._current: tuple[int, Future[None]] | None = None

    def __enter__(self) -> Finisher:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def add(self, block_id: int, finish: Callable[[], None], mark_stack: ExitStack) -> None:
        """Finish a block, as soon as the previous block is finished.

        Args:
            block_id: The block.
            finish: Makes the block's labels and writes them.
            mark_stack: Holds the block's start-mark, and is closed when the block is finished or has failed.

        Raises:
            OutputError, SlideGoneError: The previous block met one that no other block would get past.
        """

        def finish_marked() -> None:
            with mark_stack:
                finish()

        try:
            self.wait()
        # Ctrl-C too: a start-mark that stays would be held against this block.
        except BaseException:
            mark_stack.close()
            raise
        self._current = block_id, self._thread.submit(finish_marked)

    def wait(self) -> None:
        """Wait until the current block is finished.

        Raises:
            OutputError, SlideGoneError: It met one that no other block would get past.
        """
        if self._current is None:
            return
        (block_id, future), self._current = self._current, None
        with self.note(block_id):
            future.result()

    @contextmanager
    def note(self, block_id: int) -> Iterator[None]:
        """Collect the error of a block; let pass an error that no other block would get past."""
        try:
            yield
        except Exception as error:
            if decide(error) is Action.STOP:
                raise
            self._failures[block_id] = error
