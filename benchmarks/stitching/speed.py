"""Speed: large confluent slides, from the last segmented block to the finished level 0, beside the raw limit and the peers.

All methods read the same block results from a warm cache and may use two processes or threads. What they make is checked
against the truth pixel by pixel, block by block, so that no wrong result counts as fast.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.stitching.big import make_big, true_labels
from benchmarks.stitching.case import Case
from benchmarks.stitching.raw import raw_seconds
from benchmarks.stitching.run_method import (
    METHODS,
    PEERS,
    SLIDESAM,
    Report,
    add_options,
    open_plane,
    peak_mib,
    run,
    runnable,
)

_WIDTH = 150
_NOTE_WIDTH = 60
# What the issue asks for: at least so many times faster than the fastest peer, at most so many times the raw limit.
_WANTED_FASTER, _WANTED_RAW = 3, 2


class Check(NamedTuple):
    """A stitched slide on which all blocks agreed, against its truth.

    Attributes:
        true: How many objects there are.
        objects: How many the result has.
        merged: Objects of the result that hold pixels of several true ones.
        split: True objects with pixels in several of the result's.
        lost: Pixels of true objects that are background in the result.
    """

    true: int
    objects: int
    merged: int
    split: int
    lost: int

    @property
    def is_right(self) -> bool:
        """Whether every object came back pixel by pixel."""
        return not self.merged and not self.split and not self.lost


class _Partners:
    """Which label of another image goes with each label of this one, as pixels come in: the first, and whether there are more."""

    def __init__(self) -> None:
        self._first = np.zeros(1, np.int64)
        self._several = np.zeros(1, bool)

    def add(self, labels: NDArray[np.int64], others: NDArray[np.int64]) -> None:
        """Takes notice of pixels; neither label may be 0."""
        if not labels.size:
            return
        missing = int(labels.max()) + 1 - self._first.size
        if missing > 0:
            self._first = np.pad(self._first, (0, missing + self._first.size))
            self._several = np.pad(self._several, (0, missing + self._several.size))
        known = self._first[labels]
        self._several[labels[(known != 0) & (known != others)]] = True
        # Of several partners among these very pixels the last one is kept, and found to differ from the rest.
        self._first[labels] = others
        self._several[labels[self._first[labels] != others]] = True

    @property
    def count(self) -> int:
        """How many labels there are."""
        return int(np.count_nonzero(self._first))

    @property
    def torn(self) -> int:
        """How many labels go with several others."""
        return int(np.count_nonzero(self._several))


def check(case: Case, out: Path) -> Check:
    """Compares a result with the truth of a case that `make_big` made, block by block.

    Raises:
        ValueError: It has not the shape of the case.
    """
    array = open_plane(out)
    if array.shape[-2:] != case.shape or any(size != 1 for size in array.shape[:-2]):
        raise ValueError(f"{array.shape} pixels instead of {case.shape}")
    leading = (0,) * (len(array.shape) - 2)
    true, made, lost, seen = _Partners(), _Partners(), 0, _Partners()
    for block_id in range(len(case)):
        region = case.inner(block_id)
        truth = true_labels(region, case.shape[0]).ravel()
        labels = np.asarray(array[(*leading, *region)]).ravel().astype(np.int64)
        shown = labels > 0
        lost += int(shown.size - np.count_nonzero(shown))
        seen.add(truth, truth)
        true.add(truth[shown], labels[shown])
        made.add(labels[shown], truth[shown])
    return Check(seen.count, made.count, made.torn, true.torn, lost)


def add_slides(parser: argparse.ArgumentParser, sides: list[int]) -> None:
    """Adds what says which slides to stitch."""
    parser.add_argument(
        "--sides", type=int, nargs="+", default=sides, metavar="PIXELS", help="of the slides (default: %(default)s)"
    )
    parser.add_argument("--block", type=int, default=1024, help="side of a block, in pixels (default: %(default)s)")
    parser.add_argument("--halo", type=int, default=64, help="in pixels (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="make slides anew that an earlier run has left")


def slide(side: int, chosen: argparse.Namespace) -> Case:
    """A slide of that size, made unless it is there."""
    folder = chosen.scratch / f"confluent-{side}-{chosen.block}-{chosen.halo}"
    if chosen.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    return make_big(folder, side, block=chosen.block, halo=chosen.halo)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what this command takes."""
    add_slides(parser, [8192, 16384])
    parser.add_argument(
        "--repeat",
        type=int,
        default=3,
        metavar="N",
        help="runs of the raw limit and of slidesam, of which the best counts (default: %(default)s)",
    )
    parser.add_argument(
        "--peer-repeat", type=int, default=1, metavar="N", help="runs of all others (default: %(default)s)"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add_options(parser)


def run_command(chosen: argparse.Namespace) -> None:
    """Prints a table per size, and what it says of slidesam."""
    console = Console(width=_WIDTH)
    methods, missing = runnable(chosen.methods, chosen.peers)
    measured = []
    for side in chosen.sides:
        case = slide(side, chosen)
        raw, reports = _measure(case, methods, chosen)
        console.print(_table(case, raw, reports))
        for line in _verdict(raw, reports):
            console.print(line, markup=False, soft_wrap=True)
        console.print()
        measured.append({"side": side, "raw": raw, "methods": reports})
    if missing:
        console.print(missing)
    if chosen.json:
        chosen.json.write_text(json.dumps(measured, indent=1) + "\n")


def _measure(case: Case, methods: list[str], chosen: argparse.Namespace) -> tuple[dict[str, float], dict[str, Report]]:
    """The best of all runs. Methods take turns, so that no one of them gets the machine's better minutes."""
    raw: dict[str, float] = {}
    reports: dict[str, Report] = {}
    out = chosen.scratch / "out.zarr"
    for turn in range(max(chosen.repeat, chosen.peer_repeat)):
        if turn < chosen.repeat:
            _say(case, turn, "raw limit")
            _warm(case)
            found = raw_seconds(case, out)
            raw = {way: min(seconds, raw.get(way, seconds)) for way, seconds in found.items()}
        for method in methods:
            again = chosen.repeat if method == SLIDESAM else chosen.peer_repeat
            if turn < again and "error" not in reports.get(method, {}):
                _say(case, turn, method)
                reports[method] = _better(reports.get(method), _run(method, case, out, chosen))
    return raw, reports


def _say(case: Case, turn: int, what: str) -> None:
    print(f"{case.shape[0]} px, turn {turn + 1}: {what}", file=sys.stderr)


def _run(method: str, case: Case, out: Path, chosen: argparse.Namespace) -> Report:
    """Runs a method and checks what it made."""
    _warm(case)
    report = run(method, case, out, peers=chosen.peers, timeout=chosen.timeout)
    try:
        if "error" not in report:
            report["check"] = check(case, out)._asdict()
    except (OSError, ValueError) as error:
        report = {"method": method, "error": f"no result that can be checked: {error}"}
    _clear(out)
    return report


def _clear(out: Path) -> None:
    """Removes a result, and what a method that was stopped left beside it."""
    for path in out.parent.glob(f"{out.name}*"):
        shutil.rmtree(path, ignore_errors=True)


def _warm(case: Case) -> None:
    """Brings all that is read into the cache, and leaves nothing that is yet to be written."""
    for path in (case.folder / "blocks.zarr").rglob("*"):
        if path.is_file():
            path.read_bytes()
    os.sync()


def _better(before: Report | None, now: Report) -> Report:
    """The faster of two runs, with the larger peak; an error of either."""
    if before is None or "error" in now:
        return now
    faster = min(before, now, key=lambda report: report["seconds"])
    return {**faster, "peak_mib": max(peak_mib(before), peak_mib(now))}


def raw_limit(raw: Mapping[str, float]) -> float:
    """Seconds of the faster of the two ways to write what slidesam writes."""
    return min(seconds for way, seconds in raw.items() if "alone" not in way)


def _table(case: Case, raw: Mapping[str, float], reports: Mapping[str, Report]) -> Table:
    true = next((report["check"]["true"] for report in reports.values() if "check" in report), None)
    objects = "" if true is None else f", {true} true objects"
    table = Table(
        title=f"confluent, {case.shape[0]} px, block {case.block_shape[0]}, halo {case.halo}{objects}",
        caption="best run; seconds from the blocks' labels to the finished level 0, imports excluded; "
        "merged: objects that hold several true ones; split: true objects in several",
    )
    table.add_column("method")
    for heading in ("seconds", "/ slidesam", "/ raw limit", "peak MiB", "objects", "merged", "split", "lost px"):
        table.add_column(heading, justify="right")
    table.add_column("notes", max_width=_NOTE_WIDTH)
    limit, ours = raw_limit(raw), reports.get(SLIDESAM, {}).get("seconds")
    for way, seconds in raw.items():
        table.add_row(way, f"{seconds:.2f}", _ratio(seconds, ours), _ratio(seconds, limit))
    for method, report in reports.items():
        name = f"{method} {report.get('version') or ''}".strip()
        if "error" in report:
            table.add_row(name, *[""] * 8, Text(report["error"]))
            continue
        seconds, found = report["seconds"], Check(**report["check"])
        table.add_row(
            name, f"{seconds:.2f}", _ratio(seconds, ours), _ratio(seconds, limit), f"{peak_mib(report):.0f}",
            *(str(value) for value in found[1:]), _parts(report),
        )  # fmt: skip
    return table


def _ratio(seconds: float, other: float | None) -> str:
    return f"{seconds / other:.2f}" if other else ""


def _parts(report: Report) -> str:
    """What the adapter says that parts of its work took: all keys that end with `_s`."""
    return ", ".join(f"{key.removesuffix('_s')} {value:.2f} s" for key, value in report.items() if key.endswith("_s"))


def _verdict(raw: Mapping[str, float], reports: Mapping[str, Report]) -> list[str]:
    """What the table says of slidesam, in words."""
    ours: dict[str, Any] = reports.get(SLIDESAM, {"error": "not run"})
    if "error" in ours:
        return [f"slidesam: {ours['error']}"]
    limit = raw_limit(raw)
    right = "right pixel by pixel" if Check(**ours["check"]).is_right else f"WRONG: {ours['check']}"
    times = ours["seconds"] / limit
    lines = [
        f"slidesam is {right}",
        f"slidesam takes {times:.2f} times the raw limit of {limit:.2f} s: "
        + _wanted(times <= _WANTED_RAW, "at most", _WANTED_RAW),
    ]
    # Peers begin with labels alone. So what segmenting writes beside the labels for our stitching counts against us.
    tables = ours.get("table_s", 0.0)
    seconds = ours["seconds"] + tables
    if tables:
        lines.append(
            f"not counted there: {tables:.2f} s for the tables that segmenting writes beside the labels, with the start of the "
            f"processes; with them {seconds:.2f} s, {seconds / limit:.2f} times the raw limit"
        )
    peers = {m: r for m, r in reports.items() if m in PEERS and "error" not in r and not r["check"]["merged"]}
    if peers:
        fastest = min(peers, key=lambda method: peers[method]["seconds"])
        faster, alone = (peers[fastest]["seconds"] / own for own in (seconds, ours["seconds"]))
        lines.append(
            f"with its tables slidesam is {faster:.2f} times as fast as {fastest}, the fastest peer that merges nothing: "
            f"{_wanted(faster >= _WANTED_FASTER, 'at least', _WANTED_FASTER)}; without them {alone:.2f} times"
        )
    return lines


def _wanted(is_met: bool, how: str, times: float) -> str:
    return f"{'met' if is_met else 'NOT MET'} ({how} {times})"
