"""Collects what `slidesam doctor` needs to know of a process, on this machine or where a worker runs.

`examine` runs in a worker and returns plain facts, which another version of slidesam can read too; `slidesam.flows.doctor.judge`
says what they mean for a run. Nothing here raises an error for what it finds.
"""

from __future__ import annotations

import base64
import http.client
import importlib
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from slidesam.tasks.errors import SlidesamError, in_one_line
from slidesam.tasks.segment import devices
from slidesam.tasks.segment.worker_state import this_worker
from slidesam.tasks.segmenters import segmenter_identity
from slidesam.tasks.segmenters.packages import package_version
from slidesam.tasks.settings.methods import SegmenterSettings
from slidesam.tasks.trial.self_test import try_segmenter

PACKAGES = ("slidesam", "dask", "distributed", "prefect", "zarr", "numpy")
OPTIONAL = ("micro-sam", "torch", "cellpose", "stardist", "tensorflow")
_API_SECONDS = 10.0


@dataclass(frozen=True)
class Expected:
    """What a run needs of a worker.

    Attributes:
        pool: The worker pool that it is of, with which the names of its findings begin.
        versions: Versions on this machine.
        api: URL of the Prefect API; None = there is none to ask.
        authorization: The header by which the API knows us; empty = none.
        is_own_api: Whether the server was started by this process.
        folder: Folder in which both sides leave a note for each other; None = none.
        token: What is in the notes.
        segmenter: JSON of the segmenter's settings; None = this worker doesn't segment.
        identity: The segmenter's identity on this machine; None = it can't be had here.
        allowed: Code that the person allows it to load.
        temporary: Folder for temporary files; empty = that of the job.
        cores: CPU cores that the job requests.
        memory: GiB that the job requests.
        trials: JSON of the settings of segmenters that segment the shipped tile there.
    """

    pool: str
    versions: Mapping[str, str | None]
    api: str | None = None
    authorization: str = ""
    is_own_api: bool = False
    folder: str | None = None
    token: str = ""
    segmenter: str | None = None
    identity: str | None = None
    allowed: tuple[str, ...] = ()
    temporary: str = ""
    cores: int | None = None
    memory: float | None = None
    trials: tuple[str, ...] = ()


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of all packages that matter; None for one that isn't installed."""
    return {"python": platform.python_version()} | {name: package_version(name) for name in (*PACKAGES, *OPTIONAL)}


def ask_api(url: str, authorization: str = "") -> tuple[str, str]:
    """Ask whether a Prefect API answers here and accepts our password.

    Args:
        url: Its URL.
        authorization: The header of that name; empty = none.

    Returns:
        `ok`, `refused` or `silent`; and its version, or what went wrong.
    """
    headers = {"Authorization": authorization} if authorization else {}
    answer = b""
    for path in ("health", "admin/version"):
        request = urllib.request.Request(f"{url.rstrip('/')}/{path}", headers=headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_API_SECONDS) as response:  # noqa: S310
                answer = response.read(1000)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                return "refused", f"HTTP {error.code} {error.reason}"
            # Prefect Cloud has no such page.
            if error.code != 404 or path == "health":
                return "silent", f"HTTP {error.code} {error.reason}"
            answer = b'""'
        except (OSError, ValueError, http.client.HTTPException) as error:
            return "silent", in_one_line(getattr(error, "reason", None) or error, 200)
    try:
        version = json.loads(answer)
    except ValueError:
        return "silent", "what answers is no Prefect API"
    return ("ok", version) if isinstance(version, str) else ("silent", "what answers is no Prefect API")


def authorization_of(auth_string: str | None, key: str | None) -> str:
    """Return the header by which Prefect's client identifies itself.

    Args:
        auth_string: PREFECT_API_AUTH_STRING.
        key: PREFECT_API_KEY, of Prefect Cloud.

    Example:
        >>> authorization_of("user:word", None)
        'Basic dXNlcjp3b3Jk'
    """
    if auth_string:
        return f"Basic {base64.b64encode(auth_string.encode()).decode()}"
    return f"Bearer {key}" if key else ""


