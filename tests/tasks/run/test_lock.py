"""The lock between real processes that are killed, suspended or cut off, and its messages."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from threading import Event

import pytest

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run import status
from slidesam.tasks.run.layout import RunPaths
from slidesam.tasks.run.lock import LockedError, holder, holders, locked
from slidesam.tasks.run.lock_file import LockPace, claim_path
from slidesam.tasks.run.owner import Owner
from tests.support.lock_owners import (
    FAST,
    PATIENT,
    QUIET,
    SKEWED,
    TARGET,
    is_free,
    locked_elsewhere,
    set_age,
    write_lock,
)
from tests.support.syncs import record_syncs


def test_one_at_a_time_and_free_afterwards(path: Path) -> None:
    with locked(path, "me", target=TARGET) as lock:
        assert Owner.model_validate_json(path.read_bytes()).pid == os.getpid()
        assert [file.name for file in path.parent.iterdir()] == ["lock.json"]
        with pytest.raises(LockedError), locked(path, "me again", target=TARGET):
            pytest.fail("two at once")
        lock.check()
    assert is_free(path)
    with pytest.raises(ZeroDivisionError), locked(path, "me", target=TARGET):
        1 / 0  # noqa: B018
    assert is_free(path)


def test_the_refusal_names_owner_host_process_and_time_and_the_cure(path: Path) -> None:
    with locked_elsewhere(path) as owner:
        with pytest.raises(LockedError) as caught, locked(path, "me", target=TARGET):
            pytest.fail("two at once")
        message, pid = str(caught.value), owner.process.pid
        assert message.startswith(
            f"{TARGET} is locked by the other (host {os.uname().nodename}, process {pid}, since 2"
        )
        assert "UTC): wait for it, or end it; if that process is gone the lock is free within 60 s" in message
        assert "\n" not in message
        assert holder(path) == message.removeprefix(f"{TARGET} is locked by ").partition(": wait")[0]
        assert owner.check() == "ours"
        assert owner.release() == "released"
    assert is_free(path)
    assert holder(path) is None


def test_a_waiting_process_gets_one_message_and_then_the_lock(path: Path) -> None:
    messages = []
    with locked_elsewhere(path) as owner:

        def end_owner(message: str) -> None:
            messages.append(message)
            owner.stdin.close()

        with locked(path, "me", target=TARGET, wait=60, pace=FAST, on_wait=end_owner) as lock:
            assert owner.read_answer() == "released"
            lock.check()
    assert len(messages) == 1
    assert messages[0].startswith(f"{TARGET} is locked by the other (host")
    assert messages[0].endswith("waiting for it")


def test_waiting_ends(path: Path) -> None:
    messages: list[str] = []
    started = time.monotonic()
    with locked(path, "me", target=TARGET):
        with pytest.raises(LockedError), locked(path, "I", target=TARGET, wait=0.3, on_wait=messages.append):
            pytest.fail("two at once")
        assert time.monotonic() - started >= 0.3
    assert len(messages) == 1
    assert is_free(path)


def test_a_killed_owners_lock_is_taken_over_at_once(path: Path) -> None:
    with locked_elsewhere(path) as owner:
        # Without wait(), so that it stays in the list of processes as a zombie.
        owner.process.kill()
        os.waitid(os.P_PID, owner.process.pid, os.WEXITED | os.WNOWAIT)
        assert holder(path) is None
        started = time.monotonic()
        with locked(path, "me", target=TARGET) as lock:
            assert time.monotonic() - started < 5
            lock.check()
    assert is_free(path)


@pytest.mark.parametrize("skew", [0, 3600, -3600])
def test_a_suspended_owner_loses_its_lock_and_notices(skew: int, path: Path, monkeypatch) -> None:
    setup = SKEWED.format(skew=skew) if skew else ""
    if skew:
        utime = os.utime

        def skewed(file: Path) -> None:
            utime(file)
            moved = file.stat().st_mtime_ns + skew * 10**9
            utime(file, ns=(moved, moved))

        monkeypatch.setattr(os, "utime", skewed)
    with locked_elsewhere(path, QUIET, setup) as owner:
        with pytest.raises(LockedError), locked(path, "me", target=TARGET, pace=LockPace(beat=0.2, poll=0.05)):
            pytest.fail("two at once")
        owner.process.send_signal(signal.SIGSTOP)
        with locked(path, "me", target=TARGET, wait=60, pace=QUIET) as lock:
            owner.process.send_signal(signal.SIGCONT)
            message = owner.check()
            assert message.startswith(f"LockedError {TARGET} was taken over by me (host")
            assert "run the same command again" in message
            assert owner.release() == "released"
            lock.check()
            assert Owner.model_validate_json(path.read_bytes()).owner == "me"
    assert is_free(path)


def test_a_suspended_owner_that_resumes_in_time_keeps_its_lock(path: Path) -> None:
    with locked_elsewhere(path, QUIET) as owner:
        owner.process.send_signal(signal.SIGSTOP)
        time.sleep(QUIET.stale + 0.2)
        owner.process.send_signal(signal.SIGCONT)
        assert owner.check() == "ours"
        with pytest.raises(LockedError), locked(path, "me", target=TARGET, pace=PATIENT):
            pytest.fail("two at once")


def test_check_waits_for_a_process_that_is_taking_over(path: Path) -> None:
    with locked(path, "me", target=TARGET, pace=FAST) as lock:
        token = Owner.model_validate_json(path.read_bytes()).token
        claim = claim_path(path, token)
        # The claim of a dead process has no effect.
        write_lock(claim, host=os.uname().nodename, born=1)
        lock.check()
        assert not claim.exists()
        # A living process may take over at any time.
        with (
            locked(claim, "a slow one", target="", pace=FAST),
            pytest.raises(LockedError, match="taken over by a slow one"),
        ):
            lock.check()


def test_a_removed_or_replaced_lock_is_lost(path: Path) -> None:
    with locked(path, "me", target=TARGET) as lock:
        path.unlink()
        with pytest.raises(LockedError, match="was removed while this run was at work"):
            lock.check()
    with locked(path, "me", target=TARGET, pace=FAST) as lock:
        theirs = write_lock(path)
        # The next beat notices, and is the last.
        lock._thread.join(60)
        assert not lock._thread.is_alive()
        with pytest.raises(LockedError, match="taken over by the other"):
            lock.check()
    assert Owner.model_validate_json(path.read_bytes()) == theirs


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("call", ["link", "utime"])
def test_the_error_says_why_a_lock_cannot_be_written(number: int, call: str, path: Path, monkeypatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    cure = "make room there" if number == errno.ENOSPC else "check the folder"
    message = rf"{os.strerror(number)}\): {cure}, then run the same command again"
    with pytest.raises(OutputError, match=message) as caught, locked(path, "me", target=TARGET):
        pytest.fail("not locked")
    assert not isinstance(caught.value, LockedError)
    assert str(caught.value).startswith(TARGET)
    assert is_free(path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="can't be locked"),
        locked(tmp_path / "file" / "x" / "lock.json", "me", target=TARGET),
    ):
        pytest.fail("not locked")


def test_a_short_failure_of_the_file_server_costs_nothing(path: Path, monkeypatch) -> None:
    utime, link, failed = os.utime, os.link, Event()

    def fail(*args: object) -> None:
        failed.set()
        raise OSError(errno.ESTALE, "stale")

    with locked(path, "me", target=TARGET, pace=LockPace(beat=0.05)) as lock:
        monkeypatch.setattr(os, "utime", fail)
        monkeypatch.setattr(os, "link", fail)
        assert failed.wait(60)
        lock.check()
        monkeypatch.setattr(os, "utime", utime)
        monkeypatch.setattr(os, "link", link)
        lock.check()
    assert is_free(path)


def test_an_owner_that_cannot_reach_its_file_for_long_stops(path: Path, monkeypatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "broken")

    with locked(path, "me", target=TARGET, pace=LockPace(beat=0.1, stale=0.4)) as lock:
        monkeypatch.setattr(os, "utime", fail)
        time.sleep(0.6)
        with pytest.raises(LockedError, match=r"couldn't be reached for 0.4 s"):
            lock.check()


def test_a_full_disk_does_not_keep_the_lock(path: Path, monkeypatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with locked(path, "me", target=TARGET) as lock:
        monkeypatch.setattr(os, "link", fail)
        lock.check()
    assert is_free(path)


def test_a_fork_does_not_release(path: Path) -> None:
    code = """
