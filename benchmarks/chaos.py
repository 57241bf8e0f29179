"""Runs that are disturbed at random, the same command again each time: equal results, nothing finished done twice, nothing left.

Each run draws one or two disturbances from its seed, starts the command, disturbs it at a random moment, lets it end or ends it,
and gives the same command again. The last time it is left alone. Disturbances:

    kill flow | server | worker | group     SIGKILL (the flow's process holds Dask's scheduler and the nannies)
    stop flow | server | worker             SIGSTOP for some seconds, then SIGCONT
    stop for good                           SIGSTOP of a member; the group is killed some seconds later, as a person would
    disk                                    the output's disk is full until the command has ended (root: a tmpfs)
    clock                                   time.time() of all its processes jumps by hours, to and fro
    network                                 its loopback is gone for some seconds (root: a network namespace)

A block is done twice if the segmenter is called for it while its result is on disk; the segmenter logs that. The moment is drawn
from the time that an undisturbed run takes, or is when some number of blocks has been computed. A nanny of local workers is no
process of its own: it lives in the flow's.

    make chaos        (or: .venv/bin/python -m benchmarks.chaos --runs 100 --seed 1)
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tifffile
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from slidesam.tasks.run.layout import SegmentFolder, list_runs, list_slide_folders

ROOT = Path(__file__).resolve().parents[1]
ROWS, COLUMNS, BLOCK = 3, 4, 64
MARKER = "SLIDESAM_CHAOS"
DISTURBANCES = (
    "kill flow", "kill server", "kill worker", "kill group", "stop flow", "stop server", "stop worker", "stop for good",
    "disk", "clock", "network",
)  # fmt: skip
NEEDS_ROOT = ("disk", "network")
# Seconds until a command counts as hung, and for the workers of a killed flow to end.
_LONGEST, _ORPHANS = 400.0, 60.0
# Share of the moments that are drawn by the number of blocks: the start takes most of the time.
_BY_BLOCKS = 0.6
# Put into the environment of all processes of a command: their clock runs ahead by what a file says.
_CLOCK = """
import os, time
_real, _file = time.time, os.environ.get("SLIDESAM_CHAOS_CLOCK")
def _ahead():
    try:
        with open(_file) as stream:
            return float(stream.read() or 0)
    except (OSError, ValueError):
        return 0.0
if _file:
    time.time = lambda: _real() + _ahead()
"""


def number_of_block(image: NDArray[Any], log: str, output: str) -> NDArray[np.int32]:
    """Label a block whose pixels hold its number; write to a log the number, and whether the block has a result already."""
    number = int(image.max())
    line = f"{number} {int(number - 1 in finished_blocks(Path(output)))}\n"
    time.sleep(0.2)
    with os.fdopen(os.open(log, os.O_APPEND | os.O_CREAT | os.O_WRONLY), "w") as stream:
        stream.write(line)
    labels: NDArray[np.int32] = (image > 0).astype(np.int32)
    return labels


def finished_blocks(output: Path) -> set[int]:
    """Return the ids of the blocks that have a result."""
    runs = [run for slide in list_slide_folders(output) for run in list_runs(slide)]
    folders = [SegmentFolder(path) for run in runs for path in run.stage_folders("segment")]
    return {block_id for folder in folders for block_id in folder.list_results()}


def make_settings(log: Path, output: Path) -> dict[str, Any]:
    """Return the settings of all runs."""
    options = {"log": str(log), "output": str(output)}
    return {
        "segmenter": {"kind": "function", "target": "benchmarks.chaos:number_of_block", "options": options},
        "blocks": {"block_shape": BLOCK, "halo": 0, "tissue": "off"},
        "run": {"retry_delay": 0.2},
    }


@dataclass
class Outcome:
    """What became of a run.

    Attributes:
        seed: Its seed.
        deeds: The disturbances.
        exits: Exit codes of the commands, the last of them undisturbed.
        twice: Blocks that were computed again although they were finished.
        is_equal: Whether all files are those of the undisturbed run.
        leftovers: What was left.
        seconds: How long all took.
    """

    seed: int
    deeds: list[str] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    twice: int = 0
    is_equal: bool = False
    leftovers: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether all promises were kept."""
        return self.is_equal and not self.twice and not self.leftovers and self.exits[-1] == 0


