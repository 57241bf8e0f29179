"""What the facts of a worker mean for a run, and what to do where they are wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from slidesam.tasks.folder.examine import OPTIONAL, Expected, Finding, note
from slidesam.tasks.segment import devices

_GIB = 2**30
_LITTLE_TEMPORARY, _PATIENCE = 1 * _GIB, 5.0


def judge(expected: Expected, facts: Mapping[str, Any]) -> list[Finding]:
    """What the facts of a worker mean for a run.

    Args:
        expected: What the run needs.
        facts: As `examine` returned them there.
    """
    there = compare_versions(f"{expected.part}: versions", expected.versions, facts["versions"], facts["host"])
    if facts["versions"]["slidesam"] != expected.versions["slidesam"]:
        return [there]
    found = [there, _judge_api(expected, facts), _judge_notes(expected, facts), _judge_segmenter(expected, facts)]
    found += [_judge_device(expected, facts), _judge_temporary(expected, facts), _judge_size(expected, facts)]
    return [each for each in found if each is not None]


def compare_versions(name: str, here: Mapping[str, str | None], there: Mapping[str, str | None], host: str) -> Finding:
    """Whether a worker has the versions that are here.

    Another slidesam makes other results, and processes of other minor versions may not understand each other.

    Args:
        name: The finding's name.
        here: Versions here.
        there: Versions there.
        host: Where that is.
    """
    unlike = {key: (here[key], there.get(key)) for key in here if here[key] != there.get(key)}
    if not unlike:
        return Finding(name, "ok", f"Python {here['python']}, slidesam {here['slidesam']} and all packages as here")
    serious = [key for key, (ours, theirs) in unlike.items() if key == "slidesam" or _minor(ours) != _minor(theirs)]
    listed = ", ".join(
        f"{key} {theirs or 'missing'} (here {ours or 'missing'})" for key, (ours, theirs) in unlike.items()
    )
    return Finding(
        name,
        "failed" if any(key not in OPTIONAL for key in serious) else "warning",
        f"{host} has {listed}",
        "let workers run this same environment (`python` in the profile), or install the same versions there",
    )


def _minor(version: str | None) -> list[str] | None:
    return None if version is None else version.split(".")[:2]


def _judge_api(expected: Expected, facts: Mapping[str, Any]) -> Finding | None:
    if expected.api is None:
        return None
    name, (state, words) = f"{expected.part}: Prefect API", facts["api"]
    if state == "ok":
        return Finding(name, "ok", f"{expected.api} answers {facts['host']}")
    if state == "refused":
        return Finding(
            name, "failed", f"{expected.api} doesn't let {facts['host']} in ({words})",
            "see that no proxy stands between them, and that PREFECT_API_AUTH_STRING (or PREFECT_API_KEY) is the server's",
        )  # fmt: skip
    cure = (
        "set scheduler.host or scheduler.interface in the profile to a network that the nodes reach, and let their firewall "
        "through to any port here; or run a server where they reach it and set PREFECT_API_URL"
        if expected.is_own_api
        else "start the server with `--host` and an address that the nodes reach, open its port in the firewall between "
        "them, and set PREFECT_API_URL to that address; or unset it to run with a server of one's own"
    )
    return Finding(name, "failed", f"{facts['host']} can't reach {expected.api} ({words})", cure)


def _judge_notes(expected: Expected, facts: Mapping[str, Any]) -> Finding | None:
    if expected.folder is None:
        return None
    name, host, folder = f"{expected.part}: output folder", facts["host"], expected.folder
    not_read, not_written, side = facts["notes"]
    share = (
        "give an --output on a file system that this machine and the nodes share; in a container, see container_binds"
    )
    if not_read:
        unlike = "has no such folder" if not_written else "has another folder of that name"
        return Finding(
            name, "failed", f"what is written to {folder} here isn't on {host}, which {unlike} ({not_read})", share
        )
    if not_written:
        return Finding(
            name, "failed", f"{host} can read {folder} but not write to it ({not_written})",
            "give an --output that jobs may write to, or have it mounted for writing on the nodes; in a container, see "
            "container_binds",
        )  # fmt: skip
    if not _reads(note(folder, expected.token, side), expected.token):
        return Finding(
            name, "failed", f"what {host} writes to {folder} isn't seen here",
            f"{share}. If it is one, its caches are too slow for runs: ask the site's administrators",
        )  # fmt: skip
    return Finding(name, "ok", f"what is written here is read on {host}, and the other way round")


def _reads(path: Path, token: str) -> bool:
    """Whether a note is there; a network's file system may take some time to show it."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        with suppress(OSError):
            if path.read_text() == token:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def _judge_segmenter(expected: Expected, facts: Mapping[str, Any]) -> Finding | None:
    if expected.segmenter is None:
        return None
    name, (identity, error) = f"{expected.part}: segmenter", facts["segmenter"]
    if identity is None:
        return from_words(name, error, "make it available where the workers run")
    if expected.identity is None:
        return Finding(name, "ok", f"{facts['host']} has {identity}")
    if identity != expected.identity:
        return Finding(
            name, "failed", f"{facts['host']} has {identity}; here is {expected.identity}",
            "give workers the same files and versions: the same environment, and MICROSAM_CACHEDIR at one shared folder",
        )  # fmt: skip
    return Finding(name, "ok", "the same as here")


