"""Whether to try again after an error: the rules for tasks, blocks and stages in one place."""

from __future__ import annotations

from enum import Enum, auto

from slidesam.tasks.errors import SlidesamError

# If so many tasks fail and none succeeds between them, the blocks aren't the cause.
_TOO_MANY_FAILURES = 24


class Action(Enum):
    """What to do after an error.

    Attributes:
        RETRY: Run the same task again.
        CONTINUE: Count it as failed and continue with the others.
        STOP: End the stage: the others would fail, too.
    """

    RETRY = auto()
    CONTINUE = auto()
    STOP = auto()


def decide(error: Exception, *, attempts_left: int = 0, failures: int = 1) -> Action:
    """Decide what to do after an error.

    Args:
        error: The error.
        attempts_left: How many more attempts the task has.
        failures: How many tasks or blocks have failed, this one included, since the last one succeeded.

    Example:
        >>> decide(MemoryError(), attempts_left=1), decide(MemoryError())
        (<Action.RETRY: 1>, <Action.CONTINUE: 2>)
    """
    is_hopeless = isinstance(error, SlidesamError) and error.is_hopeless
    if attempts_left > 0 and not is_hopeless:
        return Action.RETRY
    ends_stage = isinstance(error, SlidesamError) and error.ends_stage
    return Action.STOP if ends_stage or failures >= _TOO_MANY_FAILURES else Action.CONTINUE
