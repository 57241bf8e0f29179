"""How a run's end is recorded where it didn't end by itself."""

from __future__ import annotations

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from slidesam.flows.slide.run_status import RunStatus
from slidesam.tasks.errors import ServerError


def test_a_prefect_api_that_is_gone_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[BaseException] = []
    monkeypatch.setattr(RunStatus, "_record_end", lambda _, error: recorded.append(error))
    status = object.__new__(RunStatus)
    words = (
        r"the Prefect API at http://h:1/api doesn't answer any more \(ConnectError: refused\): start it again; what is"
    )
    with (
        temporary_settings({PREFECT_API_URL: "http://h:1/api"}),
        pytest.raises(ServerError, match=words) as caught,
        status.recorded(),
    ):
        raise httpx.ConnectError("refused")
    assert recorded == [caught.value]
