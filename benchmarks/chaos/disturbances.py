"""The deeds, and the moment of each."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import time

from benchmarks.chaos.scene import Scene, SlurmScene, send
from benchmarks.chaos.segmenter import COLUMNS, ROWS

# Seconds until a command counts as hung.
LONGEST = 400.0
# Share of the moments that are drawn by the number of blocks: the start takes most of the time.
_BY_BLOCKS = 0.6


def wait_for_moment(
    scene: Scene, process: subprocess.Popen[bytes], usual: float, chance: random.Random, n_blocks: int | None
) -> None:
    """Wait until so many blocks are computed, or until the command has ended.

    Args:
        scene: The run.
        process: Its command.
        usual: Seconds that the command takes undisturbed.
        chance: Draws the moment.
        n_blocks: Number of blocks; None = a random one, or any moment of the command.
    """
    deadline = time.monotonic() + chance.uniform(0.2, 1) * usual
    if n_blocks is None and chance.random() < _BY_BLOCKS:
        n_blocks = chance.randint(1, ROWS * COLUMNS)
    if n_blocks is None:
        n_blocks = ROWS * COLUMNS + 1
    else:
        deadline = time.monotonic() + LONGEST
    while process.poll() is None and time.monotonic() < deadline and len(scene.computed_blocks()) < n_blocks:
        time.sleep(0.05)


def disturb(scene: Scene, deed: str, process: subprocess.Popen[bytes], chance: random.Random) -> None:
    """Do one deed to a running command; afterwards it has ended, or may go on."""
    verb, _, role = deed.partition(" ")
    if deed == "kill group":
        scene.kill_group()
    elif deed == "stop for good":
        members = scene.members(chance.choice(["flow", "server", "worker"]))
        send(members[:1], signal.SIGSTOP)
        time.sleep(3)
        scene.kill_group()
    elif deed == "cancel job":
        _cancel_job(scene, chance)
    elif verb == "kill":
        members = scene.members(role)
        is_one_of_many = role in ("worker", "nanny") and len(members) > 1
        send([chance.choice(members)] if is_one_of_many else members, signal.SIGKILL)
    elif verb == "stop":
        members = scene.members(role)
        send(members, signal.SIGSTOP)
        time.sleep(chance.uniform(1, 6))
        send(members, signal.SIGCONT)
    elif deed == "disk":
        with contextlib.suppress(OSError), (scene.output / "ballast").open("wb") as ballast:
            while True:
                ballast.write(bytes(2**20))
    elif deed == "clock":
        (scene.folder / "clock" / "ahead").write_text(str(chance.choice([-86400, -3600, 3600, 86400])))
    elif deed == "network":
        scene.cut_network(chance.uniform(1, 6))
    if deed in ("kill flow", "kill server", "kill group", "stop for good"):
        # Members that lost the flow or the server end by themselves, sooner or later; the command is over when it is.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)


def _cancel_job(scene: Scene, chance: random.Random) -> None:
    if isinstance(scene, SlurmScene) and (jobs := scene.jobs()):
        subprocess.run(["scancel", chance.choice(jobs)], check=False)
