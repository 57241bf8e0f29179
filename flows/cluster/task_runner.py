"""Submits the tasks of flows to a Dask cluster: one connection for all flows, and little to compute and send per task.

prefect-dask's runner, which this one extends, connects once per flow. With each task it sends all of Prefect's settings and the
flow, and hashes them; the worker validates the settings anew. Of short tasks that is most of the time: half of what the flow's
process computes, a third of the worker's (benchmarks/soak.py). Here both are packed once, and a worker keeps the settings that it
was sent last.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import cloudpickle  # type: ignore[import-untyped]
from distributed import Client
from prefect import Task
from prefect.context import SettingsContext, serialize_context
from prefect.task_engine import run_task_sync
from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture


class Connection:
    """A connection to a Dask scheduler that all flows of a command share.

    Args:
        address: The scheduler's address.
        connect: Opens a client.
    """

    def __init__(self, address: str, connect: Callable[[], Client]) -> None:
        self.address = address
        self._connect = connect
        self._client: Client | None = None
        self._settings: tuple[SettingsContext | None, bytes] = (None, b"")

    @property
    def client(self) -> Client:
        """The open client; another one if the scheduler was lost and is there again."""
        if self._client is None or self._client.status not in ("running", "connecting"):
            self.close()
            self._client = self._connect()
        return self._client

    @property
    def settings(self) -> bytes:
        """Prefect's settings of this process, as `_read_settings` reads them."""
        context = SettingsContext.get()
        if context is not None and context is not self._settings[0]:
            self._settings = (context, pickle.dumps(context.serialize()))
        return self._settings[1]

    def close(self) -> None:
        """Close the client."""
        if self._client is not None:
            self._client.close()
            self._client = None


class SharedTaskRunner(DaskTaskRunner):
    """Runs tasks through a connection that stays open after the flow.

    Args:
        address: The scheduler's address.
        connection: The connection; None in a worker, which is told of its flow's runner and doesn't use it.
    """

    def __init__(self, address: str, connection: Connection | None = None) -> None:
        super().__init__(address=address)
        self._connection = connection
        self._flow_context: bytes | None = None

    def duplicate(self) -> SharedTaskRunner:
        """Return a runner for one flow run."""
        assert self.address is not None
        return type(self)(self.address, self._connection)

    def __reduce__(self) -> tuple[type[SharedTaskRunner], tuple[str | None]]:
        return type(self), (self.address,)

    def submit(  # type: ignore[override]
        self, task: Task[..., Any], parameters: dict[str, Any], wait_for: Any = None, dependencies: Any = None
    ) -> PrefectDaskFuture[Any]:
        """Submit a task whose parameters are values, not other tasks' futures.

        Args:
            task: The task.
            parameters: What it is called with.
            wait_for: Must be empty, as must `dependencies`: tasks of this package are submitted when they can start.
            dependencies: See `wait_for`.
        """
        assert self._connection is not None
        assert not wait_for
        assert not dependencies
        if self._flow_context is None:
            context = {key: value for key, value in serialize_context().items() if key != "settings_context"}
            self._flow_context = cloudpickle.dumps(context)
        task_run_id = uuid4()
        future = self._connection.client.submit(
            run_sent_task,
            cloudpickle.dumps((task, parameters)),
            task_run_id,
            self._flow_context,
            self._connection.settings,
            # Dask's dashboard shows what stands before the dash.
            key=f"{task.fn.__name__}-{task_run_id}",
            pure=False,
        )
        return PrefectDaskFuture[Any](wrapped_future=future, task_run_id=task_run_id)


def run_sent_task(task_and_parameters: bytes, task_run_id: UUID, flow_context: bytes, settings: bytes) -> Any:
    """Run a task in a worker.

    Args:
        task_and_parameters: The task and its parameters, pickled.
        task_run_id: The task run's id.
        flow_context: What Prefect calls the context, without the settings, pickled.
        settings: Prefect's settings, pickled.

    Returns:
        The task run's final state.
    """
    task, parameters = pickle.loads(task_and_parameters)  # noqa: S301
    with _read_settings(settings).model_copy():
        return run_task_sync(
            task,
            task_run_id=task_run_id,
            parameters=parameters,
            dependencies={name: set() for name in parameters},
            return_type="state",
            context=pickle.loads(flow_context),  # noqa: S301
        )


# A worker works for one command at a time; one of an attached cluster perhaps for several.
@functools.lru_cache(maxsize=4)
def _read_settings(settings: bytes) -> SettingsContext:
    return SettingsContext(**pickle.loads(settings))  # noqa: S301
