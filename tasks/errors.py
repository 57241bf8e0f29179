"""Errors, with messages for the person who sees them.

    SlidesamError
    ├── SettingsError    (ValueError)    a setting is unknown, or its value can't be used; nothing was run
    ├── SlideError       (OSError)       a slide can't be read, or isn't an image
    │   ├── SlideGoneError               it can't be opened any more, or has changed, since the run was planned
    │   ├── SlideAwayError               it can't be read now, but the file isn't at fault
    │   └── SlideUnchangedError          it isn't tried again, since the file that failed hasn't changed
    ├── OutputError      (OSError)       the output folder can't be used, or contains something else
    │   └── DamagedError                 an intermediate result is damaged, and removed: it is computed again
    ├── SegmenterError   (RuntimeError)  the segmenter can't be made, or didn't return a label image
    ├── ServerError      (ConnectionError)  Prefect's API doesn't answer
    ├── ClusterError     (ConnectionError)  the Dask scheduler can't be reached
    ├── DeviceError      (RuntimeError)  a worker was given one device and would compute on another
    ├── BlockLostError   (RuntimeError)  a block ended its worker, or took too long, too often; has `.log_tail`
    ├── BlockMemoryError (RuntimeError)  a block needs more memory than its worker may use
    ├── DeviceMemoryError (RuntimeError) a block needs more memory than its GPU has
    ├── CohortFailures   (RuntimeError)  some slides of a cohort failed; has `.failures`
    └── BlockFailures    (RuntimeError)  some blocks failed after all retries; has `.failures`, `.block_ids`

A message names the slide, block or setting, the value, and what to do next. The command line prints it on one line; code reads
the attributes (`what`, `cure`, `log_tail`, `is_hopeless`, `ends_stage`) and never the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class SlidesamError(Exception):
    """Base of every error that slidesam raises on purpose.

    All attributes survive pickling, whatever the arguments of a class are.

    Args:
        what: What is wrong: the slide, block or setting, and the value.
        cure: What to do about it; the message has it after a colon. Empty if `what` is the whole message.
        log_tail: The last lines of the log of the process that failed, on one line; empty if there is no log.

    Attributes:
        is_hopeless: Whether another attempt at the same would fail, too.
        ends_stage: Whether no other block of the slide could be computed either.
    """

    is_hopeless: bool = False
    ends_stage: bool = False

    def __init__(self, what: str = "", cure: str = "", *, log_tail: str = "") -> None:
        self.what, self.cure, self.log_tail = what, cure, log_tail
        super().__init__(_with_log_tail(self.without_log, log_tail))

    @property
    def without_log(self) -> str:
        """The message without the lines of a log."""
        return f"{self.what}: {self.cure}" if self.cure else self.what

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, vars(self))


def _restore(kind: type[SlidesamError], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> SlidesamError:
    """Make a pickled error again, without its `__init__`: that would need arguments in the order of each class."""
    error = kind.__new__(kind)
    error.args = arguments
    vars(error).update(attributes)
    return error


def _with_log_tail(message: str, log_tail: str) -> str:
    return f"{message}; its log ends with: {log_tail}" if log_tail else message


class SettingsError(SlidesamError, ValueError):
    """A setting is unknown or its value can't be used: correct the settings and run again."""

    is_hopeless = True


class SlideError(SlidesamError, OSError):
    """A slide can't be read: repair, replace or leave out the file."""


class SlideGoneError(SlideError):
    """A slide can't be opened any more, or has changed, since the run was planned: no block of it can be computed."""

    ends_stage = True


class SlideAwayError(SlideError):
    """A slide can't be read now, because memory, a codec or the file server is missing: another attempt can help."""


class SlideUnchangedError(SlideError):
    """A slide isn't tried again: it failed because of its file, and the file hasn't changed since.

    Args:
        reason: What it failed with.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{reason}; not tried again, since the file hasn't changed")


class OutputError(SlidesamError, OSError):
    """The output folder can't be used as it is."""

    ends_stage = True


class DamagedError(OutputError):
    """A file of intermediate results is damaged, and removed, or gone: what it held is computed again."""

    is_hopeless = True
    ends_stage = False


class SegmenterError(SlidesamError, RuntimeError):
    """The segmenter can't be made, or didn't return a label image of its input."""

    is_hopeless = True


