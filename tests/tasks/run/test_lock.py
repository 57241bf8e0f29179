"""The lock between real processes: killed, suspended, cut off; what it says to whoever finds it held."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run.lock import LockedError, holder, locked
from slidesam.tasks.run.lock_file import Pace
from slidesam.tasks.run.owner import Owner
from tests.support.lock_owners import FAST, PATIENT, QUIET, SKEWED, WHAT, elsewhere, free, other


def test_one_at_a_time_and_free_afterwards(path: Path) -> None:
    with locked(path, "me", what=WHAT) as lock:
        assert Owner.model_validate_json(path.read_bytes()).pid == os.getpid()
        assert [file.name for file in path.parent.iterdir()] == ["lock.json"]
        with pytest.raises(LockedError), locked(path, "me again", what=WHAT):
            pytest.fail("two at once")
        lock.check()
    assert free(path)
    with pytest.raises(ZeroDivisionError), locked(path, "me", what=WHAT):
        1 / 0  # noqa: B018
    assert free(path)


def test_the_refusal_says_who_where_since_when_and_what_to_do(path: Path) -> None:
    with other(path) as owner:
        with pytest.raises(LockedError) as caught, locked(path, "me", what=WHAT):
            pytest.fail("two at once")
        words, pid = str(caught.value), owner.process.pid
        assert words.startswith(f"{WHAT} is locked by the other (host {os.uname().nodename}, process {pid}, since 2")
        assert "UTC): wait for it, or end it; if that process is gone the lock is free within 60 s" in words
        assert "\n" not in words
        assert holder(path) == words.removeprefix(f"{WHAT} is locked by ").partition(": wait")[0]
        assert owner.checks() == "ours"
        assert owner.ends() == "released"
    assert free(path)
    assert holder(path) is None


def test_whoever_waits_is_told_once_and_gets_it(path: Path) -> None:
    told = []
    with other(path) as owner:
        wait = {"wait": 60.0, "pace": FAST}
        with locked(
            path, "me", what=WHAT, **wait, on_wait=lambda words: told.append(words) or owner.stdin.close()
        ) as lock:
            assert owner.says() == "released"
            lock.check()
    assert len(told) == 1
    assert told[0].startswith(f"{WHAT} is locked by the other (host")
    assert told[0].endswith("waiting for it")


def test_waiting_ends(path: Path) -> None:
    told: list[str] = []
    started = time.monotonic()
    with locked(path, "me", what=WHAT):
        with pytest.raises(LockedError), locked(path, "I", what=WHAT, wait=0.3, on_wait=told.append):
            pytest.fail("two at once")
        assert time.monotonic() - started >= 0.3
    assert len(told) == 1
    assert free(path)


def test_a_killed_owner_is_followed_at_once(path: Path) -> None:
    with other(path) as owner:
        # Killed and not waited for: still in the list of processes, as one that has ended.
        owner.process.kill()
        os.waitid(os.P_PID, owner.process.pid, os.WEXITED | os.WNOWAIT)
        assert holder(path) is None
        started = time.monotonic()
        with locked(path, "me", what=WHAT) as lock:
            assert time.monotonic() - started < 5
            lock.check()
    assert free(path)


@pytest.mark.parametrize("skew", [0, 3600, -3600])
def test_a_suspended_owner_loses_its_lock_and_notices(skew: int, path: Path, monkeypatch) -> None:
    before = SKEWED.format(skew=skew) if skew else ""
    if skew:
        utime = os.utime

        def skewed(file: Path) -> None:
            utime(file)
            moved = file.stat().st_mtime_ns + skew * 10**9
            utime(file, ns=(moved, moved))

        monkeypatch.setattr(os, "utime", skewed)
    with other(path, QUIET, before) as owner:
        with pytest.raises(LockedError), locked(path, "me", what=WHAT, pace=Pace(beat=0.2, poll=0.05)):
            pytest.fail("two at once")
        owner.process.send_signal(signal.SIGSTOP)
        with locked(path, "me", what=WHAT, wait=60, pace=QUIET) as lock:
            owner.process.send_signal(signal.SIGCONT)
            words = owner.checks()
            assert words.startswith(f"LockedError {WHAT} was taken over by me (host")
            assert "run the same command again" in words
            assert owner.ends() == "released"
            lock.check()
            assert Owner.model_validate_json(path.read_bytes()).owner == "me"
    assert free(path)


def test_an_owner_back_in_time_keeps_its_lock(path: Path) -> None:
    with other(path, QUIET) as owner:
        owner.process.send_signal(signal.SIGSTOP)
        time.sleep(QUIET.stale + 0.2)
        owner.process.send_signal(signal.SIGCONT)
        assert owner.checks() == "ours"
        with pytest.raises(LockedError), locked(path, "me", what=WHAT, pace=PATIENT):
            pytest.fail("two at once")


def test_an_owner_waits_for_whoever_is_taking_over(path: Path) -> None:
    with locked(path, "me", what=WHAT, pace=FAST) as lock:
        token = Owner.model_validate_json(path.read_bytes()).token
        claim = path.with_name(f".{path.name}.{token}.claim")
        # Left by one that died: of no meaning.
        elsewhere(claim, host=os.uname().nodename, born=1)
        lock.check()
        assert not claim.exists()
        # By one that lives and doesn't finish: it may do so any time.
        with (
            locked(claim, "a slow one", what="", pace=FAST),
            pytest.raises(LockedError, match="taken over by a slow one"),
        ):
            lock.check()


def test_a_lock_that_somebody_removed_is_lost(path: Path) -> None:
    with locked(path, "me", what=WHAT) as lock:
        path.unlink()
        with pytest.raises(LockedError, match="was removed while this run was at work"):
            lock.check()
        assert lock.lost.is_set()
    with locked(path, "me", what=WHAT, pace=FAST) as lock:
        theirs = elsewhere(path)
        assert lock.lost.wait(60)
    assert Owner.model_validate_json(path.read_bytes()) == theirs


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("call", ["link", "utime"])
def test_what_cannot_be_written_is_said(number: int, call: str, path: Path, monkeypatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    todo = "make room there" if number == errno.ENOSPC else "check the folder"
    words = rf"{os.strerror(number)}\): {todo}, then run the same command again"
    with pytest.raises(OutputError, match=words) as caught, locked(path, "me", what=WHAT):
        pytest.fail("not locked")
    assert not isinstance(caught.value, LockedError)
    assert str(caught.value).startswith(WHAT)
    assert free(path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="can't be locked"),
        locked(tmp_path / "file" / "x" / "lock.json", "me", what=WHAT),
    ):
        pytest.fail("not locked")


def test_a_file_server_that_hiccups_costs_nothing(path: Path, monkeypatch) -> None:
    utime, link, failed = os.utime, os.link, Event()

    def fail(*args: object) -> None:
        failed.set()
        raise OSError(errno.ESTALE, "stale")

    with locked(path, "me", what=WHAT, pace=Pace(beat=0.05)) as lock:
        monkeypatch.setattr(os, "utime", fail)
        monkeypatch.setattr(os, "link", fail)
        assert failed.wait(60)
        lock.check()
        monkeypatch.setattr(os, "utime", utime)
        monkeypatch.setattr(os, "link", link)
        lock.check()
        assert not lock.lost.is_set()
    assert free(path)


def test_an_owner_that_cannot_tell_for_long_stops(path: Path, monkeypatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EIO, "broken")

    with locked(path, "me", what=WHAT, pace=Pace(beat=0.1, stale=0.4)) as lock:
        monkeypatch.setattr(os, "utime", fail)
        time.sleep(0.6)
        with pytest.raises(LockedError, match=r"couldn't be reached for 0.4 s"):
            lock.check()


def test_a_full_disk_does_not_keep_the_lock(path: Path, monkeypatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with locked(path, "me", what=WHAT) as lock:
        monkeypatch.setattr(os, "link", fail)
        lock.check()
    assert free(path)


def test_a_fork_does_not_release(path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from slidesam.tasks.run.lock import locked
path = Path(sys.argv[1])
with locked(path, "me", what="it") as lock:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        assert path.exists()
        lock.check()
assert bool(child) != path.exists()
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=180)
    assert free(path)
