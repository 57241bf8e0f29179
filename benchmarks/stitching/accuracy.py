"""Accuracy: every method on the same blocks of every scene, seen perfectly and with noise, against the truth.

Seeds are drawn anew on every run and printed, so that nothing can have been fitted to them and any run can be repeated.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fastremap
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.stitching.case import Case
from benchmarks.stitching.make import make_case
from benchmarks.stitching.noise import PERFECT, Noise
from benchmarks.stitching.run_method import (
    FLOW,
    METHODS,
    PEERS,
    PLAIN,
    SLIDESAM,
    add_options,
    open_plane,
    peak_mib,
    run,
    runnable,
)
from benchmarks.stitching.scenes import SCENES
from benchmarks.stitching.score import Score, score

NOISES = {"perfect": PERFECT, "noisy": Noise()}
_WIDTH = 150
_ERROR_WIDTH = 70


class Column(NamedTuple):
    """One thing that is counted: its field of `Score`, its heading, and which end of it is the better one."""

    field: str
    heading: str
    more_is_better: bool

    def best(self, values: Sequence[float]) -> float:
        """The best of some values."""
        return max(values) if self.more_is_better else min(values)

    def is_worse(self, ours: float, other: float) -> bool:
        """Whether the other value is better than ours."""
        return ours < other if self.more_is_better else ours > other

    def show(self, value: float) -> str:
        """A value as it is printed."""
        return f"{100 * value:.3f}" if self.field == "lost" else f"{value:.0f}"


COLUMNS = (
    Column("found", "found", True),
    Column("exact", "exact", True),
    Column("good", "IoU > 0.5", True),
    Column("merges", "false merges", False),
    Column("splits", "splits", False),
    Column("lost", "lost %", False),
)


class Result(NamedTuple):
    """What one method made of one scene with one kind of noise, over all seeds.

    Attributes:
        name: The method, with its version if it has one.
        scores: By seed; empty where the method failed.
        seconds: Mean of a seed's.
        mib: Largest peak memory of a process.
        error: What it failed with on any of the seeds, or "".
    """

    name: str
    scores: list[Score]
    seconds: float = 0
    mib: float = 0
    error: str = ""

    def total(self, field: str) -> float:
        """The sum over the seeds; of what is a share, the mean."""
        values = [getattr(each, field) for each in self.scores]
        # A share's last digits depend on the order of adding up.
        return round(sum(values) / len(values), 9) if field == "lost" else sum(values)


class Outcome(NamedTuple):
    """One scene with one kind of noise.

    Attributes:
        scene: One of `SCENES`.
        noise: One of `NOISES`.
        objects: How many true ones there are, over all seeds.
        results: By method.
        merging: Peers that make false merges on the perfect scene.
    """

    scene: str
    noise: str
    objects: int
    results: dict[str, Result]
    merging: frozenset[str]

    @property
    def scored(self) -> dict[str, Result]:
        """Results of the methods that didn't fail."""
        return {method: result for method, result in self.results.items() if not result.error}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what this command takes."""
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--seed", type=int, metavar="FIRST", help="the first of them (default: drawn by chance)")
    parser.add_argument("--scenes", nargs="+", choices=list(SCENES), default=list(SCENES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[name for name in METHODS if name != FLOW])
    parser.add_argument("--side", type=int, default=2048, help="of a scene, in pixels (default: %(default)s)")
    parser.add_argument("--block", type=int, default=256, help="side of a block, in pixels (default: %(default)s)")
    parser.add_argument("--halo", type=int, default=32, help="in pixels (default: %(default)s)")
    add_options(parser)


def run_command(chosen: argparse.Namespace) -> None:
    """Prints a table per scene and kind of noise, and the verdicts on slidesam."""
    console = Console(width=_WIDTH)
    methods, missing = runnable(chosen.methods, chosen.peers)
    first = secrets.randbelow(2**31) if chosen.seed is None else chosen.seed
    seeds = range(first, first + chosen.seeds)
    console.print(f"Seeds {', '.join(map(str, seeds))}: again with --seed {first} --seeds {chosen.seeds}")
    outcomes = []
    for scene in chosen.scenes:
        merging: frozenset[str] = frozenset()
        for noise in NOISES:
            outcome = _measure(scene, noise, seeds, methods, chosen)
            if noise == "perfect":
                merging = frozenset(m for m in PEERS if m in outcome.scored and outcome.scored[m].total("merges"))
            outcome = outcome._replace(merging=merging)
            outcomes.append(outcome)
            console.print(_table(outcome, len(seeds)))
            for line in _verdict(outcome):
                console.print(line, markup=False, soft_wrap=True)
            console.print()
    console.print(_summary(outcomes))
    if missing:
        console.print(missing)
    if chosen.json:
        chosen.json.write_text(json.dumps(_as_json(seeds, outcomes), indent=1) + "\n")


def _measure(
    scene: str, noise: str, seeds: Sequence[int], methods: Sequence[str], chosen: argparse.Namespace
) -> Outcome:
    """Runs all methods on one scene, seed by seed."""
    objects, runs = 0, {method: list[tuple[dict[str, Any], Score | None]]() for method in methods}
    folder = chosen.scratch / "accuracy"
    for seed in seeds:
        case = make_case(
            folder / "case", scene, NOISES[noise], seed, side=chosen.side, block=chosen.block, halo=chosen.halo
        )
        truth = case.truth()
        objects += int(truth.max())
        for method in methods:
            print(f"{scene}, {noise}, seed {seed}: {method}", file=sys.stderr)
            runs[method].append(_scored(method, case, truth, folder / "out.zarr", chosen))
    return Outcome(scene, noise, objects, {method: _result(method, runs[method]) for method in methods}, frozenset())


def _scored(
    method: str, case: Case, truth: NDArray[np.uint32], out: Path, chosen: argparse.Namespace
) -> tuple[dict[str, Any], Score | None]:
    """What an adapter reports, and its result's score unless it failed."""
    report = run(method, case, out, peers=chosen.peers, timeout=chosen.timeout)
    if "error" in report:
        return report, None
    try:
        return report, score(truth, read_labels(out, case.shape))
    except (OSError, ValueError) as error:
        return {**report, "error": f"no result that can be scored: {error}"}, None