class ServerError(SlidesamError, ConnectionError):
    """There is no Prefect API to record runs: start a server, or correct its address."""


class ClusterError(SlidesamError, ConnectionError):
    """The cluster is gone, or can't be started or reached."""


class DeviceError(SlidesamError, RuntimeError):
    """A worker would compute on another device than it was given, so it computes nothing."""


class BlockLostError(SlidesamError, RuntimeError):
    """A block ended its worker, or exceeded its time limit, as often as is allowed.

    Args:
        block_id: The block.
        lost: How many workers it ended.
        timed_out: How many of these ended because of the time limit.
        host: Machine of the last of these workers.
        timeout: The time limit in seconds, if there is one.
        job: Number of that worker's job in the queue, if it was in one.
        log_tail: The last lines of that worker's log, on one line; empty if there is no log.
    """

    is_hopeless = True

    def __init__(
        self,
        block_id: int,
        *,
        lost: int,
        timed_out: int,
        host: str,
        timeout: float | None,
        job: str | None = None,
        log_tail: str = "",
    ) -> None:
        self.block_id, self.lost, self.timed_out, self.host, self.timeout = block_id, lost, timed_out, host, timeout
        self.job = job
        times = "once" if lost == 1 else f"{lost} times"
        if timed_out:
            problem = f"block {block_id} took longer than run.block_timeout ({timeout:g} s) {times}, last on {host}"
            cure = "raise that setting, or take smaller blocks"
        else:
            problem = f"block {block_id} ended its worker {times}, last on {host}; usually out of memory"
            cure = "take fewer workers or smaller blocks"
        super().__init__(problem, cure, log_tail=log_tail)


class BlockMemoryError(SlidesamError, RuntimeError):
    """A block needs more memory than its worker may use.

    Args:
        block_id: The block.
        host: Machine of the worker.
        used: Bytes that the worker used when it was last looked at; None if unknown.
        limit: Bytes that it may use; None if nobody limits them but the machine.
        ended_worker: Whether the worker was ended for it; else an allocation failed.
        is_hopeless: Whether another attempt with as much memory is worth nothing.
        log_tail: The last lines of that worker's log, on one line; empty if there is no log.
    """

    def __init__(
        self,
        block_id: int,
        *,
        host: str,
        used: int | None,
        limit: int | None,
        ended_worker: bool,
        is_hopeless: bool = True,
        log_tail: str = "",
    ) -> None:
        self.block_id, self.host, self.used, self.limit = block_id, host, used, limit
        self.ended_worker, self.is_hopeless = ended_worker, is_hopeless
        at = "" if used is None else f" at {used / 2**30:.3g} GiB"
        of = "" if limit is None else f" of {limit / 2**30:.3g} GiB"
        end = ", which ended its worker" if ended_worker else ""
        super().__init__(
            f"block {block_id} ran out of memory{at}{of} on {host}{end}",
            "give workers more (`memory`, `memory_steps` of the cluster profile, or fewer workers), "
            "or take smaller blocks (blocks.block_shape)",
            log_tail=log_tail,
        )


class DeviceMemoryError(SlidesamError, RuntimeError):
    """A block needs more memory than its GPU has left: more memory of the job doesn't help.

    Args:
        block_id: The block.
        said: What torch said.
    """

    def __init__(self, block_id: int, said: str) -> None:
        self.block_id = block_id
        super().__init__(
            f"block {block_id} ran out of the GPU's own memory ({in_one_line(said, 200)})",
            "give the GPU fewer workers, or take a larger GPU, a smaller model or smaller blocks; more memory of the job "
            "doesn't help",
        )


