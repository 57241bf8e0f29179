"""What the doctor says about one thing that it checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from slidesam.tasks.folder.examine import explain_failure

State = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    """What was checked; for a worker pool it begins with the pool's name, as in `gpu: device`."""
    state: State
    """Whether a run would succeed with it."""
    what: str
    """What is the case."""
    cure: str = ""
    """What to do about it; empty if there is nothing to do."""


Problem = tuple[object, State, str, str]
"""A condition, and state, text and cure of the finding if it holds."""


def check(name: str, *problems: Problem, ok: str) -> Finding:
    """Report the first problem whose condition holds, or that there is none.

    Args:
        name: What is checked.
        problems: All that can be wrong with it, in order.
        ok: What is the case if nothing is wrong.

    Example:
        >>> check("disk", (True, "failed", "it is full", "make room"), ok="100 GiB free").cure
        'make room'
    """
    for is_so, state, message, cure in problems:
        if is_so:
            return Finding(name, state, message, cure)
    return Finding(name, "ok", ok)


def failure(name: str, error: BaseException, otherwise: str) -> Finding:
    """Report an error.

    Args:
        name: What is checked.
        error: The error.
        otherwise: What to do if the error doesn't say so.
    """
    message, cure = explain_failure(error)
    return Finding(name, "failed", message, cure or otherwise)