def identity_of(segmenter: str, allowed: Sequence[str] = ()) -> tuple[str | None, str, str]:
    """Ask for the segmenter's identity in this process.

    Args:
        segmenter: JSON of its settings.
        allowed: Code that the person allows it to load.

    Returns:
        The identity; or None, why it can't be had, and what to do.
    """
    settings: SegmenterSettings = TypeAdapter[SegmenterSettings](SegmenterSettings).validate_json(segmenter)
    try:
        return segmenter_identity(settings, True, allowed), "", ""
    except Exception as error:  # noqa: BLE001 - a function of the user's own may raise anything
        return None, *explain_failure(error)


def explain_failure(error: BaseException) -> tuple[str, str]:
    """Return what an error says is wrong, and what to do; the second is empty if it doesn't say."""
    if isinstance(error, SlidesamError):
        return in_one_line(error.what), in_one_line(error.cure)
    return in_one_line(error), ""


def free_space(folder: str) -> tuple[int, str]:
    """Return the free bytes in a folder, and why it can't be written to, if so."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"slidesam doctor")
        return shutil.disk_usage(folder).free, ""
    except OSError as error:
        return 0, error.strerror or str(error)


def note(folder: str, token: str, side: str) -> Path:
    """Return the file that one side leaves for the other."""
    return Path(folder) / f"doctor-{token}.{side}"


def examine(expected: Mapping[str, Any]) -> dict[str, Any]:
    """Examine the process that runs this.

    Args:
        expected: The fields of `Expected`.

    Returns:
        The facts, in plain values.
    """
    temporary = os.path.expandvars(expected["temporary"] or os.environ.get("TMPDIR") or "/tmp")  # noqa: S108
    api, segmenter, folder = expected["api"], expected["segmenter"], expected["folder"]
    return {
        "host": socket.gethostname(),
        "python": sys.executable,
        "versions": versions(),
        "is_worker": this_worker.is_disposable,
        "api": api and ask_api(api, expected["authorization"]),
        "notes": folder and _answer(folder, expected["token"]),
        "segmenter": segmenter and identity_of(segmenter, expected.get("allowed", ())),
        "trials": [try_segmenter(trial, expected.get("allowed", ())) for trial in expected.get("trials", ())],
        "device": _device(bool(segmenter) and json.loads(segmenter)["kind"] == "micro-sam"),
        "temporary": (temporary, *free_space(temporary)),
        "cpus": len(os.sched_getaffinity(0)),
        "granted": os.environ.get("SLURM_CPUS_PER_TASK"),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _answer(folder: str, token: str) -> tuple[str, str, str]:
    """Read the other side's note and leave one; return why either failed, and the name of the new note's side."""
    not_read = not_written = ""
    side = f"{socket.gethostname()}-{os.getpid()}"
    try:
        if note(folder, token, "here").read_text() != token:
            not_read = "the file holds something else"
    except OSError as error:
        not_read = error.strerror or str(error)
    try:
        note(folder, token, side).write_text(token)
    except OSError as error:
        not_written = error.strerror or str(error)
    return not_read, not_written, side


def _device(with_torch: bool) -> dict[str, Any]:
    given_device = os.environ.get(devices.GIVEN)
    facts: dict[str, Any] = {"given": given_device, "gpus": [], "problem": ("", ""), "torch": ""}
    try:
        devices.check_given()
        if given_device not in (None, devices.CPU):
            facts["gpus"] = [gpu.name for gpu in devices.parse_smi(devices.nvidia_smi() or "")]
            if with_torch:
                # Seconds, which only those pay who segment with it.
                facts["torch"] = str(importlib.import_module("torch").__version__)
                devices.check_torch()
    except (SlidesamError, ImportError, RuntimeError) as error:
        facts["problem"] = explain_failure(error)
    return facts
