"""Runs one method on one case: `python -m benchmarks.stitching.adapters NAME CASE OUT` from the repository root.

Prints one line of JSON: the method, its version, the seconds that `stitch` took (imports excluded), and the peak
resident memory of this process and of its largest child (0: `stitch` had none) in MiB; or the method and the error it
failed with.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import re
import resource
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.stitching.case import Case


def main() -> int:
    """Runs the method that the command line names.

    Returns:
        0, or 1 where the method failed.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stitching.adapters", description=__doc__)
    parser.add_argument("name", help="module in this folder")
    parser.add_argument("case", type=Path, help="folder of the case")
    parser.add_argument("out", type=Path, help="zarr array to write; replaced if it is there")
    args = parser.parse_args()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the one line alone
            report = _run(args.name, Case.open(args.case), args.out)
    except Exception as error:  # noqa: BLE001 - whatever a peer fails with is its result
        message = " ".join(str(error).split()) or "no message"
        print(json.dumps({"method": args.name, "error": f"{type(error).__name__}: {message}"}))
        return 1
    print(json.dumps(report))
    return 0


def _run(name: str, case: Case, out: Path) -> dict[str, Any]:
    """Runs a method and says what it took."""
    adapter = importlib.import_module(f"benchmarks.stitching.adapters.{name}")
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    children = _children_peak_kib()
    start = time.perf_counter()
    # One that sets the clock itself, because it prepares something first, says so.
    details = adapter.stitch(case, out) or {}
    seconds = time.perf_counter() - start
    # Children of the imports do not count. One that is forked only to run another program counts with its parent's
    # memory, so this is an upper bound.
    children = _children_peak_kib() if _children_peak_kib() > children else 0
    return {
        "method": name,
        "version": version(adapter.DISTRIBUTION) if adapter.DISTRIBUTION else "",
        "seconds": round(seconds, 3),
        "peak_mib": round(_peak_kib() / 1024, 1),
        "children_peak_mib": round(children / 1024, 1),
        **details,
    }


def _children_peak_kib() -> int:
    """Largest peak resident memory of a child that has ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def _peak_kib() -> int:
    """Peak resident memory of this process."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError("/proc/self/status does not name VmHWM")
    return int(found[1])


if __name__ == "__main__":
    sys.exit(main())
