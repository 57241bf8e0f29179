"""What can go wrong, in words for the person who meets it.

    SlidesamError
    ├── SettingsError    (ValueError)    a setting is unknown, or its value is of no use; nothing was run
    ├── SlideError       (OSError)       a slide can't be read, or isn't an image
    │   ├── SlideGoneError               it can't be opened any more, or has changed, while a run was at work on it
    │   └── SlideAwayError               it can't be read now: not the file's fault
    ├── OutputError      (OSError)       the output folder can't be used, or holds something else
    ├── SegmenterError   (RuntimeError)  the segmenter can't be made, or returned what is no label image
    ├── ServerError      (ConnectionError)  Prefect's API doesn't answer
    ├── ClusterError     (ConnectionError)  the Dask scheduler can't be reached
    ├── DeviceError      (RuntimeError)  a worker was given one device and would compute on another
    ├── BlockLostError   (RuntimeError)  a block ended its worker, or took too long, too often
    ├── CohortFailures   (RuntimeError)  some slides of a cohort failed; carries `.failures`
    └── BlockFailures    (RuntimeError)  some blocks failed after all retries; carries `.block_ids`

A message names the slide, block or setting, the value, and what to do next. The command line prints it on one line.
"""

from __future__ import annotations

from collections.abc import Mapping


class SlidesamError(Exception):
    """Base of every error that slidesam raises on purpose."""


class SettingsError(SlidesamError, ValueError):
    """A setting is unknown or its value can't be used: correct the settings and run again."""


class SlideError(SlidesamError, OSError):
    """A slide can't be read: repair, replace or leave out the file."""


class SlideGoneError(SlideError):
    """A slide that was planned can't be opened any more, or isn't the same: no block of it can be computed."""


class SlideAwayError(SlideError):
    """A slide can't be read now, for want of memory, of a codec, of a file server that answers: trying again can help."""


class OutputError(SlidesamError, OSError):
    """The output folder can't be used as it is."""


class SegmenterError(SlidesamError, RuntimeError):
    """The segmenter can't be made, or returned something that is no label image of its input."""


class ServerError(SlidesamError, ConnectionError):
    """There is no Prefect API to record runs with: start one, or mend its address."""


class ClusterError(SlidesamError, ConnectionError):
    """The cluster that computes is gone, or can't be had."""


class DeviceError(SlidesamError, RuntimeError):
    """A worker would compute on another device than the one that it was given, so it computes nothing."""


class BlockLostError(SlidesamError, RuntimeError):
    """A block that ended its worker, or took longer than it may, as often as is allowed.

    Args:
        block_id: The block.
        lost: How often it cost a worker.
        timed_out: How often of these it took too long.
        host: Where it did so last.
        timeout: Seconds that it may take.
        said: The last lines of that worker's log, on one line, where there is one.
    """

    def __init__(
        self, block_id: int, lost: int, timed_out: int, host: str, timeout: float | None, said: str = ""
    ) -> None:
        self.arguments = (block_id, lost, timed_out, host, timeout, said)
        times = "once" if lost == 1 else f"{lost} times"
        if timed_out:
            what = (
                f"block {block_id} took longer than run.block_timeout ({timeout:g} s) {times}, last on {host}: "
                "raise that setting, or take smaller blocks"
            )
        else:
            what = (
                f"block {block_id} ended its worker {times}, last on {host}; most often that is for want of memory: "
                "take fewer workers or smaller blocks"
            )
        super().__init__(f"{what}; its log ends with: {said}" if said else what)

    def __reduce__(self) -> tuple[type[BlockLostError], tuple[int, int, int, str, float | None, str]]:
        return type(self), self.arguments


class BlockFailures(SlidesamError, RuntimeError):  # noqa: N818
    """Blocks that failed after all their retries.

    Args:
        slide: The slide's name.
        failures: Block id → what happened, on one line.
        n_blocks: Number of blocks of the slide.
        untried: How many blocks weren't tried, because so many in a row had failed.
        lost: Which of them ended their workers.

    Attributes:
        block_ids: Ids of the failed blocks, ascending: all that a rerun needs.
        hopeless: Whether trying again at once won't help any of them.
    """

    def __init__(
        self, slide: str, failures: Mapping[int, str], n_blocks: int, untried: int = 0, lost: tuple[int, ...] = ()
    ) -> None:
        self.slide, self.untried, self.lost = slide, untried, lost
        self.failures = dict(sorted(failures.items()))
        self.hopeless = False
        self.block_ids = tuple(self.failures)
        self.n_blocks = n_blocks
        super().__init__(str(self))

    def __reduce__(self) -> tuple[type[BlockFailures], tuple[str, dict[int, str], int, int, tuple[int, ...]]]:
        return type(self), (self.slide, self.failures, self.n_blocks, self.untried, self.lost)

    def __str__(self) -> str:
        shown = "; ".join(f"block {block_id}: {what}" for block_id, what in list(self.failures.items())[:3])
        more = f"; and {len(self.failures) - 3} more" if len(self.failures) > 3 else ""
        untried = f"; {self.untried} more weren't tried after so many failures in a row" if self.untried else ""
        return (
            f"{self.slide}: {len(self.failures)} of {self.n_blocks} blocks failed ({shown}{more}){untried}. "
            "The others are kept: run the same command again to try only these"
        )


class CohortFailures(SlidesamError, RuntimeError):  # noqa: N818
    """Slides of a cohort that failed; all others are finished.

    Args:
        failures: The slide's name → what happened, on one line.
        n_slides: Number of slides of the cohort.
    """

    def __init__(self, failures: Mapping[str, str], n_slides: int) -> None:
        self.failures, self.n_slides = dict(failures), n_slides
        shown = "; ".join(f"{name}: {what}" for name, what in list(self.failures.items())[:3])
        more = f"; and {len(self.failures) - 3} more" if len(self.failures) > 3 else ""
        super().__init__(f"{len(self.failures)} of {n_slides} slides failed ({shown}{more}). The others are finished")

    def __reduce__(self) -> tuple[type[CohortFailures], tuple[dict[str, str], int]]:
        return type(self), (self.failures, self.n_slides)


# What trying again won't mend.
HOPELESS = (SettingsError, SegmenterError, BlockLostError)


def in_one_line(error: BaseException | str, limit: int = 1000) -> str:
    """An error on one line, with its type where its words alone may say little.

    Args:
        error: The error, or words that come from outside.
        limit: How many characters to keep.

    Example:
        >>> in_one_line(ValueError("no such thing"))
        'ValueError: no such thing'
        >>> in_one_line("two" + chr(10) + "lines", 6)
        'two l…'
    """
    words = (
        str(error) if isinstance(error, SlidesamError | str) else f"{type(error).__name__}: {error}".removesuffix(": ")
    )
    words = " ".join(words.replace("\\n", " ").split())
    words = "".join(character if character.isprintable() else "?" for character in words)
    return words if len(words) <= limit else words[: limit - 1] + "…"
