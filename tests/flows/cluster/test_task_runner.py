"""The runner that all flows of a command share: what it sends, and that a lost connection is opened anew."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from slidesam.flows.cluster.task_runner import Connection, SharedTaskRunner


def connected() -> tuple[Connection, list[Any]]:
    clients: list[Any] = []

    def connect() -> Any:
        clients.append(SimpleNamespace(status="running", close=lambda: None))
        return clients[-1]

    return Connection("tcp://10.0.0.1:1", connect), clients


def test_all_flow_runs_share_one_client_and_a_lost_one_is_replaced() -> None:
    connection, clients = connected()
    assert connection.client is connection.client
    clients[0].status = "closed"
    assert connection.client is clients[1]


def test_settings_are_packed_once_until_they_change() -> None:
    connection, _ = connected()
    packed = connection.settings
    assert connection.settings is packed
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 3}):
        assert connection.settings != packed


def test_a_worker_is_told_of_the_runner_without_its_connection() -> None:
    connection, clients = connected()
    sent = pickle.loads(pickle.dumps(SharedTaskRunner(connection.address, connection)))
    assert sent.address == connection.address
    assert sent._connection is None
    assert not clients
