"""The lock between real processes: killed, suspended, cut off, racing; on file systems without links and with odd clocks."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run import lock as lock_module
from slidesam.tasks.run.lock import LockedError, Owner, Pace, holder, locked

WHAT = "CMU-1 (cells) in /out"
FAST = Pace(beat=0.1, stale=1.0, poll=0.02)
# Of one who is suspended on purpose: a taker's eyes stay on anybody else for long, who may only seem so on a loaded machine.
QUIET, PATIENT = Pace(beat=0.2, stale=1.0, poll=0.05), Pace(beat=20, stale=1.0, poll=0.05)
# A clock of the file server that is off: all times that it sets are.
SKEWED = """
import os
plain = os.utime
def utime(path, *args, **kwargs):
    plain(path, *args, **kwargs)
    moved = os.stat(path).st_mtime_ns + int({skew} * 1e9)
    plain(path, ns=(moved, moved))
os.utime = utime
"""
OWNER = """
import sys
from pathlib import Path
from slidesam.tasks.run.lock import Pace, locked
beat, stale, poll = map(float, sys.argv[2].split())
with locked(Path(sys.argv[1]), "the other", what="CMU-1 (cells) in /out", pace=Pace(beat, stale, poll)) as lock:
    print("held", flush=True)
    for line in sys.stdin:
        try:
            lock.check()
            print("ours", flush=True)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
print("released", flush=True)
"""


class Other:
    """Another process that holds a lock, and answers whether it thinks that it still does."""

    def __init__(self, path: Path, pace: Pace, before: str = "") -> None:
        command = [sys.executable, "-c", before + OWNER, str(path), f"{pace.beat} {pace.stale} {pace.poll}"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        assert self.process.stdin
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def says(self) -> str:
        return self.stdout.readline().strip()

    def checks(self) -> str:
        self.stdin.write("check\n")
        self.stdin.flush()
        return self.says()

    def ends(self) -> str:
        self.stdin.close()
        return self.says()


@contextmanager
def other(path: Path, pace: Pace = lock_module.PACE, before: str = "") -> Iterator[Other]:
    it = Other(path, pace, before)
    try:
        assert it.says() == "held"
        yield it
    finally:
        it.process.kill()
        it.process.send_signal(signal.SIGCONT)
        it.process.wait()
        it.stdout.close()
        if not it.stdin.closed:
            it.stdin.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "lock.json"


def elsewhere(path: Path, age: float = 0.0, **changes: object) -> Owner:
    """A lock of another host, last touched `age` seconds ago."""
    owner = Owner.me("the other").model_copy(update={"host": "node7", **changes})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(owner.model_dump_json())
    aged(path, age)
    return owner


def aged(path: Path, age: float) -> None:
    os.utime(path, (time.time() - age, time.time() - age))


def free(path: Path) -> bool:
    """Nobody's lock, and nothing left beside it."""
    return list(path.parent.iterdir()) == []


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


def test_another_hosts_lock_is_taken_when_it_is_old_and_nobody_touches_it(path: Path) -> None:
    elsewhere(path, age=59)
    with pytest.raises(LockedError, match="host node7"), locked(path, "me", what=WHAT):
        pytest.fail("not old enough")
    elsewhere(path, age=61)
    told: list[str] = []
    started = time.monotonic()
    with locked(path, "me", what=WHAT, on_wait=told.append, pace=Pace(beat=0.2, poll=0.05)) as lock:
        assert time.monotonic() - started >= 0.5
        lock.check()
    assert len(told) == 1
    assert free(path)


def test_a_clock_that_was_ahead_locks_nobody_out(path: Path) -> None:
    elsewhere(path, age=-3600)
    with pytest.raises(LockedError), locked(path, "me", what=WHAT):
        pytest.fail("not old")
    with locked(path, "me", what=WHAT, wait=60, pace=FAST):
        pass


def test_an_old_lock_that_is_touched_again_lives(path: Path) -> None:
    """As after an outage of the file server."""
    with locked(path, "me", what=WHAT, pace=Pace(beat=0.2)) as lock:
        aged(path, 100)
        with pytest.raises(LockedError), locked(path, "I", what=WHAT, pace=Pace(beat=20, poll=0.05)):
            pytest.fail("it lives")
        lock.check()