def read_labels(out: Path, shape: tuple[int, int]) -> NDArray[np.unsignedinteger]:
    """(y, x) what a method wrote, its objects numbered 1..N.

    Raises:
        ValueError: It has not the shape of the case.
    """
    labels = np.asarray(open_plane(out)[...])
    if labels.shape[-2:] != shape or labels.size != shape[0] * shape[1]:
        raise ValueError(f"{labels.shape} pixels instead of {shape}")
    # Numbers may have gaps of any size, and be of any type.
    return np.asarray(fastremap.renumber(labels.reshape(shape), preserve_zero=True)[0])


def _result(method: str, runs: Sequence[tuple[dict[str, Any], Score | None]]) -> Result:
    name = f"{method} {next((report['version'] for report, _ in runs if report.get('version')), '')}".strip()
    errors = [report["error"] for report, _ in runs if "error" in report]
    if errors:
        often = f" (on {len(errors)} of {len(runs)} seeds)" if len(errors) < len(runs) else ""
        return Result(name, [], error=errors[0] + often)
    scores = [found for _, found in runs if found is not None]
    seconds = sum(report["seconds"] for report, _ in runs) / len(runs)
    return Result(name, scores, seconds, max(peak_mib(report) for report, _ in runs))


def _table(outcome: Outcome, n_seeds: int) -> Table:
    table = Table(
        title=f"{outcome.scene}, {outcome.noise}: {outcome.objects} true objects in {n_seeds} seeds",
        caption="sums over the seeds; mean of lost and seconds, largest peak; bold: the best",
    )
    failed = any(result.error for result in outcome.results.values())
    headings = ["objects", *(column.heading for column in COLUMNS), "seconds", "peak MiB"]
    table.add_column("method")
    for heading in headings:
        table.add_column(heading, justify="right")
    if failed:
        table.add_column("error", max_width=_ERROR_WIDTH)
    best = {c: c.best([r.total(c.field) for r in outcome.scored.values()]) for c in COLUMNS if outcome.scored}
    for result in outcome.results.values():
        cells = [""] * len(headings) if result.error else _cells(result, best)
        table.add_row(result.name, *cells, *[Text(result.error)] * failed)
    return table


def _cells(result: Result, best: Mapping[Column, float]) -> list[str]:
    counts = []
    for column, leader in best.items():
        value = result.total(column.field)
        counts.append(f"[bold]{column.show(value)}[/bold]" if value == leader else column.show(value))
    return [f"{result.total('objects'):.0f}", *counts, f"{result.seconds:.2f}", f"{result.mib:.0f}"]


