"""Words for how far a stage is, and how fast."""

from __future__ import annotations

import pytest

from slidesam.flows.progress.pace import Pace, duration_words, rate_words


def test_words_of_a_stage_leave_out_what_was_done_before() -> None:
    pace = Pace("segmenting blocks", 400, 20, now=100.0)
    assert pace.describe(100.0) == "segmenting blocks: 20 of 400"
    pace.advance(14, now=110.0)
    assert pace.describe(110.0) == "segmenting blocks: 34 of 400,\n1.4/s, 4 min left"
    assert pace.line(110.0) == "segmenting blocks: 34 of 400, 20 of them done before; 10 s, 1.4/s"


def test_rate_is_that_of_the_last_minutes() -> None:
    pace = Pace("segmenting blocks", 2000, 0, now=0.0)
    # An hour in the queue, then a block a second.
    for second in range(3600, 4201):
        pace.advance(1, float(second))
    assert pace.describe(4200.0) == "segmenting blocks: 601 of 2,000,\n1.0/s, 23 min left"


def test_a_finished_stage_has_no_time_left() -> None:
    pace = Pace("painting labels", 9, 0, now=0.0)
    pace.advance(9, now=3.0)
    assert pace.describe(3.0) == "painting labels: 9 of 9,\n3.0/s"
    assert pace.line(3.0) == "painting labels: 9 of 9; 3.0 s, 3.0/s"
    assert Pace("painting labels", 9, 9, now=0.0).line(0.1) == "painting labels: 9 of 9, all done before"
    assert Pace("painting labels", 0, 0, now=0.0).share == 1


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0.0 s"), (9.96, "10 s"), (89, "89 s"), (91, "2 min"), (1e6, "11.6 days")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration_words(seconds) == words


def test_rates() -> None:
    assert [rate_words(rate) for rate in (1000, 9.94, 0.2, 0.19, 0.01)] == [
        "1000/s",
        "9.9/s",
        "0.2/s",
        "11/min",
        "36.0/h",
    ]