def from_words(name: str, words: str, otherwise: str) -> Finding:
    """A failed finding from an error's words, which say what to do behind a colon.

    Args:
        name: The finding's name.
        words: What the error says.
        otherwise: What to do, where it doesn't say.

    Example:
        >>> from_words("it", "the disk is full: make room", "mend it").cure
        'make room'
    """
    what, _, cure = words.partition(": ")
    return Finding(name, "failed", what, cure) if cure else Finding(name, "failed", words, otherwise)


def _judge_device(expected: Expected, facts: Mapping[str, Any]) -> Finding | None:
    device, name = facts["device"], f"{expected.part}: device"
    if device["error"]:
        return from_words(name, device["error"].removeprefix(f"{facts['host']}: "), "see the job script")
    kind = None if expected.segmenter is None else json.loads(expected.segmenter)["kind"]
    segments = kind in ("micro-sam", "cellpose", "stardist")
    if device["given"] in (None, devices.CPU):
        if not segments:
            return None
        return Finding(
            name, "warning", f"no GPU was given to this worker: {kind} computes on the CPU, minutes per block",
            "choose a profile with GPUs, such as --cluster slurm-gpu or local-gpu, or leave it so and wait",
        )  # fmt: skip
    torch = f", torch {device['torch']} computes on it" if device["torch"] else ""
    if not device["gpus"]:
        return Finding(
            name, "warning", f"the job was given device {device['given']}{torch}, but nvidia-smi doesn't show it",
            "see that the node has its driver and nvidia-smi; in a container, that it is started with --nv",
        )  # fmt: skip
    return Finding(name, "ok", f"{', '.join(device['gpus'])} (device {device['given']}{torch})")


def _judge_temporary(expected: Expected, facts: Mapping[str, Any]) -> Finding:
    name, (folder, free, error) = f"{expected.part}: temporary files", facts["temporary"]
    cure = "set local_directory in the profile to a folder on the nodes' own disks, or TMPDIR in the prologue"
    if error:
        return Finding(name, "failed", f"{folder} on {facts['host']} can't be written to ({error})", cure)
    what = f"{folder} on {facts['host']}, {free / _GIB:,.1f} GiB free"
    return Finding(name, "ok", what) if free >= _LITTLE_TEMPORARY else Finding(name, "warning", what, cure)


def _judge_size(expected: Expected, facts: Mapping[str, Any]) -> Finding | None:
    if expected.cores is None or expected.memory is None:
        return None
    name, memory = f"{expected.part}: size", facts["memory"] / _GIB
    granted = f", {facts['granted']} granted by Slurm" if facts["granted"] else ""
    what = (
        f"{expected.cores} cores and {expected.memory:g} GiB asked for; {facts['host']} shows {facts['cpus']}{granted}, and has "
        f"{memory:,.0f} GiB in all"
    )
    if facts["cpus"] >= expected.cores and memory >= expected.memory:
        return Finding(name, "ok", what)
    return Finding(name, "warning", what, f"lower {expected.part}.cores or {expected.part}.memory in the profile")
