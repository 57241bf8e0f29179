"""What a nanny notes of a worker that ended: memory or not, by its last look, the kernel's count, and how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from slidesam.flows.cluster.on_nanny import _Watch, count_kills, find_kills_file, ran_out
from slidesam.tasks.errors import BlockMemoryError
from slidesam.tasks.run.records import StartMark
from slidesam.tasks.run.stage_folders import SegmentFolder
from slidesam.tasks.segment.start_marks import StartMarks
from tests.support.memory_group import memory_group

# Computes block 7, beside block 8 if it is told to, takes so many MiB, and waits.
WORKER = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from slidesam.tasks.run.stage_folders import SegmentFolder
from slidesam.tasks.segment.start_marks import StartMarks
marks = StartMarks(SegmentFolder(Path(sys.argv[1])), "attempt", 9)
with ExitStack() as stack:
    for block_id in map(int, sys.argv[3:]):
        stack.enter_context(marks.computing(block_id))
    print("begun", flush=True)
    input()
    memory = bytearray(int(sys.argv[2]) << 20)
    print("grown", flush=True)
    time.sleep(60)
"""


class Watched:
    """A worker process, and what its nanny sees of it."""

    def __init__(self, folder: Path, mib: int, *block_ids: int, limit_mib: int = 0) -> None:
        memory_manager = SimpleNamespace(memory_limit=limit_mib << 20, _last_terminated_pid=-1)
        self.nanny = SimpleNamespace(pid=None, env={}, local_directory=str(folder), memory_manager=memory_manager)
        self.watch = _Watch(self.nanny)
        arguments = [sys.executable, "-c", WORKER, folder, mib, *(block_ids or (7,))]
        self.process = subprocess.Popen(
            list(map(str, arguments)), env=os.environ | self.nanny.env, text=True, stdin=-1, stdout=-1
        )
        self.nanny.pid = self.process.pid
        self.wait_for("begun")
        self.watch.look()

    def wait_for(self, word: str) -> None:
        assert self.process.stdout.readline().strip() == word

    def grow(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        with self.process:
            self.watch.judge(self.process.wait(30))


def state(folder: Path, block_id: int = 7) -> StartMark:
    mark = StartMark.read(SegmentFolder(folder).start_mark(block_id))
    assert mark is not None
    return mark


@pytest.mark.parametrize(
    ("exitcode", "used", "limit", "kernel_has_killed", "expected"),
    [
        (-signal.SIGKILL, 85, 100, False, True),
        # Its own handler of SIGTERM exits so.
        (128 + signal.SIGTERM, 96, 100, False, True),
        (-signal.SIGKILL, 50, 100, False, False),
        (-signal.SIGKILL, 50, 100, True, True),
        (-signal.SIGKILL, 50, None, False, False),
        (-signal.SIGKILL, 50, None, True, True),
        (-signal.SIGSEGV, 85, 100, True, False),
        (0, 85, 100, False, False),
        (1, 85, 100, False, False),
    ],
)
def test_memory_is_why_a_worker_ended_if_a_signal_ended_it_near_its_limit_or_where_the_kernel_killed(
    exitcode: int, used: int, limit: int | None, kernel_has_killed: bool, expected: bool
) -> None:
    assert ran_out(exitcode, used, limit, kernel_has_killed=kernel_has_killed) is expected


def test_a_worker_that_is_killed_near_its_limit_leaves_a_mark_that_says_so(tmp_path: Path) -> None:
    worker = Watched(tmp_path, 250, limit_mib=300)
    worker.grow()
    worker.wait_for("grown")
    worker.watch.look()
    worker.process.kill()
    os.waitid(os.P_PID, worker.process.pid, os.WEXITED | os.WNOWAIT)
    # Until somebody waits for it, a process that has ended is still there, and uses nothing.
    worker.watch.look()
    worker.end()
    mark = state(tmp_path)
    assert (mark.state, mark.memory_limit) == ("out of memory", 300 << 20)
    assert mark.memory is not None
    assert 250 < mark.memory >> 20 < 400
    marks = StartMarks(SegmentFolder(tmp_path), "attempt", 9)
    assert (marks.count_lost(7), marks.find_end(7)) == (1, None)
    larger = StartMarks(SegmentFolder(tmp_path), "attempt", 9, can_grow=True)
    assert isinstance(larger.find_end(7), BlockMemoryError)


def test_a_worker_that_its_nanny_ended_for_memory_ran_out_of_it(tmp_path: Path) -> None:
    worker = Watched(tmp_path, 0, limit_mib=3000)
    worker.nanny.memory_manager._last_terminated_pid = worker.process.pid
    worker.process.kill()
    worker.end()
    assert state(tmp_path).state == "out of memory"


def test_a_worker_that_linux_ends_for_memory_needs_no_limit_of_ours(tmp_path: Path) -> None:
    with memory_group(200) as group:
        worker = Watched(tmp_path, 400)
        (group / "cgroup.procs").write_text(str(worker.process.pid))
        assert find_kills_file(worker.process.pid).parent == group
        worker.watch.look()
        worker.grow()
        worker.end()
        assert worker.process.returncode == -signal.SIGKILL
    assert (state(tmp_path).state, state(tmp_path).memory_limit) == ("out of memory", None)


def test_of_two_blocks_at_once_neither_is_said_to_need_more(tmp_path: Path) -> None:
    worker = Watched(tmp_path, 250, 7, 8, limit_mib=300)
    worker.grow()
    worker.wait_for("grown")
    worker.watch.look()
    worker.process.kill()
    worker.end()
    assert [state(tmp_path, block_id).state for block_id in (7, 8)] == ["killed", "killed"]


def test_marks_of_another_process_are_left_alone(tmp_path: Path) -> None:
    worker = Watched(tmp_path, 0, limit_mib=1)
    worker.process.kill()
    other = state(tmp_path).model_copy(update={"pid": 1})
    other.write(SegmentFolder(tmp_path).start_mark(7), sync=False)
    worker.end()
    assert state(tmp_path) == other


def test_without_a_count_of_the_kernels_nothing_has_been_killed(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("low 0\noom 3\noom_kill 2\n")
    assert count_kills(tmp_path / "events") == 2
    assert count_kills(tmp_path / "absent") == 0
    assert find_kills_file(2**30) == Path("/proc/vmstat")
