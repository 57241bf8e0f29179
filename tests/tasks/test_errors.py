"""Errors: their messages, and that nothing of them is lost on the way from a worker."""

from __future__ import annotations

import pickle

import cloudpickle
import pytest

from slidesam.tasks import errors
from slidesam.tasks.errors import (
    BlockFailure,
    BlockFailures,
    BlockLostError,
    BlockMemoryError,
    CohortFailures,
    DeviceMemoryError,
    SlidesamError,
    SlideUnchangedError,
)

LOST = BlockLostError(7, lost=2, timed_out=1, host="node1", timeout=2.5, log_tail="memory is high | Killed")
FULL = BlockMemoryError(7, host="node1", used=15 << 29, limit=8 << 30, ended_worker=True, is_hopeless=False)
WITH_ARGUMENTS = {
    BlockMemoryError: FULL,
    DeviceMemoryError: DeviceMemoryError(7, "CUDA out of memory"),
    SlideUnchangedError: SlideUnchangedError("truncated"),
    BlockLostError: LOST,
    BlockFailures: BlockFailures("a", {7: BlockFailure.of(LOST), 3: BlockFailure.of(ValueError("b"))}, 9, untried=4),
    CohortFailures: CohortFailures({"a": "no such slide"}, 3),
}
CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SlidesamError)]


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_survives_pickling_whole(kind: type[SlidesamError], pickler) -> None:
    error = WITH_ARGUMENTS.get(kind) or kind("it is full", "make room", log_tail="Killed")
    error.add_note("on node1")
    copy = pickle.loads(pickler.dumps(pickle.loads(pickler.dumps(error))))
    assert type(copy) is kind
    assert str(copy) == str(error) != ""
    assert copy.args == error.args
    assert vars(copy) == vars(error)
    assert (copy.is_hopeless, copy.ends_stage) == (error.is_hopeless, error.ends_stage)


def test_a_message_has_what_then_cure_then_the_log() -> None:
    assert str(SlidesamError("it is full")) == "it is full"
    assert str(SlidesamError("it is full", "make room")) == "it is full: make room"
    assert str(SlidesamError("it is full", "make room", log_tail="a | b")) == (
        "it is full: make room; its log ends with: a | b"
    )
    assert str(LOST) == (
        "block 7 took longer than run.block_timeout (2.5 s) 2 times, last on node1: raise that setting, or take smaller blocks; "
        "its log ends with: memory is high | Killed"
    )


def test_a_failed_block_says_whether_memory_ran_out_and_what_happened_apart_from_the_cure() -> None:
    failure = BlockFailure.of(FULL)
    assert failure.what == "block 7 ran out of memory at 7.5 GiB of 8 GiB on node1, which ended its worker"
    assert failure.message.startswith(
        f"{failure.what}: give workers more (`memory`, `memory_steps` of the cluster profile"
    )
    assert (failure.is_out_of_memory, failure.ended_worker, failure.is_hopeless) == (True, True, False)
    assert BlockFailure.of(MemoryError()).is_out_of_memory
    other = BlockFailure.of(WITH_ARGUMENTS[DeviceMemoryError])
    assert (other.is_out_of_memory, other.ended_worker) == (False, False)
    assert "more memory of the job doesn't help" in str(other)


def test_failed_blocks_are_hopeless_only_if_each_of_them_is() -> None:
    hopeless, other = BlockFailure.of(LOST), BlockFailure.of(MemoryError())
    assert BlockFailures("a", {1: hopeless, 2: hopeless}, 9).is_hopeless
    assert not BlockFailures("a", {1: hopeless, 2: other}, 9).is_hopeless
    assert BlockFailures("a", {2: other, 1: hopeless}, 9).block_ids == (1, 2)
    assert pickle.loads(pickle.dumps(BlockFailures("a", {1: hopeless}, 9))).is_hopeless
