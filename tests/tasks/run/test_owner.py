"""Whether the process that holds a lock has ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slidesam.tasks.run.lock import LockedError, holder, locked
from slidesam.tasks.run.owner import Owner
from tests.support.lock_owners import TARGET, write_lock


def test_a_process_with_a_reused_id_is_not_the_owner(path: Path) -> None:
    born = Owner.this_process("me").born
    if born is None:
        pytest.skip("this system doesn't say when processes started")
    write_lock(path, host=os.uname().nodename, born=born - 1)
    with locked(path, "me", target=TARGET):
        pass
    write_lock(path, host=os.uname().nodename)
    with pytest.raises(LockedError), locked(path, "me", target=TARGET):
        pytest.fail("that one lives")


@pytest.mark.parametrize("change", [{"host": "node7"}, {"boot": "another"}, {"boot": ""}])
def test_only_its_own_machine_can_tell_that_a_process_has_ended(change: dict, path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    write_lock(path, host=os.uname().nodename, pid=ended.pid)
    with locked(path, "me", target=TARGET):
        pass
    write_lock(path, **{"host": os.uname().nodename, "pid": ended.pid, **change})
    with pytest.raises(LockedError), locked(path, "me", target=TARGET):
        pytest.fail("it may live")


def test_the_file_format_stays_readable_for_other_versions(path: Path) -> None:
    keys = {"host": "node7", "boot": "b pid:[1]", "pid": 7, "born": 42, "owner": 'flow run "x"', "token": "0" * 32}
    path.parent.mkdir()
    path.write_text(json.dumps(keys | {"started": "2026-01-02T03:04:05+00:00", "key_of_a_later_version": 1}))
    assert holder(path) == 'flow run "x" (host node7, process 7, since 2026-01-02 03:04:05 UTC)'
    assert Owner.this_process("me").model_dump().keys() == keys.keys() | {"started"}
