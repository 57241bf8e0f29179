"""Blocks that run out of memory: on which workers they are tried again, what is said, and where it ends."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from slidesam.flows.cluster.profile import LocalProfile, SlurmJobs, SlurmProfile
from slidesam.flows.slide import memory_growth
from slidesam.tasks.errors import BlockFailure, BlockFailures, ClusterError
from tests.flows.slide.test_segment_slide import faulty, segment
from tests.support.memory_group import memory_group
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS
from tests.support.slides import write_numbered_slide
from tests.support.slurm_fixtures import until

RUN = SimpleNamespace(name="slide")
HUNGRY = BlockFailure("block 1 ran out: buy more", is_hopeless=True, is_out_of_memory=True, what="block 1 ran out")
OTHER = BlockFailure("no such thing", what="no such thing")
LOST = BlockFailure("block 2 ended its worker", ended_worker=True, job="77", what="block 2 ended its worker")


class Steps:
    """What the stage does at each step, and what the cluster and the person are told."""

    def __init__(self, monkeypatch, *outcomes, out_of_memory=frozenset()) -> None:
        self.outcomes, self.tried, self.rooms, self.notes = list(outcomes), [], [], []
        self.profile = SlurmProfile(cpu=SlurmJobs(memory=8, memory_steps=(2, 4)))
        cluster = SimpleNamespace(
            profile=self.profile,
            make_room=lambda stage, step: self.rooms.append(step),
            end_steps=lambda: self.rooms.append("end"),
            find_out_of_memory=lambda jobs: set(jobs) & out_of_memory,
        )
        reporter = SimpleNamespace(inform=lambda message: None)
        self.session = SimpleNamespace(cluster=cluster, reporter=reporter, check=lambda: None)
        monkeypatch.setattr(memory_growth, "_run_step", self.run_step)
        monkeypatch.setattr(memory_growth, "list_blocks", lambda run: range(30))
        monkeypatch.setattr(memory_growth, "find_mark", lambda run, block_id: None if block_id > 9 else "done")
        monkeypatch.setattr(memory_growth.order, "sum_seconds", lambda run, ids: {"segment": float(len(ids))})

    def run_step(self, run, session, runner, step, block_ids, *, can_grow):
        self.tried.append((step, block_ids, can_grow))
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def run(self):
        return memory_growth.segment_growing(RUN, self.session, lambda step: None, self.notes.append)


def failed(*, untried=0, **failures) -> BlockFailures:
    return BlockFailures("slide", {int(key[1:]): value for key, value in failures.items()}, 30, untried)


def test_without_a_block_that_needs_more_nothing_is_started(monkeypatch) -> None:
    steps = Steps(monkeypatch, {"segment": 3.0})
    assert steps.run() == {"segment": 3.0}
    assert (steps.tried, steps.rooms, steps.notes) == ([(0, None, True)], ["end"], [])


def test_only_what_ran_out_of_memory_goes_to_larger_jobs_and_other_failures_stay(monkeypatch) -> None:
    steps = Steps(monkeypatch, failed(b1=HUNGRY, b5=OTHER), {"segment": 1.0})
    with pytest.raises(BlockFailures) as caught:
        steps.run()
    assert caught.value.failures == {5: OTHER}
    assert steps.tried == [(0, None, True), (1, [1], True)]
    assert steps.notes == ["slide: block 1 ran out. Tried again: jobs of 16 GiB"]
    steps = Steps(monkeypatch, failed(b1=HUNGRY), failed(b1=HUNGRY), {})
    assert steps.run() == {"segment": 30.0}
    assert steps.tried == [(0, None, True), (1, [1], True), (2, [1], False)]
    assert steps.rooms == [0, 1, "end"]


def test_after_the_last_step_the_block_fails(monkeypatch) -> None:
    steps = Steps(monkeypatch, *[failed(b1=HUNGRY)] * 3)
    with pytest.raises(BlockFailures, match=r"1 of 30 blocks failed \(block 1: block 1 ran out: buy more\)"):
        steps.run()
    assert [step for step, _, _ in steps.tried] == [0, 1, 2]


def test_where_every_block_runs_out_the_untried_ones_get_more_at_once(monkeypatch) -> None:
    steps = Steps(monkeypatch, failed(b10=HUNGRY, untried=19), {})
    steps.run()
    assert steps.tried[1] == (1, list(range(10, 30)), True)
    # Where something else is the matter too, they don't.
    steps = Steps(monkeypatch, failed(b10=HUNGRY, b11=OTHER, untried=18), {})
    with pytest.raises(BlockFailures) as caught:
        steps.run()
    assert (steps.tried[1], caught.value.untried) == ((1, [10], True), 18)


def test_a_queue_without_larger_jobs_fails_the_blocks_and_says_so(monkeypatch) -> None:
    refusal = ClusterError("the queue refuses jobs: too much memory", "ask for less")
    steps = Steps(monkeypatch, failed(b1=HUNGRY), refusal)
    with pytest.raises(
        BlockFailures, match=r"block 1 ran out; jobs of 16 GiB can't be had: the queue refuses.*: ask for less"
    ):
        steps.run()
    with pytest.raises(ClusterError, match="the queue refuses jobs"):
        Steps(monkeypatch, refusal).run()


def test_slurm_is_asked_about_jobs_that_ended_with_their_nannies(monkeypatch) -> None:
    steps = Steps(monkeypatch, failed(b2=LOST), {}, out_of_memory={"77"})
    steps.run()
    assert steps.notes == [
        "slide: block 2 ran out of memory: Slurm ended its job 77 (OUT_OF_MEMORY). Tried again: jobs of 16 GiB"
    ]
    with pytest.raises(BlockFailures, match="block 2 ended its worker"):
        Steps(monkeypatch, failed(b2=LOST), out_of_memory={"78"}).run()


def slow(test):
    """Mark a test that needs a server and a cluster."""
    for mark in (pytest.mark.slow, *(pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS)):
        test = mark(test)
    return test


def hungry(log: Path, **options) -> dict:
    settings = faulty(log, hungry=5, **options)
    return settings | {"segmenter.target": "tests.support.faults:hungry_pieces", "run.retries": 0}


def begun(log: Path) -> Counter[str]:
    return Counter(line.removesuffix(" begun") for line in log.read_text().splitlines() if line.endswith("begun"))


def states_of_block_4(slide: str) -> dict[str, str]:
    """Read the state of the block's task in each child flow, once the server has recorded both."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName, TaskRunFilter, TaskRunFilterName

    these = FlowRunFilter(name=FlowRunFilterName(like_=f"segment blocks of {slide}"))
    tasks = TaskRunFilter(name=TaskRunFilterName(like_="block 4 "))

    def states() -> dict[str, str]:
        with get_client(sync_client=True) as client:
            flows = {run.id: run.name for run in client.read_flow_runs(flow_run_filter=these)}
            runs = client.read_task_runs(flow_run_filter=these, task_run_filter=tasks)
        return {flows[run.flow_run_id]: str(run.state_name) for run in runs if run.state and run.state.is_final()}

    until(lambda: len(states()) == 2, 60)
    return states()


