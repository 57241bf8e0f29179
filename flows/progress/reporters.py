"""Progress of a run for whoever watches: bars on a terminal, one log line per stage elsewhere.

Flows report to `current()`; the command line puts its bars there with `showing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from prefect.logging import get_run_logger
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text


class Reporter(Protocol):
    """Who is told how far a run is."""

    def note(self, words: str) -> None:
        """Something to know: what is used of an earlier run, what is waited for."""

    def begin(self, stage: str, total: int, done: int) -> None:
        """A stage of `total` pieces starts, `done` of which are there from before."""

    def advance(self, pieces: int = 1) -> None:
        """Some more pieces are done."""

    def end(self) -> None:
        """The stage is over."""


class LogReporter:
    """One line per stage in the flow run's log: what the UI shows."""

    def note(self, words: str) -> None:
        """Logs it."""
        get_run_logger().info("%s", words)

    def begin(self, stage: str, total: int, done: int) -> None:
        """Logs the stage's start."""
        reused = f", {done} of them done before" if done else ""
        get_run_logger().info("%s: %d%s", stage, total, reused)

    def advance(self, pieces: int = 1) -> None:
        """Says nothing: a line per block can't be followed."""

    def end(self) -> None:
        """Says nothing."""


class _Rate(ProgressColumn):
    """Pieces per second of this run, without those that were there from before."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        words = "" if speed is None else f"{speed:.2f}/s" if speed < 10 else f"{speed:.0f}/s"
        return Text(words, style="progress.data.speed", no_wrap=True)


class BarReporter:
    """Bars with rate and time left on a terminal.

    Args:
        console: Where to draw.
        slide: The slide's name, shown before each stage.
    """

    def __init__(self, console: Console, slide: str) -> None:
        self.slide = slide
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(overflow="ellipsis", no_wrap=True)),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            speed_estimate_period=300,
        )
        self._task: int | None = None

    def note(self, words: str) -> None:
        """Prints it above the bars."""
        self.bars.console.print(Text(words, style="dim"))

    def begin(self, stage: str, total: int, done: int) -> None:
        """Starts a bar."""
        self.bars.start()
        self._task = self.bars.add_task(f"{self.slide}  {stage}", total=total, completed=done)

    def advance(self, pieces: int = 1) -> None:
        """Moves the bar."""
        if self._task is not None:
            self.bars.advance(self._task, pieces)  # type: ignore[arg-type]

    def end(self) -> None:
        """Leaves the finished bar on the screen."""
        if self._task is not None:
            self.bars.stop_task(self._task)  # type: ignore[arg-type]
            self._task = None


_current: ContextVar[Reporter | None] = ContextVar("slidesam_progress", default=None)


def current() -> Reporter:
    """Who is told; the run's log by default."""
    return _current.get() or LogReporter()


def watching() -> Reporter | None:
    """Who was put there with `showing`, if anyone."""
    return _current.get()


@contextmanager
def showing(reporter: Reporter) -> Iterator[None]:
    """Sends the progress of the runs inside to a reporter."""
    token = _current.set(reporter)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def stage(name: str, total: int, done: int = 0) -> Iterator[Reporter]:
    """One stage: begins it, hands out the reporter to advance, ends it."""
    reporter = current()
    reporter.begin(name, total, done)
    try:
        yield reporter
    finally:
        reporter.end()
