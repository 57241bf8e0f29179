"""One run: commands that are disturbed, one that isn't, and what became of it all."""

from __future__ import annotations

import hashlib
import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos.disturbances import LONGEST, disturb, wait_for_moment
from benchmarks.chaos.scene import Scene
from benchmarks.chaos.segmenter import write_slide

# Seconds for the workers of a killed flow to end.
_ORPHANS = 60.0


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


def run_undisturbed(kind: type[Scene], folder: Path) -> Usual:
    """Run the command in a folder, without a disturbance."""
    folder.mkdir()
    slide = write_slide(folder / "slide.tif")
    scene, start = kind(folder / "usual", slide), time.monotonic()
    try:
        if scene.start().wait():
            raise SystemExit((scene.folder / "words").read_text()[-4000:])
        return Usual(slide, hash_result(scene.output), time.monotonic() - start, scene.folder / "home")
    finally:
        scene.close()


def run_once(
    kind: type[Scene], seed: int, usual: Usual, deeds: Sequence[str] = (), n_blocks: int | None = None
) -> Outcome:
    """Disturb one run by these deeds when so many blocks are computed, or as its seed says; repeat the command."""
    chance, outcome, start = random.Random(seed), Outcome(seed), time.monotonic()
    # Each disturbance comes about equally often.
    drawn = [kind.deeds[seed % len(kind.deeds)], *chance.sample(kind.deeds, chance.randint(0, 1))]
    outcome.deeds = list(deeds) or drawn
    with tempfile.TemporaryDirectory(prefix="slidesam-chaos-") as name:
        scene = kind(Path(name), usual.slide, usual.home)
        try:
            for deed in [*outcome.deeds, None]:
                process = scene.start()
                if deed is not None:
                    wait_for_moment(scene, process, usual.seconds, chance, n_blocks)
                    disturb(scene, deed, process, chance)
                _wait(scene, process, outcome, deed)
                (scene.output / "ballast").unlink(missing_ok=True)
            _judge(scene, outcome, usual)
        finally:
            scene.close()
    outcome.seconds = time.monotonic() - start
    return outcome


def _wait(scene: Scene, process: subprocess.Popen[bytes], outcome: Outcome, deed: str | None) -> None:
    try:
        process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        outcome.leftovers.append(f"hung after {deed}")
        scene.kill_group()
        process.wait()
    outcome.exits.append(process.returncode)


def _judge(scene: Scene, outcome: Outcome, usual: Usual) -> None:
    outcome.twice = sum(scene.computed_blocks())
    outcome.is_equal = hash_result(scene.output) == usual.expected
    # What a killed flow leaves ends by itself, once it notices.
    deadline = time.monotonic() + _ORPHANS
    while scene.leftovers() and time.monotonic() < deadline:
        time.sleep(0.5)
    outcome.leftovers += scene.leftovers()
    if not outcome.is_good:
        log = Path(tempfile.gettempdir(), f"slidesam-chaos-{outcome.seed}.log")
        log.write_bytes((scene.folder / "words").read_bytes())


def hash_result(output: Path) -> str:
    """Return a hash of the names and bytes of all files of the store."""
    found = hashlib.sha256()
    for path in sorted(output.glob("*.ome.zarr/**/*")):
        if path.is_file():
            found.update(str(path.relative_to(output)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()
