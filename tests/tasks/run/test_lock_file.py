"""Getting and taking over a lock: races of processes that die, wrong clocks, file systems without links."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slidesam.tasks.run.lock import LockedError, locked
from slidesam.tasks.run.lock_file import Contender, LockPace
from tests.support.lock_owners import FAST, TARGET, is_free, set_age, write_lock


def test_another_hosts_lock_is_taken_when_it_is_old_and_nobody_touches_it(path: Path) -> None:
    write_lock(path, age=59)
    with pytest.raises(LockedError, match="host node7"), locked(path, "me", target=TARGET):
        pytest.fail("not old enough")
    write_lock(path, age=61)
    messages: list[str] = []
    started = time.monotonic()
    with locked(path, "me", target=TARGET, on_wait=messages.append, pace=LockPace(beat=0.2, poll=0.05)) as lock:
        assert time.monotonic() - started >= 0.5
        lock.check()
    assert len(messages) == 1
    assert is_free(path)


def test_a_clock_that_was_ahead_does_not_lock_for_ever(path: Path) -> None:
    write_lock(path, age=-3600)
    with pytest.raises(LockedError), locked(path, "me", target=TARGET):
        pytest.fail("not old")
    with locked(path, "me", target=TARGET, wait=60, pace=FAST):
        pass


def test_an_old_lock_that_is_touched_again_lives(path: Path) -> None:
    """As after an outage of the file server."""
    with locked(path, "me", target=TARGET, pace=LockPace(beat=0.2)) as lock:
        set_age(path, 100)
        with pytest.raises(LockedError), locked(path, "I", target=TARGET, pace=LockPace(beat=20, poll=0.05)):
            pytest.fail("it lives")
        lock.check()


def test_a_living_owner_whose_clock_is_behind_keeps_its_lock(path: Path, monkeypatch) -> None:
    utime = os.utime

    def behind(file: Path) -> None:
        past = time.time() - 100
        utime(file, (past, past) if file == path else None)

    with locked(path, "me", target=TARGET, pace=LockPace(beat=0.1)):
        monkeypatch.setattr(os, "utime", behind)
        time.sleep(0.3)
        with pytest.raises(LockedError), locked(path, "I", target=TARGET, pace=LockPace(beat=20, poll=0.05)):
            pytest.fail("it lives")


def test_a_lock_that_was_touched_since_it_was_judged_is_not_taken_over(path: Path, monkeypatch) -> None:
    write_lock(path, age=100)
    take_over = Contender._take_over

    def touch_and_take_over(self, path, file):
        set_age(path, 0)
        return take_over(self, path, file)

    monkeypatch.setattr(Contender, "_take_over", touch_and_take_over)
    with (
        pytest.raises(LockedError, match="node7"),
        locked(path, "me", target=TARGET, pace=LockPace(beat=0.1, poll=0.05)),
    ):
        pytest.fail("it came back")
    assert [file.name for file in path.parent.iterdir()] == ["lock.json"]


@pytest.mark.parametrize("content", [b"", b'{"host": "node', b"\xff\xfe", b"[1]", b'{"token": "../../x"}'])
def test_a_file_that_names_nobody_counts_by_its_age(content: bytes, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    unknown = r"locked by an unknown process \(.*lock\.json doesn't name it\): wait"
    with pytest.raises(LockedError, match=unknown), locked(path, "me", target=TARGET):
        pytest.fail("its owner may be writing it")
    set_age(path, 61)
    with locked(path, "me", target=TARGET, pace=LockPace(beat=0.05, poll=0.02)) as lock:
        lock.check()
    assert is_free(path)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_links(number: int, path: Path, monkeypatch) -> None:
    def link(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    with locked(path, "me", target=TARGET), pytest.raises(LockedError), locked(path, "me again", target=TARGET):
        pytest.fail("two at once")
    assert is_free(path)
    write_lock(path, host=os.uname().nodename, born=1)
    with locked(path, "me", target=TARGET) as lock:
        lock.check()
    assert is_free(path)


def test_a_link_counts_even_if_its_answer_was_lost(path: Path, monkeypatch) -> None:
    link = os.link

    def repeated(*args: object) -> None:
        link(*args)
        link(*args)

    monkeypatch.setattr(os, "link", repeated)
    with locked(path, "me", target=TARGET) as lock:
        lock.check()
    assert is_free(path)


# In each round a fork tries to get the lock. Most forks die: while they hold it, or in the middle of a takeover.
RACER = """
import os, random, sys, time
from pathlib import Path
from slidesam.tasks.errors import in_one_line
from slidesam.tasks.run.lock import locked
from slidesam.tasks.run.lock_file import LockPace

path, rounds, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
inside, log = path.parent.parent / "inside", path.parent.parent / "log"
open_file, unlink = os.open, os.unlink

def note(message):
    with os.fdopen(open_file(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY), "w") as stream:
        stream.write(message + "\\n")

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
    with locked(path, "racer", target="it", wait=60, pace=LockPace(poll=0.002)) as lock:
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
    write_lock(path, host=os.uname().nodename, born=1)
    command = [sys.executable, "-c", RACER, str(path), str(rounds)]
    processes = [subprocess.Popen([*command, str(seed)]) for seed in range(racers)]
    assert [process.wait() for process in processes] == [0] * racers
    lines = (path.parent.parent / "log").read_text().splitlines()
    assert set(lines) == {"alone"}
    assert racers * rounds / 4 < len(lines) <= racers * rounds
    with locked(path, "me", target=TARGET) as lock:
        lock.check()
    assert not path.exists()
