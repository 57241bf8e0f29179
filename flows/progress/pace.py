"""How fast a stage goes and how long it will take, in words."""

from __future__ import annotations

from collections import deque

# The rate is that of the last so many seconds, so that waiting for workers and loading models drops out of it.
_WINDOW = 300.0


class Pace:
    """How fast a stage goes, and how long it will take: only pieces of this run count.

    Args:
        stage: The stage's name.
        total: Its pieces.
        done: How many of them are there from before.
        now: Seconds on some clock.
    """

    def __init__(self, stage: str, total: int, done: int, now: float) -> None:
        self.stage, self.total, self.done, self.before, self.began = stage, total, done, done, now
        self._seen = deque([(now, done)])

    def advance(self, pieces: int, now: float) -> None:
        """Some more pieces are done."""
        self.done += pieces
        # One sample a second is enough, however many blocks there are.
        if now - self._seen[-1][0] >= 1:
            self._seen.append((now, self.done))
        while len(self._seen) > 1 and now - self._seen[1][0] >= _WINDOW:
            self._seen.popleft()

    @property
    def share(self) -> float:
        """How much of the stage is done, 0 to 1."""
        return min(self.done / self.total, 1.0) if self.total else 1.0

    @property
    def counted(self) -> str:
        """The stage and what is done of it."""
        return f"{self.stage}: {self.done:,} of {self.total:,}"

    def words(self, now: float) -> str:
        """The stage and what is done of it; on a second line the rate and the time left."""
        began, done_then = self._seen[0]
        rate = (self.done - done_then) / max(now - began, 1e-9)
        if rate <= 0:
            return self.counted
        words = f"{self.counted},\n{rate_words(rate)}"
        left = self.total - self.done
        return f"{words}, {duration_words(left / rate)} left" if left > 0 else words

    def line(self, now: float) -> str:
        """What the log says of it at its end."""
        done, seconds = self.done - self.before, now - self.began
        if done == 0:
            return f"{self.counted}, all done before" if self.done and self.done == self.total else self.counted
        reused = f", {self.before:,} of them done before" if self.before else ""
        return f"{self.counted}{reused}; {duration_words(seconds)}, {rate_words(done / max(seconds, 1e-9))}"


def rate_words(rate: float) -> str:
    """Pieces per second, or per minute or hour where they are few.

    Example:
        >>> rate_words(23.4), rate_words(1.44), rate_words(0.05), rate_words(0.001)
        ('23/s', '1.4/s', '3.0/min', '3.6/h')
    """
    for number, unit in ((rate, "s"), (rate * 60, "min")):
        if number >= (0.2 if unit == "s" else 1):
            return f"{number:.0f}/{unit}" if number >= 10 else f"{number:.1f}/{unit}"
    return f"{rate * 3600:.1f}/h"


def duration_words(seconds: float) -> str:
    """A time that somebody waits for, about as exact as it can be known.

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
