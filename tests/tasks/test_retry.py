"""Whether to try again, as a table: error, attempts left, failures in a row, action."""

from __future__ import annotations

import pytest

from slidesam.tasks.errors import (
    BlockFailure,
    BlockFailures,
    ClusterError,
    OutputError,
    SegmenterError,
    SettingsError,
    SlideAwayError,
    SlideGoneError,
)
from slidesam.tasks.retry import Action, decide

WRONG, MEMORY = BlockFailure.of(SegmenterError("a")), BlockFailure.of(MemoryError())


@pytest.mark.parametrize(
    ("error", "attempts_left", "failures", "action"),
    [
        (MemoryError(), 1, 1, Action.RETRY),
        (MemoryError(), 0, 1, Action.CONTINUE),
        (MemoryError(), 0, 23, Action.CONTINUE),
        (MemoryError(), 0, 24, Action.STOP),
        (MemoryError(), 1, 24, Action.RETRY),
        (SlideAwayError("a"), 1, 1, Action.RETRY),
        (ClusterError("a"), 1, 1, Action.RETRY),
        (OutputError("a"), 1, 1, Action.RETRY),
        (OutputError("a"), 0, 1, Action.STOP),
        (SlideGoneError("a"), 0, 1, Action.STOP),
        (SettingsError("a"), 1, 1, Action.CONTINUE),
        (SegmenterError("a"), 1, 1, Action.CONTINUE),
        (BlockFailures("a", {1: WRONG, 2: WRONG}, 9), 1, 2, Action.CONTINUE),
        (BlockFailures("a", {1: WRONG, 2: MEMORY}, 9), 1, 2, Action.RETRY),
    ],
)
def test_what_follows_an_error(error: Exception, attempts_left: int, failures: int, action: Action) -> None:
    assert decide(error, attempts_left=attempts_left, failures=failures) is action
