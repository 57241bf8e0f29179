"""Cut the power at every stage of a slide, and run the same command again: does it finish, and are the bytes equal?

The output folder lies on an ext4 whose disk is a file. At each change of the folder all processes of the command are stopped, and
the file is copied without a sync: tests/support/power_cut.py says why that is what a power cut leaves. Half of the cuts are taken
as they come, half are forced: ext4 has written all names and no data but what was fsynced. Copies are chosen by chance, equally
many of each stage; each is mounted where the disk was, and the command is run again, twice if it fails. Needs root.

    .venv/bin/python -m benchmarks.power_cut --cuts 40                                       # in a process of its own
    .venv/bin/python -m benchmarks.power_cut --segment "slidesam segment {slide} -o {output} --settings {settings}"
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from tests.support.damage import Ending, run_forked
from tests.support.power_cut import Disk, why_no_disk
from tests.support.result_bytes import Result, find_difference, find_volatile_keys, read_result
from tests.support.slides import write_blobs

SIDE, SETTINGS = 1536, {"segmenter": {"kind": "watershed"}, "blocks": {"block_shape": 512, "halo": 32}}
IN_PYTHON = (
    "{python} -c 'import slidesam, sys; slidesam.segment(*sys.argv[1:4], progress=False)' {slide} {output} {settings}"
)
STAGES = ("convert", "prepare", "segment", "stitch", "paint", "export", "end", "clean")
OUTCOMES = ("equal", "equal at the second", "refused", "differs", "stuck")
# What a change tells of the stage, later stages first; paths are spelt here, since other versions are measured as well.
SIGNS = (
    ("export", ("*.run.json", "*.overlay.png")),
    ("paint", (".slidesam/*/*/paint-*", "*.ome.zarr/labels/*")),
    ("stitch", (".slidesam/*/*/stitch-*",)),
    ("segment", (".slidesam/*/*/segment-*/*/*",)),
    ("prepare", (".slidesam/*/*/segment-*",)),
    ("convert", (".slidesam/*/.image/*", "*.ome.zarr/*")),
)


@dataclass(frozen=True)
class Cut:
    """What a power cut at a stage left."""

    stage: str
    copy: Path
    forced: bool


class Program:
    """A version of slidesam, run on one slide.

    Args:
        segment: Its command that segments, with places for {python}, {slide}, {output} and {settings}.
        clean: Its command that removes intermediate results, with a place for {output}.
        folder: Folder for the slide, the settings and Prefect's files.
    """

    def __init__(self, segment: str, clean: str, folder: Path) -> None:
        self._is_here = segment == IN_PYTHON
        self._commands, self._folder = {"segment": segment, "clean": clean}, folder
        self._places: dict[str, Path] = {
            "python": Path(sys.executable),
            "slide": folder / "slide.tif",
            "settings": folder / "settings.yaml",
        }
        write_blobs(folder / "slide.tif", SIDE)
        (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))

    def start(self, name: str, output: Path) -> subprocess.Popen[str]:
        """Start to segment the slide, or to clean."""
        environment = {**os.environ, "PREFECT_HOME": str(self._folder / "home"), "COLUMNS": "200"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        words = [word.format(output=output, **self._places) for word in shlex.split(self._commands[name])]
        with (self._folder / "log").open("w") as log:
            return subprocess.Popen(words, env=environment, stdout=log, stderr=log, text=True, start_new_session=True)

    def run(self, name: str, output: Path, seconds: float) -> Ending:
        """Run a command to its end."""
        if name == "segment" and self._is_here:
            return run_forked(self._places["slide"], SETTINGS, seconds)(output)
        process = self.start(name, output)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            end_all(process)
            return "stuck", self.last_line()
        return "finished" if code == 0 else "refused", self.last_line()

    def last_line(self) -> str:
        """Return the last line that the command printed."""
        lines = (self._folder / "log").read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def take_cuts(process: subprocess.Popen[str], disk: Disk, output: Path, folder: Path, *, forced: bool) -> list[Cut]:
    """Cut the power at each change of the output folder, until the process ends."""
    cuts, before = [], list_files(output)
    while process.poll() is None:
        files = list_files(output)
        if files == before:
            time.sleep(0.005)
            continue
        stage = find_stage(files ^ before)
        before = files
        if stage is None:
            continue
        family = stop_all(process)
        copy = disk.cut(folder / f"{forced}-{len(cuts)}.ext4", forced=forced)
        for member in family:
            if member.is_running():
                member.resume()
        cuts.append(Cut(stage, copy, forced))
    return cuts


def list_files(output: Path) -> set[str]:
    """List all paths below a folder, but for files that are being written."""
    return {
        str(Path(folder, name).relative_to(output))
        for folder, _, files in os.walk(output)
        for name in files
        if ".partial" not in name and "lock.json" not in name
    }


def find_stage(changed: set[str]) -> str | None:
    """Tell at which stage these paths change."""
    for stage, patterns in SIGNS:
        if any(Path(path).match(pattern) or _is_below(path, pattern) for path in changed for pattern in patterns):
            return stage
    return None


def _is_below(path: str, pattern: str) -> bool:
    depth = pattern.count("/") + 1
    return Path(*Path(path).parts[:depth]).match(pattern)


def stop_all(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Stop a process and all that it started."""
    try:
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    stopped = []
    for member in family:
        try:
            member.suspend()
            stopped.append(member)
        except psutil.NoSuchProcess:
            continue
    return stopped