class Lines(list):
    """A reporter that keeps what it is told."""

    inform = list.append

    def __bool__(self) -> bool:
        return True

    def begin(self, *_: object) -> None: ...
    def advance(self, *_: object) -> None: ...
    def end(self) -> None: ...


@slow
def test_a_block_past_the_nannys_limit_is_tried_again_alone_with_all_memory(prefect_server, tmp_path: Path) -> None:
    from slidesam.flows.cluster.cluster import open_cluster

    log, slide, said = tmp_path / "log", write_numbered_slide(tmp_path / "hungry.tif"), Lines()
    with open_cluster(LocalProfile(workers=2, memory=0.8)) as cluster:
        record = segment(cluster, slide, tmp_path / "out", hungry(log, mib=700), said)
    assert record.objects == 9
    # One worker ended, though none may be lost for another reason (run.retries: 0); nothing else was done again.
    assert begun(log) == {str(k): 2 if k == 5 else 1 for k in range(1, 10)}
    (line,) = [line for line in said if "ran out of memory" in line]
    assert line.startswith("hungry: block 4 ran out of memory at ")
    assert line.endswith(", which ended its worker. Tried again: one worker alone, with 1.6 GiB")
    assert " of 0.8 GiB on " in line
    assert states_of_block_4("hungry") == {
        "segment blocks of hungry": "Crashed",
        "segment blocks of hungry, one worker alone, with 1.6 GiB": "Completed",
    }


@slow
def test_a_block_that_linux_ends_for_memory_is_tried_again_and_named_if_that_doesnt_help(
    prefect_server, tmp_path: Path
) -> None:
    from slidesam.flows.cluster.cluster import open_cluster

    log, slide, said = tmp_path / "log", write_numbered_slide(tmp_path / "killed.tif"), Lines()
    with memory_group(200) as group, open_cluster(LocalProfile(workers=2)) as cluster:
        options = {"mib": 400, "group": str(group)}
        assert segment(cluster, slide, tmp_path / "out", hungry(log, **options), said).objects == 9
    assert begun(log) == {str(k): 2 if k == 5 else 1 for k in range(1, 10)}
    assert any("block 4 ran out of memory at " in line for line in said)