import os, sys
from functools import partial
from pathlib import Path
from slidesam.tasks.run.lock import locked
path = Path(sys.argv[1])
with locked(path, "me", target="it") as lock:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        assert path.exists()
        lock.check()
assert bool(child) != path.exists()
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=180)
    assert is_free(path)


def test_an_old_lock_of_a_host_that_is_gone_holds_nothing(path: Path) -> None:
    """For whoever asks without taking the lock: `retry`, `clean --dry-run`, the inbox."""
    write_lock(path, age=86400)
    assert holder(path, FAST) is None
    assert [file.name for file in path.parent.iterdir()] == ["lock.json"]
    # A file that its writer left empty counts by its age, too.
    path.write_text("")
    assert holder(path, FAST) is not None
    set_age(path, 5)
    assert holder(path, FAST) is None


def test_locks_that_only_look_old_are_held_and_all_are_watched_at_once(path: Path) -> None:
    pace, gone = LockPace(beat=0.2, stale=1.0, poll=0.02), [path.with_name(f"{number}.json") for number in range(20)]
    for lock in gone:
        write_lock(lock, age=3600)
    # A file server whose clock is an hour behind.
    with locked_elsewhere(path, LockPace(beat=0.1, stale=1.0), SKEWED.format(skew=-3600)):
        set_age(path, 3600)
        started = time.monotonic()
        assert list(holders([*gone, path], pace)) == [path]
        assert time.monotonic() - started < 10 * pace.watch


def test_a_run_whose_host_is_gone_is_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "holders", partial(holders, pace=FAST))
    for slide, age in (("gone", 86400), ("at work", -60)):
        status.write_state(tmp_path, slide, "cells", "running")
        write_lock(RunPaths(tmp_path, slide, "cells").lock, age=age)
    assert [run.slide for run in status.list_unfinished(tmp_path)] == ["gone"]


def test_the_folders_that_a_lock_makes_are_on_the_disk(tmp_path: Path) -> None:
    """What lies in them is synced by whoever writes it; after a power cut it would be in a folder without a name."""
    with (
        record_syncs(tmp_path, until="lock.json") as syncs,
        locked(tmp_path / "s" / "cells" / "lock.json", "x", target="x"),
    ):
        assert syncs.is_synced_after(tmp_path)
        assert syncs.is_synced_after(tmp_path / "s")
