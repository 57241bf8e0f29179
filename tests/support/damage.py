"""Damage to the files of an output folder, and what a version of slidesam makes of it.

A case: a copy of an output folder, of a run that stopped at some moment or is finished; one file of a kind is damaged; the slide
is segmented again, twice if it fails. Kinds are found by walking the folder: a path without its numbers and fingerprints.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.support.result_bytes import Result, find_difference, read_result

Damage = Literal["flip", "truncate", "delete"]
# How a run ended, and what it said: "" = finished, "refused" = an error in words, else the name of what went wrong.
Ending = tuple[Literal["finished", "refused", "traceback", "crash", "stuck"], str]
Runner = Callable[[Path], Ending]

OUTCOMES = ("equal", "at the second", "by verify", "refused by name", "refused", "differs", "traceback", "stuck")
"""Equal: healed, or nothing that counts was damaged. At the second: refused once, in words, then equal. By verify: the same call
finds nothing to do, `slidesam verify` names the file, and the call after `--repair` makes equal bytes. Refused: for good.
Differs: other bytes without a word."""
GOOD = OUTCOMES[:4]


@dataclass(frozen=True)
class Snapshot:
    """A copy of an output folder.

    Attributes:
        moment: The path whose rename had just been made; "end" = the run is finished.
        folder: The copy.
    """

    moment: str
    folder: Path

    @property
    def is_finished(self) -> bool:
        """Whether the result is vouched for."""
        return any(self.folder.glob("*.run.json"))

    def kinds(self) -> dict[str, list[Path]]:
        """List the files of each kind, as paths below the folder."""
        found: dict[str, list[Path]] = {}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.stat().st_size and ".partial" not in path.name:
                inner = path.relative_to(self.folder)
                found.setdefault(kind_of(inner), []).append(inner)
        return found


@contextmanager
def snapshots_after_renames(
    output: Path, folder: Path, is_wanted: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Snapshot]]:
    """Copy an output folder after each wanted rename that this process makes in it."""
    taken: list[Snapshot] = []
    replace = os.replace

    def replace_and_copy(source: str | Path, target: str | Path) -> None:
        replace(source, target)
        path = Path(target)
        if path.is_relative_to(output) and is_wanted(str(path.relative_to(output))):
            copy = folder / str(len(taken))
            shutil.copytree(output, copy, ignore=shutil.ignore_patterns("lock.json", "*.partial"))
            taken.append(Snapshot(str(path.relative_to(output)), copy))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_and_copy)
        yield taken


def kind_of(path: Path) -> str:
    """Name the kind of a file: its path without numbers and fingerprints."""
    return re.sub(r"\d+(?:[-/]\d+)*", "N", re.sub(r"-[0-9a-f]{12}(?=/|$)", "", str(path)))


def damage_file(path: Path, damage: Damage, chance: random.Random) -> str:
    """Damage a file; say how."""
    if damage == "delete":
        path.unlink()
        return "deleted"
    if damage == "truncate":
        os.truncate(path, 0)
        return "cut to 0"
    data = bytearray(path.read_bytes())
    position, bit = chance.randrange(len(data)), chance.randrange(8)
    data[position] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {position} of {len(data)}"


def judge(
    snapshot: Snapshot, path: Path, damage: Damage, chance: random.Random, output: Path, run: Runner, expected: Result
) -> tuple[str, str]:
    """Put a snapshot in place, damage a file of it, and segment again.

    Returns:
        One of `OUTCOMES`, and what was damaged and said.
    """
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(snapshot.folder, output)
    where = f"{path}, {damage_file(output / path, damage, chance)}"
    for outcome in OUTCOMES[:2]:
        ending, message = run(output)
        if ending == "finished":
            difference = find_difference(expected, read_result(output))
            if not difference:
                return outcome, where
            is_cured = verify_and_repair(output, path) and run(output)[0] == "finished"
            is_cured = is_cured and not find_difference(expected, read_result(output))
            return ("by verify", where) if is_cured else ("differs", f"{where}: {difference}")
        if ending != "refused":
            return ("traceback" if ending == "crash" else ending), f"{where}: {message}"
    # A zarr.json describes its folder.
    names = (str(path), f"/{path.parent} " if path.name == "zarr.json" else str(path))
    return ("refused by name" if any(name in message for name in names) else "refused"), f"{where}: {message}"


def verify_and_repair(output: Path, path: Path) -> bool:
    """Verify a folder and take back what is damaged; return whether this file was named."""
    from slidesam.tasks.folder.verify import repair_findings, verify_folder

    findings = list(verify_folder(output, "whole"))
    repair_findings([finding for finding in findings if finding.damages])
    return any(damage.path == output / path for finding in findings for damage in finding.damages)


def run_forked(slide: Path, settings: dict[str, Any], seconds: float) -> Runner:
    """Make what segments a slide in a process of its own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["slidesam.attempts", "slidesam.open_results", "tests.support.damage"])

    def run(output: Path) -> Ending:
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_segment, args=(writer, slide, output, settings))
        process.start()
        writer.close()
        try:
            if not reader.poll(seconds):
                process.kill()
                return "stuck", ""
            return reader.recv()
        except EOFError:
            process.join()
            return "crash", f"exit code {process.exitcode}"
        finally:
            process.join()

    return run


def segment_here(slide: Path, settings: dict[str, Any]) -> Runner:
    """Make what segments a slide in this process."""
    import slidesam

    def run(output: Path) -> Ending:
        try:
            slidesam.segment(slide, output, settings, progress=False)
        except slidesam.SlidesamError as error:
            return "refused", str(error)
        except Exception as error:  # noqa: BLE001 - what a user would get a traceback of is an outcome here
            return "traceback", f"{type(error).__name__}: {error}"
        return "finished", ""

    return run


def _segment(writer: Any, slide: Path, output: Path, settings: dict[str, Any]) -> None:
    writer.send(segment_here(slide, settings)(output))