class Scene:
    """The folder, the environment and the processes of one run.

    Args:
        folder: A folder of its own.
        slide: The slide.
        home: A PREFECT_HOME whose database is copied: making one takes longer than all else.
        with_root: Whether the output is a small disk of its own and the network a namespace of its own.
    """

    def __init__(self, folder: Path, slide: Path, home: Path | None = None, *, with_root: bool) -> None:
        self.folder, self.slide, self.with_root = folder, slide, with_root
        self.output, self.log, self.marker = folder / "out", folder / "log", uuid.uuid4().hex
        for name in ("out", "tmp", "clock", "shm", "home"):
            (folder / name).mkdir(parents=True)
        for path in [] if home is None else home.glob("prefect.db*"):
            shutil.copy(path, folder / "home")
        (folder / "clock" / "sitecustomize.py").write_text(_CLOCK)
        (folder / "settings.yaml").write_text(yaml.safe_dump(make_settings(self.log, self.output)))
        if with_root:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(self.output)], check=True)

    def close(self) -> None:
        """End what runs, and take the disk away."""
        self.kill_group()
        if self.with_root:
            subprocess.run(["umount", "-l", str(self.output)], check=False)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command, as a person gives it."""
        command = [
            str(Path(sys.executable).with_name("slidesam")), "segment", str(self.slide), "-o", str(self.output), "--settings",
            str(self.folder / "settings.yaml"), "--workers", "2", "--allow", "benchmarks.chaos:number_of_block",
        ]  # fmt: skip
        if self.with_root:
            inside = 'ip link set lo up && mount --bind "$0" /dev/shm && exec "$@"'
            command = ["unshare", "-n", "-m", "sh", "-c", inside, str(self.folder / "shm"), *command]
        environment = {
            **os.environ, MARKER: self.marker, "SLIDESAM_CHAOS_CLOCK": str(self.folder / "clock" / "ahead"),
            "PREFECT_HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": f"{self.folder / 'clock'}{os.pathsep}{ROOT}",
        }  # fmt: skip
        environment.pop("PREFECT_API_URL", None)
        with (self.folder / "words").open("ab") as words:
            return subprocess.Popen(command, env=environment, stdout=words, stderr=words, start_new_session=True)

    def members(self, role: str) -> list[psutil.Process]:
        """List the processes of a role: flow, server, worker, or all."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARKER) == self.marker and process.status() != psutil.STATUS_ZOMBIE:
                    words = " ".join(process.cmdline())
                    kind = "worker" if "spawn_main" in words else "flow" if " segment " in words else "server"
                    if role in ("all", kind) and (role != "server" or "resource_tracker" not in words):
                        found.append(process)
        return found

    def kill_group(self) -> None:
        """Kill every process of the run."""
        while members := self.members("all"):
            for process in members:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.05)

    def computed_blocks(self) -> list[bool]:
        """Of each block that was computed so far, in order: whether it had a result already."""
        return [line.endswith(" 1") for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def leftovers(self) -> list[str]:
        """List what a finished command should not have left."""
        found = [f"process {process.pid}" for process in self.members("all")]
        temporary = [path for name in ("tmp", "shm") for path in (self.folder / name).rglob("*") if path.is_file()]
        temporary += (self.folder / "home").glob("slidesam-server-*.login*")
        found += [str(path) for path in temporary if path.parent.name != "dask-scratch-space"]
        for pattern in ("*.partial*", "*.tmp", "lock.json", "starts/*", "*.break*", "*.pem", ".trash*"):
            found += [str(path.relative_to(self.output)) for path in self.output.rglob(pattern)]
        return found


def disturb(scene: Scene, deed: str, process: subprocess.Popen[bytes], chance: random.Random) -> None:
    """Do one deed to a running command; afterwards it has ended, or may go on."""
    verb, _, role = deed.partition(" ")
    if deed == "kill group":
        scene.kill_group()
    elif deed == "stop for good":
        members = scene.members(chance.choice(["flow", "server", "worker"]))
        _send(members[:1], signal.SIGSTOP)
        time.sleep(3)
        scene.kill_group()
    elif verb == "kill":
        members = scene.members(role)
        _send([chance.choice(members)] if role == "worker" and members else members, signal.SIGKILL)
    elif verb == "stop":
        members = scene.members(role)
        _send(members, signal.SIGSTOP)
        time.sleep(chance.uniform(1, 6))
        _send(members, signal.SIGCONT)
    elif deed == "disk":
        with contextlib.suppress(OSError), (scene.output / "ballast").open("wb") as ballast:
            while True:
                ballast.write(bytes(2**20))
    elif deed == "clock":
        (scene.folder / "clock" / "ahead").write_text(str(chance.choice([-86400, -3600, 3600, 86400])))
    elif deed == "network":
        flow = next(iter(scene.members("flow")), None)
        if flow is not None:
            inside = ["nsenter", "-t", str(flow.pid), "-n", "ip", "link", "set", "lo"]
            subprocess.run([*inside, "down"], check=False)
            time.sleep(chance.uniform(1, 6))
            subprocess.run([*inside, "up"], check=False)
    if verb == "kill" and role != "worker":
        # Members that lost the flow or the server end by themselves, sooner or later; the command is over when it is.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)


def _send(members: list[psutil.Process], number: signal.Signals) -> None:
    for process in members:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


@dataclass(frozen=True)
class Usual:
    """What an undisturbed run gives.

    Attributes:
        slide: The slide.
        expected: Hash of the result.
        seconds: How long the command takes.
        home: Its PREFECT_HOME.
    """

    slide: Path
    expected: str
    seconds: float
    home: Path


def wait_for_moment(
    scene: Scene, process: subprocess.Popen[bytes], usual: Usual, chance: random.Random, n_blocks: int | None
) -> None:
    """Wait until so many blocks are computed (None = until a random moment of a command), or until it has ended."""
    deadline = time.monotonic() + chance.uniform(0.2, 1) * usual.seconds
    if n_blocks is None and chance.random() < _BY_BLOCKS:
        n_blocks = chance.randint(1, ROWS * COLUMNS)
    if n_blocks is None:
        n_blocks = ROWS * COLUMNS + 1
    else:
        deadline = time.monotonic() + _LONGEST
    while process.poll() is None and time.monotonic() < deadline and len(scene.computed_blocks()) < n_blocks:
        time.sleep(0.05)


def run_once(
    seed: int, usual: Usual, deeds: Sequence[str] = (), n_blocks: int | None = None, *, with_root: bool
) -> Outcome:
    """Disturb one run by these deeds when so many blocks are computed, or as its seed says; repeat the command."""
    chance, outcome, start = random.Random(seed), Outcome(seed), time.monotonic()
    possible = [deed for deed in DISTURBANCES if with_root or deed not in NEEDS_ROOT]
    # Each disturbance comes about equally often.
    drawn = [possible[seed % len(possible)], *chance.sample(possible, chance.randint(0, 1))]
    outcome.deeds = list(deeds) or drawn
    with tempfile.TemporaryDirectory(prefix="slidesam-chaos-") as name:
        scene = Scene(Path(name), usual.slide, usual.home, with_root=with_root)
        try:
            for deed in [*outcome.deeds, None]:
                process = scene.start()
                if deed is not None:
                    wait_for_moment(scene, process, usual, chance, n_blocks)
                    disturb(scene, deed, process, chance)
                try:
                    process.wait(_LONGEST)
                except subprocess.TimeoutExpired:
                    outcome.leftovers.append(f"hung after {deed}")
                    scene.kill_group()
                    process.wait()
                outcome.exits.append(process.returncode)
                (scene.output / "ballast").unlink(missing_ok=True)
            outcome.twice = sum(scene.computed_blocks())
            outcome.is_equal = hash_result(scene.output) == usual.expected
            # What a killed flow leaves ends by itself, once it notices.
            deadline = time.monotonic() + _ORPHANS
            while scene.members("all") and time.monotonic() < deadline:
                time.sleep(0.5)
            outcome.leftovers += scene.leftovers()
            if not outcome.is_good:
                Path(tempfile.gettempdir(), f"slidesam-chaos-{seed}.log").write_bytes(
                    (scene.folder / "words").read_bytes()
                )
        finally:
            scene.close()
    outcome.seconds = time.monotonic() - start
    return outcome


def hash_result(output: Path) -> str:
    """Return a hash of the names and bytes of all files of the store."""
    found = hashlib.sha256()
    for path in sorted(output.glob("*.ome.zarr/**/*")):
        if path.is_file():
            found.update(str(path.relative_to(output)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def write_slide(path: Path) -> Path:
    """Write a slide of twelve blocks, each of which holds its number."""
    numbers = np.arange(1, ROWS * COLUMNS + 1, dtype=np.uint8).reshape(ROWS, COLUMNS)
    tifffile.imwrite(path, np.kron(numbers, np.ones((BLOCK, BLOCK), np.uint8)), tile=(64, 64), compression="zlib")
    return path


def run_undisturbed(folder: Path, *, with_root: bool) -> Usual:
    """Run the command in a folder, without a disturbance."""
    folder.mkdir()
    slide = write_slide(folder / "slide.tif")
    scene, start = Scene(folder / "usual", slide, with_root=with_root), time.monotonic()
    try:
        if scene.start().wait():
            raise SystemExit((scene.folder / "words").read_text()[-4000:])
        return Usual(slide, hash_result(scene.output), time.monotonic() - start, scene.folder / "home")
    finally:
        scene.close()


def make_table(outcomes: list[Outcome]) -> Table:
    """Make the table of all runs."""
    table = Table(box=None)
    for column in ("seed", "disturbances", "exit codes", "equal", "twice", "left over", "s"):
        table.add_column(column)
    for outcome in outcomes:
        table.add_row(
            str(outcome.seed), ", ".join(outcome.deeds), " ".join(map(str, outcome.exits)), "yes" if outcome.is_equal else "NO",
            str(outcome.twice), "; ".join(outcome.leftovers) or "0", f"{outcome.seconds:.0f}",
        )  # fmt: skip
    return table


def main() -> None:
    """Runs all seeds, two at once, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="seed of the first run; the others follow")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--only", default="", help='disturbances of each run, such as "kill flow,disk"')
    chosen = parser.parse_args()
    console, with_root = Console(highlight=False, width=150), os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(chosen.at_once) as pool:
        usual = run_undisturbed(Path(name) / "scene", with_root=with_root)
        deeds = [deed for deed in chosen.only.split(",") if deed]
        console.print(
            f"undisturbed: {usual.seconds:.0f} s" + ("" if with_root else "; not root: no full disk, no lost network")
        )
        seeds = range(chosen.seed, chosen.seed + chosen.runs)
        outcomes = []
        for outcome in pool.map(lambda seed: run_once(seed, usual, deeds, with_root=with_root), seeds):
            outcomes.append(outcome)
            console.print(make_table([outcome]))
    console.print(make_table(outcomes))
    bad = [outcome.seed for outcome in outcomes if not outcome.is_good]
    console.print(f"{len(outcomes)} runs, {len(bad)} bad: {bad}")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
