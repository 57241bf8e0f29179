"""What a look into the inbox says, without a server: looks that start slides are in test_operations."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from slidesam.flows.many.inbox import inbox
from slidesam.tasks.run.lock import locked
from slidesam.tasks.run.service_folders import inbox_lock, inbox_memory
from tests.support.prefect_fixtures import THIRD_PARTY_WARNINGS

pytestmark = [pytest.mark.filterwarnings(warning) for warning in THIRD_PARTY_WARNINGS]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    # There is no flow run whose log it could write.
    monkeypatch.setattr("slidesam.flows.many.inbox.run_log", lambda: logging.getLogger("test"))
    for name in ("inbox", "results"):
        (tmp_path / name).mkdir()
    return tmp_path / "inbox", tmp_path / "results"


def test_a_look_says_what_it_found(folders: tuple[Path, Path]) -> None:
    (folders[0] / "arriving.tif").write_bytes(b"II*\0")
    state = inbox.fn(*folders)
    assert state.is_completed()
    assert state.message == "1 slide, 1 of them still arriving; started now: none"


def test_a_look_beside_another_ends_and_says_so(folders: tuple[Path, Path]) -> None:
    memory = inbox_memory(folders[1], folders[0])
    with locked(inbox_lock(memory), "flow run 'other'", target="inbox"):
        state = inbox.fn(*folders)
    assert state.is_completed()
    assert state.message.startswith("another look is at work: ")
    assert inbox.fn(*folders).message.startswith("0 slides")
