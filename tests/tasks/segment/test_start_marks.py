"""Start-marks: which block a process was computing when it ended, and whether the block is blamed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from slidesam.tasks.errors import BlockFailure, BlockLostError, BlockMemoryError, DeviceMemoryError, SlideAwayError
from slidesam.tasks.run.records import StartMark
from slidesam.tasks.run.stage_folders import SegmentFolder
from slidesam.tasks.segment.start_marks import StartMarks, judge_marks, last_lines
from slidesam.tasks.segment.worker_state import MARKS_FILE, this_worker

# Marks block 7, and ends as the deed says.
PROCESS = """
import os, signal, sys
from pathlib import Path
from slidesam.tasks.run.stage_folders import SegmentFolder
from slidesam.tasks.segment.start_marks import StartMarks
from slidesam.tasks.segment.worker_state import this_worker
marks = StartMarks(SegmentFolder(Path(sys.argv[1])), "attempt", 2)
with getattr(marks, sys.argv[2])(7):
    if sys.argv[3] == "excused":
        this_worker.excuse_blocks()
    if sys.argv[3] == "full":
        this_worker.memory_limit = 8 << 30
        this_worker.blame_memory(15 << 29)
    if sys.argv[3] == "raises":
        raise RuntimeError
    if sys.argv[3] != "ends":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def in_a_process(folder: Path, way: str, deed: str, log: str = "", watched: str = "") -> None:
    environment = os.environ | ({"SLIDESAM_LOG": log} if log else {}) | ({MARKS_FILE: watched} if watched else {})
    subprocess.run(
        [sys.executable, "-c", PROCESS, folder, way, deed], env=environment, capture_output=True, check=False
    )


@pytest.mark.parametrize("way", ["computing", "preparing"])
def test_a_process_that_dies_counts_against_its_block_until_that_is_given_up(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This process is a worker of another job of the same run.
    monkeypatch.setenv("SLIDESAM_LOG", str(tmp_path / "another.log"))
    marks, log = StartMarks(SegmentFolder(tmp_path), "attempt", 2), tmp_path / "job.log"
    log.write_text("2026-11-23 13:56:15,404 - distributed.nanny - INFO - Start\nslurmstepd: error: oom_kill event\n")
    for lost in (1, 2):
        in_a_process(tmp_path, way, "dies", str(log))
        assert marks.count_lost(7) == lost
    assert marks.count_lost(8) == 0
    assert StartMarks(SegmentFolder(tmp_path), "another attempt", 2).count_lost(7) == 0
    with (
        pytest.raises(
            BlockLostError, match=r"block 7 ended its worker 2 times.*its log ends with: slurmstepd: error: oom_kill"
        ),
        marks.computing(7),
    ):
        raise AssertionError
    # A mark in which others wrote the path of a file elsewhere.
    monkeypatch.setenv("SLIDESAM_LOG", "/shared/out/.slidesam/.jobs/another.log")
    with pytest.raises(BlockLostError, match=r"take fewer workers or smaller blocks$"), marks.computing(7):
        raise AssertionError
    # Nothing is marked of a block that is given up already.
    with marks.preparing(7):
        assert marks.count_lost(7) == 2
    assert marks.count_lost(7) == 2


@pytest.mark.parametrize("way", ["computing", "preparing"])
@pytest.mark.parametrize("deed", ["ends", "raises", "excused"])
def test_an_end_that_isnt_the_blocks_fault_counts_nothing(tmp_path: Path, way: str, deed: str) -> None:
    in_a_process(tmp_path, way, "dies")
    in_a_process(tmp_path, way, deed)
    assert StartMarks(SegmentFolder(tmp_path), "attempt", 3).count_lost(7) == (
        0 if (way, deed) == ("computing", "ends") else 1
    )


def test_what_isnt_at_work_needs_no_excuse(tmp_path: Path) -> None:
    this_worker.excuse_blocks()
    assert list(tmp_path.iterdir()) == []


def test_of_a_log_only_what_says_something_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    assert last_lines(log) == ""
    log.write_text(
        "2026-11-23 13:13:10,566 - distributed.preloading - INFO - Import preload module\n"
        "2026-11-23 13:13:16,353 - distributed.nanny - INFO - Worker process 3189 was killed by signal 9\n"
        "\n"
        "2026-11-23 13:13:16,353 - distributed.nanny - WARNING - Restarting worker\n"
        "2026-11-23 13:13:16,399 - distributed.worker - INFO - Start worker at: tcp://10.0.0.5:1\n"
    )
    assert [line.partition(" - ")[2] for line in last_lines(log).split(" | ")] == [
        "distributed.nanny - INFO - Worker process 3189 was killed by signal 9",
        "distributed.nanny - WARNING - Restarting worker",
    ]


class OutOfMemoryError(RuntimeError):
    """As torch's."""

    __module__ = "torch"


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "is_memory"),
    [
        (MemoryError("Unable to allocate 8 EiB"), BlockMemoryError, True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate"),
            BlockMemoryError,
            True,
        ),
        (raised_from(SlideAwayError("it can't be read"), MemoryError()), BlockMemoryError, True),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), DeviceMemoryError, False),
        (RuntimeError("another"), RuntimeError, False),
    ],
)
def test_an_error_for_want_of_memory_names_the_block(
    tmp_path: Path, error: Exception, kind: type[Exception], is_memory: bool
) -> None:
    marks = StartMarks(SegmentFolder(tmp_path), "attempt", 2, can_grow=True)
    with pytest.raises(kind) as caught, marks.computing(7):
        raise error
    failure = BlockFailure.of(caught.value)
    # Where no larger worker can be had, another try on this one may still help: a neighbour may have had the memory.
    assert (failure.is_out_of_memory, failure.is_hopeless, failure.ended_worker) == (is_memory, is_memory, False)
    assert kind is RuntimeError or failure.what.startswith("block 7 ran out of ")
    with pytest.raises(kind) as caught, StartMarks(SegmentFolder(tmp_path), "attempt", 2).computing(7):
        raise error
    assert not BlockFailure.of(caught.value).is_hopeless


