"""What a worker says when its scheduler is gone."""

from __future__ import annotations

import inspect
import io
import logging

import distributed.worker
import pytest

from slidesam.flows.cluster.on_worker import HEARTBEAT_FAILED, drop_traceback_of_heartbeat


@pytest.mark.parametrize(("message", "lines"), [(HEARTBEAT_FAILED, 1), ("Something else.", 5)])
def test_a_scheduler_that_is_gone_costs_one_line(message: str, lines: int) -> None:
    written = io.StringIO()
    logger = logging.Logger("worker")
    logger.addHandler(logging.StreamHandler(written))
    logger.addFilter(drop_traceback_of_heartbeat)
    try:
        raise OSError("in <TCP>: Stream is closed")
    except OSError:
        logger.exception(message)
    assert len(written.getvalue().splitlines()) == lines


def test_dask_still_says_it_like_this() -> None:
    assert f'logger.exception("{HEARTBEAT_FAILED}")' in inspect.getsource(distributed.worker.Worker.heartbeat)
