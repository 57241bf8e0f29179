"""Memory: peak of each of slidesam's processes as slides grow; beside bytes per object it must not depend on the slide."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.stitching.run_method import SLIDESAM, add_options, run
from benchmarks.stitching.speed import Check, add_slides, check, slide

_MIB = 2**20
_WIDTH = 150
# What the issue asks for: so much more at most, but for what is kept per object, and so many MiB.
_FLAT, _MOST = 1.1, 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what this command takes."""
    add_slides(parser, [8192, 16384, 32768])
    add_options(parser, timeout=1800)


def run_command(chosen: argparse.Namespace) -> None:
    """Prints a table of peaks by process and size, and what it says."""
    console = Console(width=_WIDTH)
    reports = []
    for side in sorted(chosen.sides):
        report = _measure(side, chosen)
        if "error" in report:
            console.print(f"{side} px: {report['error']}", markup=False)
        else:
            reports.append({"side": side, **report})
    if reports:
        console.print(_table(reports, chosen.block))
        for line in _verdict(reports):
            console.print(line, markup=False, soft_wrap=True)
    if chosen.json:
        chosen.json.write_text(json.dumps(reports, indent=1) + "\n")


def _measure(side: int, chosen: argparse.Namespace) -> dict[str, Any]:
    print(f"{side} px", file=sys.stderr)
    case = slide(side, chosen)
    out = chosen.scratch / "out.zarr"
    report = run(SLIDESAM, case, out, peers=chosen.peers, timeout=chosen.timeout)
    if "error" not in report:
        report["check"] = check(case, out)._asdict()
        # An adapter that doesn't tell its processes apart has one and its children.
        report.setdefault("peaks", {"itself": report["peak_mib"], "largest child": report["children_peak_mib"]})
    shutil.rmtree(out, ignore_errors=True)
    return report


def _table(reports: Sequence[dict[str, Any]], block: int) -> Table:
    table = Table(
        title=f"slidesam stitching confluent slides: peak MiB per process, block {block}",
        caption="in brackets: beside the smallest size; bytes per object: growth from the smallest to the largest size",
    )
    table.add_column("process")
    for report in reports:
        table.add_column(f"{report['side']} px", justify="right")
    table.add_column("bytes per object", justify="right")
    for role in _roles(reports):
        peaks = [report["peaks"].get(role) for report in reports]
        cells = [_beside(peak, peaks[0]) for peak in peaks]
        growth = _bytes_per_object(role, reports)
        table.add_row(role, *cells, "" if growth is None else f"{growth:.0f}")
    table.add_row("(objects)", *(str(report["check"]["true"]) for report in reports), "")
    table.add_row("(seconds)", *(f"{report['seconds']:.1f}" for report in reports), "")
    return table


def _roles(reports: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(role for report in reports for role in report["peaks"]))


def _beside(peak: float | None, smallest: float | None) -> str:
    if peak is None:
        return ""
    return f"{peak:.0f} ({peak / smallest:.2f})" if smallest else f"{peak:.0f}"


def _bytes_per_object(role: str, reports: Sequence[dict[str, Any]]) -> float | None:
    """By how much a process grows per further object, or None where that can't be told."""
    first, last = (report["peaks"].get(role) for report in (reports[0], reports[-1]))
    more = reports[-1]["check"]["true"] - reports[0]["check"]["true"]
    return None if first is None or last is None or more <= 0 else (last - first) * _MIB / more


def _verdict(reports: Sequence[dict[str, Any]]) -> list[str]:
    """What the table says, in words."""
    wrong = [report for report in reports if not Check(**report["check"]).is_right]
    lines = [f"WRONG at {report['side']} px: {report['check']}" for report in wrong]
    highest = max((peak, role, report["side"]) for report in reports for role, peak in report["peaks"].items())
    met = "met" if highest[0] < _MOST else "NOT MET"
    lines.append(f"largest: {highest[0]:.0f} MiB, {highest[1]} at {highest[2]} px: {met} (below {_MOST} MiB)")
    for role in _roles(reports):
        first, last = (report["peaks"].get(role) for report in (reports[0], reports[-1]))
        if first and last and last > _FLAT * first:
            growth = _bytes_per_object(role, reports)
            per = "" if growth is None else f", {growth:.0f} bytes per further object"
            lines.append(f"{role} grows to {last / first:.2f} times{per}")
    if len(reports) > 1 and not any("grows" in line for line in lines):
        lines.append(f"every process is flat within {100 * (_FLAT - 1):.0f} %")
    return lines
