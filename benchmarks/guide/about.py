"""Where and with what it was measured, for captions."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.guide.case import Case

_PACKAGES = ("slidesam", "micro-sam", "torch", "numpy", "prefect", "dask")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def about(case: Case, **more: Any) -> dict[str, Any]:
    """What captions say; `more` is what a part of the measurements has of its own."""
    return {
        "device": gpu_name() if case.device == "cuda" else f"CPU ({_cpu_name()})",
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": case.threads,
        "image": case.name,
        "shape": list(case.shape),
        "mode": case.mode,
        "weights": case.weights + (", in networks made small: a smoke test, times mean nothing" * case.small),
        "scaling": case.scaling,
        "options": case.options,
        "settings": case.settings,
        "versions": {"python": platform.python_version(), **_versions()},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": " ".join(["python -m benchmarks.guide", *sys.argv[1:]]),
        **more,
    }


def caption(facts: dict[str, Any]) -> str:
    """What stands below each table and plot."""
    height, width = facts["shape"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items() if number)
    extra = [f"options {facts['options']}"] if facts["options"] else []
    extra += [f"settings {facts['settings']}"] if facts["settings"] else []
    sentences = [
        f"{facts['image']}, {width} × {height} px",
        f"{facts['device']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['threads']} threads in all",
        f"mode {facts['mode']}, {facts['weights']}",
        f"intensities scaled by {facts['scaling']}",
        *extra,
        f"{versions}; {facts['date']}",
        *facts.get("notes", ()),
    ]
    return ". ".join(sentence[0].upper() + sentence[1:] for sentence in sentences) + "."


def gpu_name() -> str:
    """Name of the first GPU as nvidia-smi has it."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        found = []
    return found[0].strip() if found else "CUDA device"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