def _verdict(outcome: Outcome) -> list[str]:
    """What the table says of slidesam, in words."""
    ours = outcome.results.get(SLIDESAM)
    if ours is None:
        return []
    if ours.error:
        return [f"slidesam failed: {ours.error}"]
    scored = outcome.scored
    peers = {method: scored[method] for method in PEERS if method in scored}
    honest = {method: result for method, result in peers.items() if method not in outcome.merging}
    lines = []
    if PLAIN in scored:
        lines.append(f"slidesam beside the plain IoU rule: {_compared(ours, {PLAIN: scored[PLAIN]})}")
    if peers:
        lines.append(f"slidesam beside the best of all peers: {_compared(ours, peers)}")
    if honest and len(honest) < len(peers):
        names = ", ".join(honest)
        lines.append(
            f"slidesam beside peers without false merges on perfect input ({names}): {_compared(ours, honest)}"
        )
    if PLAIN in scored:
        splits, merges = (_beyond(ours, scored[PLAIN], field) for field in ("split_ids", "merged_ids"))
        lines.append(f"splits beyond the plain IoU rule's: {splits} true objects; merges beyond: {merges}")
    return lines


def _compared(ours: Result, others: Mapping[str, Result]) -> str:
    """Where we are behind the best of the others, or that we are not."""
    behind = []
    for column in COLUMNS:
        leader = _leader(column, others)
        if column.is_worse(ours.total(column.field), others[leader].total(column.field)):
            values = [column.show(each.total(column.field)) for each in (ours, others[leader])]
            behind.append(f"{column.heading}: {values[0]}, {leader} {values[1]}")
    return f"worse in {'; '.join(behind)}" if behind else "at least equal in every column"


def _leader(column: Column, others: Mapping[str, Result]) -> str:
    leading = column.best([result.total(column.field) for result in others.values()])
    return next(method for method, result in others.items() if result.total(column.field) == leading)


def _beyond(ours: Result, plain: Result, field: str) -> int:
    """How many true objects we split or merge that the plain rule doesn't."""
    pairs = zip(ours.scores, plain.scores, strict=True)
    return sum(np.setdiff1d(getattr(our, field), getattr(its, field)).size for our, its in pairs)


def _summary(outcomes: Sequence[Outcome]) -> Table:
    table = Table(
        title="slidesam beside all others",
        caption="best: better than all others · equal: none is better · else who is (*: makes false merges on perfect input)",
    )
    table.add_column("scene")
    headings = [*(column.heading for column in COLUMNS), "splits beyond plain", "merges beyond plain"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for outcome in outcomes:
        table.add_row(f"{outcome.scene}, {outcome.noise}", *_summary_cells(outcome, len(headings)))
    return table


def _summary_cells(outcome: Outcome, count: int) -> list[str]:
    others = dict(outcome.scored)
    ours = others.pop(SLIDESAM, None)
    if ours is None:
        return ["no result"] + [""] * (count - 1)
    cells = [_place(column, ours, others, outcome.merging) for column in COLUMNS]
    plain = others.get(PLAIN)
    return [*cells, *("" if plain is None else str(_beyond(ours, plain, f)) for f in ("split_ids", "merged_ids"))]


def _place(column: Column, ours: Result, others: Mapping[str, Result], merging: frozenset[str]) -> str:
    """How we stand in one column."""
    if not others:
        return ""
    value = ours.total(column.field)
    better = {m: r for m, r in others.items() if column.is_worse(value, r.total(column.field))}
    if not better:
        return "equal" if any(r.total(column.field) == value for r in others.values()) else "[bold]best[/bold]"
    honest = {method: result for method, result in better.items() if method not in merging}
    leader = _leader(column, honest or better)
    star = "" if honest else "*"
    shown = f"{column.show(value)}, {leader}{star} {column.show(better[leader].total(column.field))}"
    return f"[red]{shown}[/red]" if honest else f"[yellow]{shown}[/yellow]"


def _as_json(seeds: Sequence[int], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "seeds": list(seeds),
        "outcomes": [
            {
                **outcome._asdict(),
                "merging": sorted(outcome.merging),
                "results": {
                    method: {**result._asdict(), "scores": [_plain_types(each) for each in result.scores]}
                    for method, result in outcome.results.items()
                },
            }
            for outcome in outcomes
        ],
    }


def _plain_types(found: Score) -> dict[str, Any]:
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in found._asdict().items()}
