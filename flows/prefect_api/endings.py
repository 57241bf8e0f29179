"""Sets final states that nobody else would set: of runs whose process died, or ended before they did.

Prefect keeps the last state that was reported. A task whose worker was killed, one that waited when its flow ended, and a flow
run that was killed with all its children would be shown as running, or pending, for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from slidesam.flows.run_log import own_log

_UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED, StateType.PAUSED, StateType.CANCELLING]
_PAGE = 200
# A task run is recorded from events, some moments after it began.
_PATIENCE = 5.0
_PREFECT_LIMIT = 2000


def crash_task_run(task_run_id: UUID, reason: str) -> None:
    """Report that a task has crashed, and why, because its worker can't any more.

    Args:
        task_run_id: The task run.
        reason: What is shown with the state.
    """
    deadline = time.monotonic() + _PATIENCE
    with _quietly(), get_client(sync_client=True) as client:
        while True:
            try:
                client.set_task_run_state(task_run_id, Crashed(message=reason[:_PREFECT_LIMIT]), force=True)
                return
            except ObjectNotFound:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


def end_children(flow_run_id: UUID, reason: str) -> None:
    """End what a flow run leaves unfinished: its tasks, its child flows, and theirs.

    Args:
        flow_run_id: A flow run that has ended, or is ending.
        reason: What is shown with the states.
    """
    with _quietly(), get_client(sync_client=True) as client:
        _end_children(client, flow_run_id, reason)


def end_flow_run(flow_run_id: UUID, output: Path, reason: str) -> None:
    """End a flow run whose process was killed, with all below it; a run that has ended is left alone.

    Args:
        flow_run_id: The flow run; nothing happens if this server doesn't know it.
        output: The output folder; nothing happens if the run writes to another.
        reason: What is shown with the states.
    """
    with _quietly(), suppress(ObjectNotFound), get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run_id)
        if not writes_to(run, output):
            return
        state = run.state
        _end_children(client, flow_run_id, reason)
        # A run that is scheduled again has been put back: leave it.
        if state is None or not (state.is_final() or state.is_scheduled()):
            client.set_flow_run_state(flow_run_id, Crashed(message=reason), force=True)


def writes_to(run: FlowRun, output: Path) -> bool:
    """Tell whether a flow run writes to an output folder; False if its path is relative, to a folder that nobody knows."""
    own_output = Path(str(run.parameters.get("output", "")))
    return own_output.is_absolute() and own_output.resolve() == output.resolve()


def add_tags(flow_run_id: str, tags: Iterable[str]) -> None:
    """Add tags to a flow run.

    Args:
        flow_run_id: The flow run.
        tags: Tags for the UI.
    """
    with _quietly(), get_client(sync_client=True) as client:
        existing = client.read_flow_run(UUID(flow_run_id)).tags
        client.update_flow_run(UUID(flow_run_id), tags=sorted({*existing, *tags}))


def _end_children(client: SyncPrefectClient, flow_run_id: UUID, reason: str) -> None:
    for child in _unfinished_flows(client, flow_run_id):
        _end_children(client, child.id, reason)
        client.set_flow_run_state(child.id, Crashed(message=reason), force=True)
    for task in _unfinished_tasks(client, flow_run_id):
        has_begun = task.state is not None and task.state.type == StateType.RUNNING
        state: State[Any] = Crashed(message=reason) if has_begun else Cancelled(message=f"not begun: {reason}")
        with suppress(ObjectNotFound):
            client.set_task_run_state(task.id, state, force=True)


def _unfinished_flows(client: SyncPrefectClient, flow_run_id: UUID) -> list[FlowRun]:
    run_filter = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run_id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED)),
    )
    return list(client.read_flow_runs(flow_run_filter=run_filter, limit=_PAGE))


def _unfinished_tasks(client: SyncPrefectClient, flow_run_id: UUID) -> Iterator[TaskRun]:
    task_filter = TaskRunFilter(
        flow_run_id=TaskRunFilterFlowRunId(any_=[flow_run_id]),
        state=TaskRunFilterState(type=TaskRunFilterStateType(any_=_UNFINISHED)),
    )
    # Read all pages before changing any: what is ended drops out of the filter.
    tasks: list[TaskRun] = []
    while len(page := client.read_task_runs(task_run_filter=task_filter, limit=_PAGE, offset=len(tasks))) == _PAGE:
        tasks += page
    yield from [*tasks, *page]


class _quietly:  # noqa: N801
    """Logs errors instead of raising them: a run must not fail because its state can't be shown."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        own_log().warning("states of ended runs or their tags could not be set: %s", error)
        return True
