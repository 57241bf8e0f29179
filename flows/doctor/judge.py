"""What the facts about a worker mean for a run, and what to do where they are wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from slidesam.flows.doctor.finding import Finding, check
from slidesam.flows.doctor.trials import judge_trial
from slidesam.tasks.folder.examine import OPTIONAL, Expected, note
from slidesam.tasks.segment import devices

_GIB = 2**30
_LITTLE_TEMPORARY, _PATIENCE = 1 * _GIB, 5.0
_NETWORKS = ("micro-sam", "cellpose", "stardist")


def judge(expected: Expected, facts: Mapping[str, Any]) -> list[Finding]:
    """Judge what a worker sees.

    Args:
        expected: What the run needs.
        facts: What `examine` returned there.
    """
    versions = compare_versions(f"{expected.pool}: versions", expected.versions, facts["versions"], facts["host"])
    if facts["versions"]["slidesam"] != expected.versions["slidesam"]:
        # Another version may tell its facts differently.
        return [versions]
    findings = [judge_one(expected, facts) for judge_one in _JUDGES]
    trials = [judge_trial(expected, trial, facts["host"]) for trial in facts.get("trials", ())]
    return [versions, *(finding for finding in findings if finding is not None), *trials]


def compare_versions(
    name: str, local_versions: Mapping[str, str | None], worker_versions: Mapping[str, str | None], host: str
) -> Finding:
    """Compare a worker's versions with those on this machine.

    Another slidesam makes other results, and processes of other minor versions may not understand each other.

    Args:
        name: The finding's name.
        local_versions: Versions on this machine.
        worker_versions: Versions where the worker runs.
        host: Where that is.
    """
    unlike = {
        key: (version, worker_versions.get(key))
        for key, version in local_versions.items()
        if version != worker_versions.get(key)
    }
    differences = ", ".join(
        f"{key} {theirs or 'missing'} (here {ours or 'missing'})" for key, (ours, theirs) in unlike.items()
    )
    is_serious = any(
        key == "slidesam" or (key not in OPTIONAL and _minor(ours) != _minor(theirs))
        for key, (ours, theirs) in unlike.items()
    )
    cure = "let workers run this same environment (`python` in the profile), or install the same versions there"
    return check(
        name,
        (is_serious, "failed", f"{host} has {differences}", cure),
        (unlike, "warning", f"{host} has {differences}", cure),
        ok=f"Python {local_versions['python']}, slidesam {local_versions['slidesam']} and all packages as here",
    )


def _minor(version: str | None) -> list[str] | None:
    return None if version is None else version.split(".")[:2]


def _judge_api(expected: Expected, facts: Mapping[str, Any]) -> Finding | None:
    if expected.api is None:
        return None
    url, host, (state, reason) = expected.api, facts["host"], facts["api"]
    reach = (
        "set scheduler.host or scheduler.interface in the profile to a network that the nodes reach, and let their firewall "
        "through to any port here; or run a server where they reach it and set PREFECT_API_URL"
        if expected.is_own_api
        else "start the server with `--host` and an address that the nodes reach, open its port in the firewall between "
        "them, and set PREFECT_API_URL to that address; or unset it to run with a server of its own"
    )
    let_in = (
        "see that no proxy stands between them, and that PREFECT_API_AUTH_STRING (or PREFECT_API_KEY) is the server's"
    )
    return check(
        f"{expected.pool}: Prefect API",
        (state == "refused", "failed", f"{url} doesn't let {host} in ({reason})", let_in),
        (state != "ok", "failed", f"{host} can't reach {url} ({reason})", reach),
        ok=f"{url} answers {host}",
    )


def _judge_notes(expected: Expected, facts: Mapping[str, Any]) -> Finding | None:
    if expected.folder is None:
        return None
    host, folder, (not_read, not_written, side) = facts["host"], expected.folder, facts["notes"]
    share = (
        "give an --output on a file system that this machine and the nodes share; in a container, see container_binds"
    )
    allow = (
        "give an --output that jobs may write to, or have it mounted for writing on the nodes; in a container, see "
        "container_binds"
    )
    slow = f"{share}. If it is one, its caches are too slow for runs: ask the site's administrators"
    unlike = f"has {'no such folder' if not_written else 'another folder of that name'} ({not_read})"
    is_seen = not (not_read or not_written) and _reads(note(folder, expected.token, side), expected.token)
    return check(
        f"{expected.pool}: output folder",
        (not_read, "failed", f"what is written to {folder} here isn't on {host}, which {unlike}", share),
        (not_written, "failed", f"{host} can read {folder} but not write to it ({not_written})", allow),
        (not is_seen, "failed", f"what {host} writes to {folder} isn't seen here", slow),
        ok=f"what is written here is read on {host}, and the other way round",
    )


def _reads(path: Path, token: str) -> bool:
    """Tell whether a note arrives; a network's file system may take some time to show it."""
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
    (identity, problem, cure), host, ours = facts["segmenter"], facts["host"], expected.identity
    cure_unlike = (
        "give workers the same files and versions: the same environment, and MICROSAM_CACHEDIR at one shared folder"
    )
    return check(
        f"{expected.pool}: segmenter",
        (identity is None, "failed", problem, cure or "make it available where the workers run"),
        (ours not in (None, identity), "failed", f"{host} has {identity}; here is {ours}", cure_unlike),
        ok=f"{host} has {identity}" if ours is None else "the same as here",
    )


