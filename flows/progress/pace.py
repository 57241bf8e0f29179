"""Describes how fast a stage progresses and how long it will take."""

from __future__ import annotations

from collections import deque

# Seconds over which the rate is averaged: waiting for workers and loading models must not count for ever.
_WINDOW = 300.0


class Pace:
    """Measures how fast a stage progresses; only items of this run count.

    Args:
        stage: The stage's name.
        total: Number of its items.
        done: How many of them an earlier run has finished.
        now: Seconds on some clock.
    """

    def __init__(self, stage: str, total: int, n_done: int, now: float) -> None:
        self.stage, self.total, self.done, self.n_reused, self.start = stage, total, n_done, n_done, now
        self._samples = deque([(now, n_done)])

    def advance(self, count: int, now: float) -> None:
        """Add finished items."""
        self.done += count
        # One sample per second is enough, however many blocks there are.
        if now - self._samples[-1][0] >= 1:
            self._samples.append((now, self.done))
        while len(self._samples) > 1 and now - self._samples[1][0] >= _WINDOW:
            self._samples.popleft()

    @property
    def share(self) -> float:
        """Finished part of the stage, 0 to 1."""
        return min(self.done / self.total, 1.0) if self.total else 1.0

    @property
    def counted(self) -> str:
        """The stage and how many of its items are done."""
        return f"{self.stage}: {self.done:,} of {self.total:,}"

    def describe(self, now: float) -> str:
        """Return the stage and how many of its items are done; on a second line the rate and the time left."""
        start, done_at_start = self._samples[0]
        rate = (self.done - done_at_start) / max(now - start, 1e-9)
        if rate <= 0:
            return self.counted
        text = f"{self.counted},\n{rate_words(rate)}"
        n_left = self.total - self.done
        return f"{text}, {duration_words(n_left / rate)} left" if n_left > 0 else text

    def line(self, now: float) -> str:
        """Return the log's line on the stage at its end."""
        n_new, seconds = self.done - self.n_reused, now - self.start
        if n_new == 0:
            return f"{self.counted}, all done before" if self.done and self.done == self.total else self.counted
        reused = f", {self.n_reused:,} of them done before" if self.n_reused else ""
        return f"{self.counted}{reused}; {duration_words(seconds)}, {rate_words(n_new / max(seconds, 1e-9))}"


def rate_words(rate: float) -> str:
    """Return a rate per second, or per minute or hour if it is low.

    Example:
        >>> rate_words(23.4), rate_words(1.44), rate_words(0.05), rate_words(0.001)
        ('23/s', '1.4/s', '3.0/min', '3.6/h')
    """
    for number, unit in ((rate, "s"), (rate * 60, "min")):
        if number >= (0.2 if unit == "s" else 1):
            return f"{number:.0f}/{unit}" if number >= 10 else f"{number:.1f}/{unit}"
    return f"{rate * 3600:.1f}/h"


def duration_words(seconds: float) -> str:
    """Return a duration with a unit, no more precise than an estimate is.

    Example:
        >>> duration_words(0.31), duration_words(42), duration_words(250), duration_words(9000), duration_words(200000)
        ('0.3 s', '42 s', '4 min', '2.5 h', '2.3 days')
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