def end_all(process: subprocess.Popen[str]) -> None:
    """Kill a process and all that it started."""
    for member in stop_all(process):
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.wait()


def wait_for_reboot(output: Path) -> None:
    """Remove lock files that are empty after the cut: a run waits a minute for them, as it can't know whose they are."""
    for lock in output.glob(".slidesam/**/lock.json"):
        if lock.stat().st_size == 0:
            lock.unlink()


def judge(program: Program, output: Path, cut: Cut, expected: Result, seconds: float) -> tuple[str, str]:
    """Run the command again after a cut; return the outcome, and what was said or what differs."""
    wait_for_reboot(output)
    for outcome in OUTCOMES[:2]:
        for name in ("clean", "segment") if cut.stage == "clean" else ("segment",):
            ending, message = program.run(name, output, seconds)
            if ending != "finished":
                break
        if ending == "stuck":
            return ending, message
        if ending == "finished":
            difference = find_difference(expected, read_result(output))
            return ("differs", difference) if difference else (outcome, "")
    return "refused", message


def choose(cuts: list[Cut], count: int, chance: random.Random) -> list[Cut]:
    """Choose equally many cuts of each stage, as far as there are."""
    waiting: dict[str, list[Cut]] = defaultdict(list)
    for cut in chance.sample(cuts, len(cuts)):
        waiting[cut.stage].append(cut)
    chosen: list[Cut] = []
    while len(chosen) < min(count, len(cuts)):
        for stage in STAGES:
            if waiting[stage] and len(chosen) < count:
                chosen.append(waiting[stage].pop())
    return sorted(chosen, key=lambda cut: STAGES.index(cut.stage))


def collect(program: Program, disk: Disk, folder: Path, *, forced: bool) -> tuple[list[Cut], Result]:
    """Segment the slide, then clean, undisturbed but for the cuts; return these and the result."""
    output = disk.root / "out"
    disk.make()
    process = program.start("segment", output)
    cuts = take_cuts(process, disk, output, folder, forced=forced)
    if process.wait() != 0:
        raise SystemExit(f"the undisturbed command failed: {program.last_line()}")
    ends = [Cut("end", disk.cut(folder / f"{forced}-end-{number}.ext4", forced=forced), forced) for number in range(3)]
    process = program.start("clean", output)
    cleaning = take_cuts(process, disk, output, folder / "clean", forced=forced)
    result = read_result(output)
    disk.unmount()
    return cuts + ends + [Cut("clean", cut.copy, forced) for cut in cleaning], result


def main() -> None:
    """Take the cuts, run the command again after each, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--segment", default=IN_PYTHON, help="the command, with {python}, {slide}, {output}, {settings}"
    )
    parser.add_argument("--clean", default="slidesam clean --all {output}", help="the command, with {output}")
    parser.add_argument("--cuts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=300, help="after which a command counts as stuck")
    options = parser.parse_args()
    console = Console(highlight=False, width=160)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if reason := why_no_disk(folder):
            raise SystemExit(reason)
        (folder / "clean").mkdir()
        disk, program = Disk(folder / "disk"), Program(options.segment, options.clean, folder)
        try:
            natural, expected = collect(program, disk, folder, forced=False)
            forced, again = collect(program, disk, folder, forced=True)
            expected.ignore(find_volatile_keys(expected, again))
            if difference := find_difference(expected, again):
                raise SystemExit(f"two undisturbed runs differ: {difference}")
            counts: dict[str, Counter[str]] = defaultdict(Counter)
            for cut in choose(natural + forced, options.cuts, random.Random(options.seed)):
                disk.mount(cut.copy)
                outcome, reason = judge(program, disk.root / "out", cut, expected, options.seconds)
                disk.unmount()
                counts[cut.stage][outcome] += 1
                console.print(
                    f"{cut.stage:8} {'forced ' if cut.forced else 'natural'} {outcome:20} {reason[:160]}", markup=False
                )
        finally:
            disk.unmount()
    print_table(console, counts)


def print_table(console: Console, counts: dict[str, Counter[str]]) -> None:
    """Print how many cuts came out how, by stage."""
    table = Table("stage", *OUTCOMES, box=None)
    for stage in STAGES:
        table.add_row(stage, *(str(counts[stage][outcome] or "") for outcome in OUTCOMES))
    total = sum(counts.values(), Counter[str]())
    table.add_row("all", *(str(total[outcome]) for outcome in OUTCOMES))
    console.print(table)


if __name__ == "__main__":
    main()
