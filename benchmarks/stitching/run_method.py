"""Runs one method on one case, in a process of its own and, for peers, with an interpreter of their own.

What a method prints, takes and fails with stays its own: whatever happens there, the benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import zarr

from benchmarks.stitching.case import Case

Report = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
SLIDESAM, PLAIN, FLOW = "slidesam", "plain_iou", "slidesam_flow"
OURS = (SLIDESAM, PLAIN, FLOW)
PEERS = ("bioimage_py", "dask_image", "ngio", "patchworks", "patchworks_iou", "stardist")
METHODS = (*OURS, *PEERS)
# Seconds that a method gets to end by itself once it is told to: what it started has to be stopped too.
_GRACE = 5


def add_options(parser: argparse.ArgumentParser, timeout: float = 600) -> None:
    """Adds the options that all commands share: --peers, --scratch, --timeout, --json."""
    parser.add_argument(
        "--peers",
        type=Path,
        default=Path(".venv-peers/bin/python"),
        metavar="PYTHON",
        help="interpreter that has the peers (default: %(default)s, made by `make peers`)",
    )
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path(tempfile.gettempdir()) / "slidesam-benchmark" / "stitching",
        help="folder for cases and results (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout", type=float, default=timeout, metavar="S", help="seconds that a method gets (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all that was measured goes")


def runnable(methods: Sequence[str], peers: Path) -> tuple[list[str], str]:
    """Those of the methods that can be run, and a sentence on those that can't ("" where all can).

    Args:
        methods: Names of methods.
        peers: The peers' interpreter; a relative path counts from the repository root.
    """
    if _interpreter(peers).exists():
        return list(methods), ""
    left_out = [method for method in methods if method in PEERS]
    kept = [method for method in methods if method not in PEERS]
    if not left_out:
        return kept, ""
    return kept, f"Left out: {', '.join(left_out)}. They need {peers}, which `make peers` makes."


def run(method: str, case: Case, out: Path, *, peers: Path, timeout: float | None = None) -> Report:
    """Runs one method on one case.

    Args:
        method: One of `METHODS`.
        case: The case.
        out: Where the global labels go.
        peers: The peers' interpreter; a relative path counts from the repository root.
        timeout: Seconds after which the method and all that it started are stopped.

    Returns:
        What the adapter said: `method`, `version`, `seconds`, `peak_mib` and more; or `method` and `error`.
    """
    python = _interpreter(peers) if method in PEERS else Path(sys.executable)
    command = [str(python), "-m", "benchmarks.stitching.adapters", method, str(case.folder), str(out)]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=errors, start_new_session=True)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            return {"method": method, "error": f"not done after {timeout:.0f} s"}
        finally:
            _stop(process)
        said.seek(0)
        report = _last_report(said.read())
        if report is not None:
            return {**report, "method": method}
        errors.seek(0)
        last = (errors.read().strip().splitlines() or ["no message"])[-1]
    return {"method": method, "error": f"exit status {process.returncode}: {last}"}


def peak_mib(report: Report) -> float:
    """Peak memory in MiB of the largest process of a run."""
    children = [report.get("children_peak_mib", 0.0), *report.get("peaks", {}).values()]
    return float(max(report.get("peak_mib", 0.0), *children))


def open_plane(out: Path) -> zarr.Array[Any]:
    """The array that a method wrote: (y, x), or any leading axes of length one before them."""
    return zarr.open_array(out, mode="r")


def _interpreter(peers: Path) -> Path:
    # Links stay as they are: followed, that of a virtual environment leads out of it.
    return peers if peers.is_absolute() else ROOT / peers


def _last_report(text: str) -> Report | None:
    """The adapter's line; a child of the method may have printed too."""
    for line in reversed(text.splitlines()):
        try:
            report = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(report, dict) and "method" in report:
            return report
    return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of a process and its group, the patient way first."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return  # nothing is left of it
