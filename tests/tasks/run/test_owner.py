"""Whether the process that holds a lock has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slidesam.tasks.run.lock import LockedError, locked
from slidesam.tasks.run.owner import Owner
from tests.support.lock_owners import WHAT, elsewhere


def test_a_process_id_that_was_given_anew_is_not_the_owner(path: Path) -> None:
    born = Owner.me("me").born
    if born is None:
        pytest.skip("this system doesn't say when processes started")
    elsewhere(path, host=os.uname().nodename, born=born - 1)
    with locked(path, "me", what=WHAT):
        pass
    elsewhere(path, host=os.uname().nodename)
    with pytest.raises(LockedError), locked(path, "me", what=WHAT):
        pytest.fail("that one lives")


@pytest.mark.parametrize("change", [{"host": "node7"}, {"boot": "another"}, {"boot": ""}])
def test_only_its_own_machine_can_tell_that_a_process_is_gone(change: dict, path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    elsewhere(path, host=os.uname().nodename, pid=ended.pid)
    with locked(path, "me", what=WHAT):
        pass
    elsewhere(path, **{"host": os.uname().nodename, "pid": ended.pid, **change})
    with pytest.raises(LockedError), locked(path, "me", what=WHAT):
        pytest.fail("it may live")
