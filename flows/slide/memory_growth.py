"""Segment with more memory the blocks that ran out of it, step by step.

1. All blocks are segmented on the workers of the profile. Those that run out of memory aren't tried again there.
2. If there are any, workers of the next step are started (`flows.cluster.memory_steps`), for these blocks only.
3. So on, until none is left or there is no further step.

What ended a worker is in its block's start-mark (`flows.cluster.on_nanny`). If a whole job ended, with its nanny, Slurm is asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slidesam.flows.cluster.cluster import Cluster
from slidesam.flows.cluster.memory_steps import count_steps, describe_step
from slidesam.flows.slide import order
from slidesam.flows.slide.session import Session
from slidesam.flows.slide.stages import run_stage, segment_stage
from slidesam.tasks.errors import BlockFailure, BlockFailures, ClusterError
from slidesam.tasks.run.marks import find_mark, list_blocks
from slidesam.tasks.run.run import Run

_MOST_NAMED = 3


def segment_growing(
    run: Run, session: Session, runner: Callable[[int], Any], note: Callable[[str], None]
) -> dict[str, float]:
    """Segment the blocks that have no done-mark; those that run out of memory once more, with more of it.

    Args:
        run: The run.
        session: The workers, the reporter and the check.
        runner: Returns the task runner on the workers of a step.
        note: Is told which blocks ran out of memory, and what is done about it, as the reporter is.

    Returns:
        Seconds of the stage's tasks, by name.

    Raises:
        BlockFailures: Some blocks failed, after all steps; all others are done, unless very many failed in a row.
        SlidesamError: See `order.segment_missing_blocks`.
    """
    profile, failures, untried = session.cluster.profile, dict[int, BlockFailure](), 0
    hungry: dict[int, BlockFailure] = {}
    block_ids: list[int] | None = None
    seconds: dict[str, float] = {}
    last_step = count_steps(profile, "gpu")
    try:
        for step in range(last_step + 1):
            try:
                seconds = _run_step(run, session, runner, step, block_ids, can_grow=step < last_step)
                hungry = {}
            except BlockFailures as error:
                judged = _ask_queue(error.failures, session.cluster)
                hungry = {block_id: failure for block_id, failure in judged.items() if failure.is_out_of_memory}
                failures |= {block_id: failure for block_id, failure in judged.items() if block_id not in hungry}
                block_ids, n_left_out = _choose_next(run, hungry, error)
                untried += n_left_out
            except ClusterError as error:
                if step == 0:
                    raise
                # The others are done: these fail, not the slide.
                hungry = _add_refusal(hungry, describe_step(profile, "gpu", step), error)
                break
            if not hungry or step == last_step:
                break
            message = _describe(run, hungry, describe_step(profile, "gpu", step + 1))
            note(message)
            session.reporter.inform(message)
            session.check()
            session.cluster.make_room("gpu", step)
    finally:
        session.cluster.end_steps()
    if failures | hungry:
        raise BlockFailures(run.name, failures | hungry, len(list_blocks(run)), untried)
    return seconds if block_ids is None else order.sum_seconds(run, list_blocks(run))


def _run_step(
    run: Run,
    session: Session,
    runner: Callable[[int], Any],
    step: int,
    block_ids: Sequence[int] | None,
    *,
    can_grow: bool,
) -> dict[str, float]:
    """Run the stage on the workers of a step.

    Raises:
        BlockFailures: Some blocks failed.
    """
    stage = segment_stage
    if step:
        name = f"segment blocks of {run.name}, {describe_step(session.cluster.profile, 'gpu', step)}"
        stage = stage.with_options(flow_run_name=name)
    outcome: dict[str, float] | BlockFailures = run_stage(
        stage, runner(step), run, session, block_ids, can_grow=can_grow
    )
    if isinstance(outcome, BlockFailures):
        raise outcome
    return outcome


def _ask_queue(failures: Mapping[int, BlockFailure], cluster: Cluster) -> dict[int, BlockFailure]:
    """Ask Slurm about jobs that ended with their nannies, who else would have noted why."""
    unclear = {
        block_id: failure.job
        for block_id, failure in failures.items()
        if failure.ended_worker and not failure.is_out_of_memory and failure.job is not None
    }
    jobs = cluster.find_out_of_memory(set(unclear.values()))
    changes = {
        block_id: dataclasses.replace(
            failures[block_id],
            is_out_of_memory=True,
            what=f"block {block_id} ran out of memory: Slurm ended its job {job} (OUT_OF_MEMORY)",
        )
        for block_id, job in unclear.items()
        if job in jobs
    }
    return {**failures, **changes}


def _choose_next(run: Run, hungry: Mapping[int, BlockFailure], error: BlockFailures) -> tuple[list[int], int]:
    """Return the blocks of the next step, and how many that weren't tried are left out.

    If so many in a row ran out of memory that the rest wasn't tried, the rest needs more of it, too.
    """
    if error.untried and len(hungry) == len(error.failures):
        return [block_id for block_id in list_blocks(run) if find_mark(run, block_id) is None], 0
    return list(hungry), error.untried


def _add_refusal(hungry: Mapping[int, BlockFailure], wanted: str, error: ClusterError) -> dict[int, BlockFailure]:
    return {
        block_id: dataclasses.replace(failure, message=f"{failure.what}; {wanted} can't be had: {error.without_log}")
        for block_id, failure in hungry.items()
    }


def _describe(run: Run, hungry: Mapping[int, BlockFailure], wanted: str) -> str:
    """Say which blocks ran out of memory, and with what they are tried again."""
    named = "; ".join(failure.what for failure in list(hungry.values())[:_MOST_NAMED])
    more = f"; and {len(hungry) - _MOST_NAMED} more" if len(hungry) > _MOST_NAMED else ""
    return f"{run.name}: {named}{more}. Tried again: {wanted}"
