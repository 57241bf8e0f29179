"""Progress for a Python session: a callback, bars on a terminal, one line per stage in a notebook, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from slidesam.flows.console import PlainConsole
from slidesam.flows.progress.reporters import BarReporter, Reporter
from slidesam.tasks.errors import printable

# Called with the stage's name, how many of its units are done, and how many it has.
ProgressCallback = Callable[[str, int, int], None]
Progress = ProgressCallback | Literal[False] | None
_BAR_WIDTH = 20


class StageReporter:
    """Counts the units of each stage; shows nothing.

    Args:
        callback: Is told of each change.
    """

    def __init__(self, callback: ProgressCallback | None = None) -> None:
        self._callback = callback
        self.name, self.done, self.total = "", 0, 0

    def inform(self, message: str) -> None:
        """Drop a message."""

    def begin(self, stage: str, total: int, n_done: int) -> None:
        """Start a stage of `total` units, `n_done` of which exist already."""
        self.name, self.done, self.total = stage, n_done, total
        self.show()

    def advance(self, count: int = 1) -> None:
        """Count further units."""
        self.done += count
        self.show()

    def end(self) -> None:
        """End the stage."""

    def show(self) -> None:
        """Tell the callback."""
        if self._callback is not None:
            self._callback(self.name, self.done, self.total)


class NotebookReporter(StageReporter):
    """One line of text per stage, rewritten as it advances; needs no widgets."""

    def inform(self, message: str) -> None:
        """Print a message."""
        print(printable(message))

    def begin(self, stage: str, total: int, n_done: int) -> None:
        """Start a line."""
        self._line: Any = None
        super().begin(stage, total, n_done)

    def show(self) -> None:
        """Rewrite the line."""
        from IPython.display import display

        filled = _BAR_WIDTH * self.done // max(1, self.total)
        bar = "█" * filled + "·" * (_BAR_WIDTH - filled)
        data = {"text/plain": f"{bar} {printable(self.name)} {self.done}/{self.total}"}
        if self._line is None:
            self._line = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._line.update(data, raw=True)


@contextmanager
def open_reporter(progress: Progress, slide: str) -> Iterator[Reporter]:
    """Choose who shows progress.

    Args:
        progress: A callback; False = nobody; None = bars on a terminal, lines in a notebook, elsewhere nobody.
        slide: The slide's name.
    """
    console = PlainConsole(stderr=True, highlight=False, soft_wrap=True)
    if progress is None and console.is_jupyter:
        yield NotebookReporter()
    elif progress is None and console.is_terminal:
        reporter = BarReporter(console, slide)
        try:
            yield reporter
        finally:
            reporter.bars.stop()
    else:
        yield StageReporter(progress or None)