def test_what_a_worker_ran_out_of_is_in_the_error(tmp_path: Path) -> None:
    in_a_process(tmp_path, "computing", "full")
    larger = StartMarks(SegmentFolder(tmp_path), "attempt", 2, can_grow=True)
    with pytest.raises(
        BlockMemoryError,
        match=r"block 7 ran out of memory at 7\.5 GiB of 8 GiB on .*, which ended its worker: give workers more "
        r"\(`memory`, `memory_steps`",
    ), larger.computing(7):  # fmt: skip
        raise AssertionError
    assert StartMarks(SegmentFolder(tmp_path), "attempt", 2).find_end(7) is None
    assert isinstance(StartMarks(SegmentFolder(tmp_path), "attempt", 1).find_end(7), BlockMemoryError)
    assert StartMarks(SegmentFolder(tmp_path), "another attempt", 1, can_grow=True).find_end(7) is None


def test_who_watches_a_worker_has_a_moment_to_note_what_ended_it(
    tmp_path: Path,
) -> None:
    in_a_process(tmp_path, "computing", "dies", watched=str(tmp_path / "list"))
    path = SegmentFolder(tmp_path).start_mark(7)
    assert (tmp_path / "list").read_text() == str(path)
    pid = StartMark.read(path).pid
    timer = threading.Timer(0.3, judge_marks, ([path], pid, 5 << 30, None))
    timer.start()
    error = StartMarks(SegmentFolder(tmp_path), "attempt", 2, can_grow=True).find_end(7)
    timer.join()
    assert "block 7 ran out of memory at 5 GiB on " in str(error)


TWO_AT_ONCE = """
import sys, time
from pathlib import Path
from slidesam.tasks.run.stage_folders import SegmentFolder
from slidesam.tasks.segment.start_marks import StartMarks
folder = SegmentFolder(Path(sys.argv[1]))
with StartMarks(folder, "attempt", 2, timeout=0.3).computing(7), StartMarks(folder, "attempt", 2, timeout=60).computing(8):
    time.sleep(60)
"""


def test_a_block_that_takes_too_long_costs_the_one_beside_it_nothing(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", TWO_AT_ONCE, tmp_path], env=os.environ | {"SLIDESAM_WORKER": "1"}, check=False
    )
    marks = StartMarks(SegmentFolder(tmp_path), "attempt", 2)
    assert [marks.count_lost(block_id) for block_id in (7, 8)] == [1, 0]