def test_a_living_owner_whose_clock_is_behind_is_not_watched_for_ever(path: Path, monkeypatch) -> None:
    utime = os.utime

    def behind(file: Path) -> None:
        past = time.time() - 100
        utime(file, (past, past) if file == path else None)

    with locked(path, "me", what=WHAT, pace=Pace(beat=0.1)):
        monkeypatch.setattr(os, "utime", behind)
        time.sleep(0.3)
        with pytest.raises(LockedError), locked(path, "I", what=WHAT, pace=Pace(beat=20, poll=0.05)):
            pytest.fail("it lives")


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


def test_a_taker_finds_a_lock_that_was_touched_since_it_was_judged(path: Path, monkeypatch) -> None:
    elsewhere(path, age=100)
    replace = lock_module._Contender._take_over

    def late(self, place, seen):
        aged(place, 0)
        return replace(self, place, seen)

    monkeypatch.setattr(lock_module._Contender, "_take_over", late)
    with pytest.raises(LockedError, match="node7"), locked(path, "me", what=WHAT, pace=Pace(beat=0.1, poll=0.05)):
        pytest.fail("it came back")
    assert [file.name for file in path.parent.iterdir()] == ["lock.json"]


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


@pytest.mark.parametrize("content", [b"", b'{"host": "node', b"\xff\xfe", b"[1]", b'{"token": "../../x"}'])
def test_a_file_that_names_nobody_counts_by_its_age(content: bytes, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    nobody = r"locked by somebody whose lock .*lock\.json says nothing: wait"
    with pytest.raises(LockedError, match=nobody), locked(path, "me", what=WHAT):
        pytest.fail("it may be just being written")
    aged(path, 61)
    with locked(path, "me", what=WHAT, pace=Pace(beat=0.05, poll=0.02)) as lock:
        lock.check()
    assert free(path)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_links(number: int, path: Path, monkeypatch) -> None:
    def link(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    test_one_at_a_time_and_free_afterwards(path)
    elsewhere(path, host=os.uname().nodename, born=1)
    with locked(path, "me", what=WHAT) as lock:
        lock.check()
    assert free(path)


def test_a_link_whose_answer_was_lost_counts(path: Path, monkeypatch) -> None:
    link = os.link

    def repeated(*args: object) -> None:
        link(*args)
        link(*args)

    monkeypatch.setattr(os, "link", repeated)
    with locked(path, "me", what=WHAT) as lock:
        lock.check()
    assert free(path)


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


# Each round a fork of its own tries to get in, and most of them die inside: with the lock, or in the middle of a takeover.
RACER = """
import os, random, sys, time
from pathlib import Path
from slidesam.tasks.run import lock as module
from slidesam.tasks.errors import in_one_line
from slidesam.tasks.run.lock import Pace, locked

path, rounds, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
inside, log = path.parent.parent / "inside", path.parent.parent / "log"
open_file, unlink = os.open, os.unlink

def note(words):
    with os.fdopen(open_file(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY), "w") as stream:
        stream.write(words + "\\n")

def slowed(name, deadly):
    call = getattr(os, name)
    def slow(*args, **kwargs):
        time.sleep(random.random() ** 4 * 0.01)
        if random.random() < deadly:
            os._exit(9)
        result = call(*args, **kwargs)
        if random.random() < deadly:
            os._exit(9)
        time.sleep(random.random() ** 4 * 0.01)
        return result
    setattr(os, name, slow)

def once():
    slowed("link", 0.01), slowed("replace", 0.05), slowed("unlink", 0.01), slowed("fstat", 0)
    with locked(path, "racer", what="it", wait=60, pace=Pace(poll=0.002)) as lock:
        try:
            os.close(open_file(inside, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            note("two at once")
        time.sleep(random.random() * 0.002)
        unlink(inside)
        note("alone")
        if random.random() < 0.7:
            os._exit(9)
        lock.check()

for round in range(rounds):
    child = os.fork()
    if not child:
        random.seed(1000 * seed + round)
        try:
            once()
        except BaseException as error:
            note(in_one_line(error))
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_racing_takers_never_get_in_together(path: Path) -> None:
    racers, rounds = 6, 20
    elsewhere(path, host=os.uname().nodename, born=1)
    command = [sys.executable, "-c", RACER, str(path), str(rounds)]
    processes = [subprocess.Popen([*command, str(seed)]) for seed in range(racers)]
    assert [process.wait() for process in processes] == [0] * racers
    lines = (path.parent.parent / "log").read_text().splitlines()
    assert set(lines) == {"alone"}
    assert racers * rounds / 4 < len(lines) <= racers * rounds
    with locked(path, "me", what=WHAT) as lock:
        lock.check()
    assert not path.exists()
