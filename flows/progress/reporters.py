"""Reporters show the progress of a run: the protocol, bars on a terminal, and none at all.

`run_page.RunPage` is the reporter of a slide's page in the Prefect UI. Flows get theirs in a `Session`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text


class Reporter(Protocol):
    """Shows how far a run is."""

    def inform(self, message: str) -> None:
        """Show an informational message."""

    def begin(self, stage: str, total: int, n_done: int) -> None:
        """Start a stage of `total` items, `n_done` of which are finished already."""

    def advance(self, count: int = 1) -> None:
        """Add finished items."""

    def end(self) -> None:
        """End the stage."""


class SilentReporter:
    """Shows nothing."""

    def inform(self, message: str) -> None:
        """Do nothing."""

    def begin(self, stage: str, total: int, n_done: int) -> None:
        """Do nothing."""

    def advance(self, count: int = 1) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


class _Rate(ProgressColumn):
    """Shows the items per second of this run, without those that were done before."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        rate = "" if speed is None else f"{speed:.2f}/s" if speed < 10 else f"{speed:.0f}/s"
        return Text(rate, style="progress.data.speed", no_wrap=True)


class BarReporter:
    """Shows bars with rate and time left on a terminal.

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
        self._task: TaskID | None = None

    def inform(self, message: str) -> None:
        """Print a message above the bars."""
        self.bars.console.print(Text(message, style="dim"))

    def begin(self, stage: str, total: int, n_done: int) -> None:
        """Start a bar."""
        self.bars.start()
        self._task = self.bars.add_task(f"{self.slide}  {stage}", total=total, completed=n_done)

    def advance(self, count: int = 1) -> None:
        """Move the bar."""
        if self._task is not None:
            self.bars.advance(self._task, count)

    def end(self) -> None:
        """Stop the bar; it stays on the screen."""
        if self._task is not None:
            self.bars.stop_task(self._task)
            self._task = None


@contextmanager
def stage(reporter: Reporter, name: str, total: int, n_done: int = 0) -> Iterator[Reporter]:
    """Report the start of a stage, and its end however it ends."""
    reporter.begin(name, total, n_done)
    try:
        yield reporter
    finally:
        reporter.end()
