"""Runs a module of this package in a process of its own that answers in lines of JSON, and watches its memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from benchmarks.guide.case import ROOT

Answer = dict[str, Any]
_TAIL = 3000


def ask(
    module: str,
    question: Mapping[str, Any],
    environment: Mapping[str, str],
    answered: Callable[[Answer], None] | None = None,
    peaks: dict[str, float] | None = None,
) -> tuple[list[Answer], float]:
    """Starts `python -m MODULE`, writes it a question and reads its answers as they come.

    Args:
        module: A module that reads JSON from its input and prints a line of JSON per answer.
        question: What it is asked.
        environment: Variables beside this process's.
        answered: Called with each answer.
        peaks: Filled with the largest peak in MiB of the processes of each role.

    Returns:
        The answers, and seconds from the process's start to its end.

    Raises:
        SystemExit: It failed; the message holds the end of what it said.
    """
    command = [sys.executable, "-W", "ignore", "-m", module]
    answers: list[Answer] = []
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, cwd=ROOT,
            env={**os.environ, **environment},
        ) as process, _watched(process.pid, peaks):  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(question, default=str))
            process.stdin.close()
            for answer in _answers(process.stdout):
                answers.append(answer)
                if answered is not None:
                    answered(answer)
        seconds = time.perf_counter() - started
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed ({process.returncode}):\n{said.read()[-_TAIL:]}")
    return answers, seconds


def peak_mib() -> float:
    """This process's high-water mark; `ru_maxrss` would count what its parent had as it was started."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _answers(stream: IO[str]) -> Iterator[Answer]:
    """The lines that are answers; libraries print too."""
    for line in stream:
        if line.startswith('{"answer"'):
            yield json.loads(line)["answer"]


def answer(**facts: Any) -> None:
    """What a child says to its parent."""
    print(json.dumps({"answer": facts}, default=str), flush=True)


@contextmanager
def _watched(pid: int, peaks: dict[str, float] | None) -> Iterator[None]:
    if peaks is None:
        yield
        return
    from benchmarks.peaks import PeakMemory

    with PeakMemory(pid) as watch:
        yield
    for peak in watch.table():
        role = "the process asked" if peak.pid == pid else peak.role
        peaks[role] = max(peaks.get(role, 0.0), peak.mib)
    peaks["all at one time"] = watch.total
