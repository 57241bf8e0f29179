"""The stages of a slide as child flows, each on the workers that it needs: image, segmenting, stitching and export.

`order` says which steps a stage has; here each becomes a task of the flow, with retries.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from prefect import Flow, Task, flow
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext

from slidesam.flows.cluster.task_runner import SharedTaskRunner
from slidesam.flows.progress.reporters import Reporter, stage
from slidesam.flows.run_log import run_log
from slidesam.flows.slide import order
from slidesam.flows.slide.in_flight import run_task, stream_tasks
from slidesam.flows.slide.order import Batch, Facts, Step
from slidesam.flows.slide.session import Session
from slidesam.tasks import steps
from slidesam.tasks.errors import BlockFailures
from slidesam.tasks.retry import Action, decide
from slidesam.tasks.run.records import Provenance
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.sections import RunSettings

# The stages of a slide of so few blocks aren't child flows.
_FEW_BLOCKS = 8


class FlowTasks:
    """Runs steps as tasks of the current flow run.

    Args:
        session: The workers, the reporter and the check.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def most_workers(self) -> int | None:
        """The largest number of workers that share the steps; None if it isn't known."""
        return self._session.cluster.most_workers

    def run_one(self, step: Step, run: Run, *arguments: Any) -> Any:
        """Run a step that is one task."""
        step = with_retries(step, run.settings.run)
        return run_task(lambda: step.submit(run, *arguments), self._session)

    def run_many(
        self, step: Step, run: Run, jobs: Iterable[Batch], arguments: Callable[[Batch], tuple[Any, ...]]
    ) -> Generator[tuple[Batch, Facts, Exception | None], None, None]:
        """Run a step on each job, one task per job; yield each job with its result or error as it ends."""
        step = with_retries(step, run.settings.run)
        return stream_tasks(jobs, lambda job: _name_task(step, run, job).submit(run, *arguments(job)), self._session)

    def stage(self, name: str, total: int, n_done: int) -> AbstractContextManager[Reporter]:
        """Show one stage of `total` units, `n_done` of which exist already."""
        return stage(self._session.reporter, name, total, n_done)

    def inform(self, message: str) -> None:
        """Show an informational message."""
        self._session.reporter.inform(message)

    def warn(self, message: str) -> None:
        """Show a warning, here and in the flow run's log."""
        run_log().warning("%s", message)
        self.inform(message)


@flow(name="image", flow_run_name="image of {run.name}", persist_result=False, validate_parameters=False)
def image_stage(run: Run, session: Session) -> float:
    """Convert or rechunk the slide, or write its overview only; see `order.write_image`."""
    return order.write_image(run, FlowTasks(session))


@flow(
    name="segment blocks", flow_run_name="segment blocks of {run.name}", persist_result=False, validate_parameters=False
)
def segment_stage(
    run: Run, session: Session, block_ids: Sequence[int] | None = None, *, can_grow: bool = False
) -> dict[str, float] | BlockFailures:
    """Segment the blocks that have no done-mark; see `order.segment_missing_blocks`.

    If blocks ran out of memory and larger workers can be had, the failures are returned: they aren't final.
    """
    try:
        return order.segment_missing_blocks(run, FlowTasks(session), block_ids, can_grow=can_grow)
    except BlockFailures as error:
        if can_grow and any(failure.is_out_of_memory for failure in error.failures.values()):
            return error
        raise


@flow(
    name="stitch and export",
    flow_run_name="stitch and export {run.name}",
    persist_result=False,
    validate_parameters=False,
)
def stitch_stage(run: Run, session: Session, seconds: dict[str, float]) -> Provenance:
    """Match at seams, number the objects, write the label pyramid and what people look at; see `order.stitch_and_export`."""
    facts = order.stitch_and_export(run, FlowTasks(session), seconds)
    run_log().info("%s: %d objects, in %s", run.name, facts.objects, run.store)
    return facts


@flow(name="objects", flow_run_name="objects of {run.name}", persist_result=False, validate_parameters=False)
def objects_stage(run: Run, session: Session) -> None:
    """Write table and outlines of the objects; see `order.export_objects`."""
    order.export_objects(run, FlowTasks(session))


def run_stage(
    stage_flow: Flow[..., Any], runner: SharedTaskRunner, run: Run, session: Session, *arguments: Any, **options: Any
) -> Any:
    """Run a stage as a child flow on a runner's workers; that of a slide of few blocks as tasks of the slide's own flow.

    A child flow takes a dozen requests to the server, as much as five tasks; few tasks are seen as well on the slide's page.

    Args:
        stage_flow: The stage.
        runner: Submits its tasks.
        run: The run.
        session: See `FlowTasks`.
        arguments: Further arguments of the stage.
        options: Its keyword arguments.
    """
    context = FlowRunContext.get()
    if context is not None and len(run.grid) <= _FEW_BLOCKS:
        with runner.duplicate() as own_runner, context.model_copy(update={"task_runner": own_runner}):
            return stage_flow.fn(run, session, *arguments, **options)
    # Prefect's own `with_options` builds the flow anew, with the schema of its parameters: a tenth of a second each time.
    stage_flow = copy.copy(stage_flow)
    stage_flow.task_runner = runner  # type: ignore[assignment]
    return stage_flow(run, session, *arguments, **options)


def _name_task(step: Step, run: Run, job: Batch) -> Step:
    """Return the task under the name that the UI shows for this job."""
    if step.fn is steps.segment_blocks.fn:
        return step.with_options(task_run_name=blocks_name(run, job))
    if step.fn is steps.write_tiles.fn:
        return step.with_options(name=f"{run.image_plan.mode} tiles")
    return step


def with_retries(step: Step, settings: RunSettings) -> Step:
    """Return the task with the settings' retries."""
    return step.with_options(
        retries=settings.retries,
        retry_delay_seconds=settings.retry_delay,
        retry_jitter_factor=settings.retry_jitter,
        retry_condition_fn=is_worth_a_retry,
    )


def is_worth_a_retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Tell Prefect whether another attempt can help: not if the settings or the segmenter are wrong."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, Exception) and decide(error, attempts_left=1) is Action.RETRY


def blocks_name(run: Run, block_ids: Sequence[int]) -> str:
    """Return a task's name in the UI: the block and its place in the grid, or the first and last of several blocks."""
    row, column = run.grid[block_ids[0]].block_index
    if len(block_ids) == 1:
        return f"block {block_ids[0]} (row {row}, column {column})"
    return f"blocks {block_ids[0]} to {block_ids[-1]} ({len(block_ids)}, from row {row}, column {column})"