def _judge_device(expected: Expected, facts: Mapping[str, Any]) -> Finding | None:
    device, kind = facts["device"], None if expected.segmenter is None else json.loads(expected.segmenter)["kind"]
    device_name, (problem, cure), is_on_cpu = device["given"], device["problem"], device["given"] in (None, devices.CPU)
    if is_on_cpu and not problem and kind not in _NETWORKS:
        return None
    torch = f", torch {device['torch']} computes on it" if device["torch"] else ""
    slow = f"no GPU was given to this worker: {kind} computes on the CPU, minutes per block"
    choose = "choose a profile with GPUs, such as --cluster slurm-gpu or local-gpu, or leave it so and wait"
    driver = "see that the node has its driver and nvidia-smi; in a container, that it is started with --nv"
    unseen = f"the job was given device {device_name}{torch}, but nvidia-smi doesn't show it"
    return check(
        f"{expected.pool}: device",
        (problem, "failed", problem, cure or "see the job script"),
        (is_on_cpu, "warning", slow, choose),
        (not device["gpus"], "warning", unseen, driver),
        ok=f"{', '.join(device['gpus'])} (device {device_name}{torch})",
    )


def _judge_temporary(expected: Expected, facts: Mapping[str, Any]) -> Finding:
    (folder, free, problem), host = facts["temporary"], facts["host"]
    cure = "set local_directory in the profile to a folder on the nodes' own disks, or TMPDIR in the prologue"
    room = f"{folder} on {host}, {free / _GIB:,.1f} GiB free"
    return check(
        f"{expected.pool}: temporary files",
        (problem, "failed", f"{folder} on {host} can't be written to ({problem})", cure),
        (free < _LITTLE_TEMPORARY, "warning", room, cure),
        ok=room,
    )


def _judge_size(expected: Expected, facts: Mapping[str, Any]) -> Finding | None:
    if expected.cores is None or expected.memory is None:
        return None
    pool, memory, cores = expected.pool, facts["memory"] / _GIB, facts["cpus"]
    granted = f", {facts['granted']} granted by Slurm" if facts["granted"] else ""
    size = (
        f"{expected.cores} cores and {expected.memory:g} GiB requested; {facts['host']} shows {cores}{granted}, and has "
        f"{memory:,.0f} GiB in all"
    )
    is_small = cores < expected.cores or memory < expected.memory
    return check(
        f"{pool}: size",
        (is_small, "warning", size, f"lower {pool}.cores or {pool}.memory in the profile"),
        ok=size,
    )


_JUDGES = (_judge_api, _judge_notes, _judge_segmenter, _judge_device, _judge_temporary, _judge_size)
