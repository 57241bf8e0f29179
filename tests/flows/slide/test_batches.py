"""Batches of blocks: short ones go together, long ones alone, none is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slidesam.flows.slide.batches import Batches


def test_short_blocks_go_together_as_soon_as_it_is_known_that_they_are_short() -> None:
    batches = Batches(range(400), 2, 16)
    assert next(batches) == (0, 1)
    batches.learn(2, 2.0)
    assert next(batches) == (2, 3, 4, 5, 6)
    batches.learn(50, 0.5)
    assert len(next(batches)) == 16
    batches.learn(1, 1e6)
    assert len(next(batches)) == 2
    shared = Batches(range(100), 2, 16, workers=8)
    shared.learn(100, 1.0)
    assert [len(batch) for batch in shared] == [7, 6, 6, 6, 5, 5, 5, 4, 4, 4, 3, 3, 3, 3, 3, 3, 2] + [2] * 14
    alone = Batches(range(3), 1, 1)
    alone.learn(100, 0.0)
    assert list(alone) == [(0,), (1,), (2,)]


@given(
    st.integers(0, 60), st.integers(1, 20), st.integers(0, 20), st.lists(st.tuples(st.integers(1, 9), st.floats(0, 99)))
)
def test_each_block_is_in_one_batch_also_those_that_are_put_back(n: int, size: int, more: int, learnt: list) -> None:
    batches, seen = Batches(range(n), size, size + more), []
    for batch in batches:
        assert size <= batches.size <= size + more
        assert 1 <= len(batch) <= size + more
        seen += batch
        if learnt:
            batches.learn(*learnt.pop())
            batches.put_back(batch)
            del seen[-len(batch) :]
    assert sorted(seen) == list(range(n))