@dataclass(frozen=True)
class BlockFailure:
    """Why a block failed.

    Attributes:
        message: What happened and what to do, on one line.
        log_tail: The last lines of the log of the worker that the block ended, on one line; empty if there are none.
        is_hopeless: Whether another attempt would fail, too.
        ended_worker: Whether the block ended its workers.
        is_out_of_memory: Whether it needs more memory than its worker may use.
        job: Number of the last of these workers' jobs in the queue, if it is known.
        what: What happened, without what to do.
    """

    message: str
    log_tail: str = ""
    is_hopeless: bool = False
    ended_worker: bool = False
    is_out_of_memory: bool = False
    job: str | None = None
    what: str = ""

    @classmethod
    def of(cls, error: Exception) -> BlockFailure:
        """Describe an error."""
        if not isinstance(error, SlidesamError):
            # Raised while a model was loaded: in a block's own work it is a `BlockMemoryError`.
            return cls(in_one_line(error), is_out_of_memory=isinstance(error, MemoryError), what=in_one_line(error))
        message, log_tail = in_one_line(error.without_log), in_one_line(error.log_tail)
        is_out_of_memory = isinstance(error, BlockMemoryError)
        ended_worker = error.ended_worker if isinstance(error, BlockMemoryError) else isinstance(error, BlockLostError)
        return cls(
            message,
            log_tail,
            is_hopeless=error.is_hopeless,
            ended_worker=ended_worker,
            is_out_of_memory=is_out_of_memory,
            job=error.job if isinstance(error, BlockLostError) else None,
            what=in_one_line(error.what),
        )

    def __str__(self) -> str:
        return _with_log_tail(self.message, self.log_tail)


class BlockFailures(SlidesamError, RuntimeError):  # noqa: N818
    """Blocks failed after all their retries.

    Args:
        slide: The slide's name.
        failures: Why each failed, by block id.
        n_blocks: Number of blocks of the slide.
        untried: How many blocks weren't tried, because so many in a row had failed.

    Attributes:
        block_ids: Ids of the failed blocks, ascending: all that a rerun needs.
    """

    def __init__(self, slide: str, failures: Mapping[int, BlockFailure], n_blocks: int, untried: int = 0) -> None:
        self.slide, self.n_blocks, self.untried = slide, n_blocks, untried
        self.failures = dict(sorted(failures.items()))
        self.block_ids = tuple(self.failures)
        self.is_hopeless = all(failure.is_hopeless for failure in self.failures.values())
        summary = _first_three({f"block {block_id}": failure for block_id, failure in self.failures.items()})
        skipped = f"; {untried} more weren't tried after so many failures in a row" if untried else ""
        super().__init__(
            f"{slide}: {len(failures)} of {n_blocks} blocks failed ({summary}){skipped}. The others are kept",
            "run the same command again to try only these",
        )


class CohortFailures(SlidesamError, RuntimeError):  # noqa: N818
    """Slides of a cohort failed; all others are finished.

    Args:
        failures: What happened, on one line, by the slide's name.
        n_slides: Number of slides of the cohort.
    """

    def __init__(self, failures: Mapping[str, str], n_slides: int) -> None:
        self.failures, self.n_slides = dict(failures), n_slides
        summary = _first_three(self.failures)
        super().__init__(f"{len(failures)} of {n_slides} slides failed ({summary}). The others are finished")


def _first_three(failures: Mapping[str, object]) -> str:
    text = "; ".join(f"{name}: {failure}" for name, failure in list(failures.items())[:3])
    return f"{text}; and {len(failures) - 3} more" if len(failures) > 3 else text


def in_one_line(error: BaseException | str, limit: int = 1000) -> str:
    """Return an error on one line, with its type if it isn't an error of slidesam.

    Args:
        error: The error, or its text.
        limit: How many characters to keep.

    Example:
        >>> in_one_line(ValueError("no such thing"))
        'ValueError: no such thing'
        >>> in_one_line("two" + chr(10) + "lines", 6)
        'two l…'
    """
    has_own_text = isinstance(error, SlidesamError | str)
    text = str(error) if has_own_text else f"{type(error).__name__}: {error}".removesuffix(": ")
    text = printable(" ".join(text.replace("\\n", " ").split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str) -> str:
    r"""Replace what a terminal would obey instead of showing it: control characters other than line ends and tabs.

    For all text that others may have written (names of files, state files, errors, logs); in a file's name also bytes that are no
    characters, and signs that reverse the direction of writing.

    Example:
        >>> printable("a\x1b[2Jb\u202ec")
        'a?[2Jb?c'
    """
    return "".join(letter if letter.isprintable() or letter in _HARMLESS else "?" for letter in text)


# Line ends, tabs, and the spaces that Python doesn't count as printable.
_HARMLESS = frozenset("\n\t\u00a0\u2002\u2003\u2009\u200a\u202f\u3000")
