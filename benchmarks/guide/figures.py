"""Figures 1 to 4: time and objects per shape of tile, by sequential micro-sam, the guide's way and slidesam.

1, 2. Per shape of tile: micro-sam on the whole image, slidesam with some numbers of workers.
3, 4. Per size of chunk and shape of tile: slidesam with one number of workers, and how many objects the guide's way counts on
      the same chunks.

What figure 1 compares is measured several times, in turns, since a machine is faster at some times than at others; medians count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from benchmarks.guide.case import Case, tiling_of
from benchmarks.guide.ours import run_ours, threads_each
from benchmarks.guide.report import Report, Row, Table, number, percent, say
from benchmarks.guide.sequential import Job, run_sequential

SEQUENTIAL, GUIDE, OURS = "micro-sam alone", "the guide's way", "slidesam"


@dataclass(frozen=True)
class Plan:
    """What is measured for figures 1 to 4.

    Attributes:
        tiles: Sides of tiles in pixels.
        chunks: Sides of chunks in pixels.
        workers: Numbers of workers of figures 1 and 2.
        chunk: Side of chunks of figures 1 and 2.
        most: Number of workers of figures 3 and 4.
        fitted: See `case.tiling_of`.
        rounds: How often what figure 1 compares is measured.
    """

    tiles: Sequence[int]
    chunks: Sequence[int]
    workers: Sequence[int]
    chunk: int
    most: int
    fitted: bool
    rounds: int = 1

    def ours(self) -> Iterator[tuple[int, int, int]]:
        """Tile, chunk and workers of each of slidesam's runs, each once."""
        wanted = [(tile, self.chunk, workers) for workers in self.workers for tile in self.tiles if tile <= self.chunk]
        wanted += [(tile, chunk, self.most) for tile, chunk in self.pairs()]
        return iter(dict.fromkeys(wanted))

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Tile and chunk of figures 3 and 4."""
        return ((tile, chunk) for chunk in self.chunks for tile in self.tiles if tile <= chunk)


def measure(case: Case, plan: Plan, report: Report) -> None:
    """Measures what the report hasn't yet."""
    whole = [Job(tile, tile // 4) for tile in plan.tiles]
    # A chunk as large as the image is the image.
    chunks = [Job(tile, tile // 4, chunk) for tile, chunk in plan.pairs() if chunk < max(case.shape)]
    for turn in range(plan.rounds):
        _measure_sequential(case, whole if turn else whole + chunks, report, turn)
        for tile, chunk, workers in plan.ours():
            key = {
                "method": OURS,
                "tile": tile,
                "chunk": chunk,
                "workers": workers,
                "threads": threads_each(case, workers),
            }
            is_compared = chunk == plan.chunk and workers in plan.workers
            if _is_due(report, key, turn if is_compared else 0):
                tiling = tiling_of(chunk, tile, plan.fitted)
                _keep(report, key, run_ours(case, tiling, workers, threads_each(case, workers)))


def _measure_sequential(case: Case, jobs: Sequence[Job], report: Report, turn: int) -> None:
    """Times micro-sam on the jobs that a round lacks, in one process."""

    def key(job: Job) -> dict[str, Any]:
        return {"method": _method(job), "tile": job.tile, "chunk": job.chunk, "workers": 1, "threads": case.threads}

    def take(job: Job, facts: dict[str, Any]) -> None:
        _keep(report, key(job), facts | {"whole": facts["import"] + facts["load"] + facts["segment"]})

    todo = [job for job in jobs if _is_due(report, key(job), turn)]
    if todo:
        run_sequential(case, todo, take)


def _is_due(report: Report, key: dict[str, Any], turn: int) -> bool:
    """Whether a round's measurement is still to be done."""
    row = report.find(**key)
    return row is None or len(row.get("runs", [])) <= turn


def _keep(report: Report, key: dict[str, Any], facts: dict[str, Any]) -> None:
    """Adds a measurement to its row, which has medians of what was timed."""
    row = report.find(**key) or report.add(key | {"runs": []})
    row.setdefault("runs", []).append(facts)
    timed = {name for name, value in facts.items() if isinstance(value, float)}
    row |= facts | {name: median(run[name] for run in row["runs"]) for name in timed}
    report.save()
    _tell(row | facts)


def _method(job: Job) -> str:
    return SEQUENTIAL if job.chunk is None else GUIDE


def _tell(row: Row) -> None:
    where = f"chunk {row['chunk']}, " if row["chunk"] else ""
    who = f"{row['workers']} × {row['threads']} threads"
    say(f"{row['method']}, {where}tile {row['tile']}, {who}: {row['segment']:.1f} s, {row['objects']} objects")


def tables(report: Report, plan: Plan) -> list[Table]:
    """The tables of figures 1 and 2, and of 3 and 4."""
    return [_first(report, plan), _second(report, plan)]


def _first(report: Report, plan: Plan) -> Table:
    columns = (
        "tile", "method", "workers × threads", "encoder passes", "loading s", "segmenting s", "whole s",
        "speed-up, segmenting", "speed-up, whole", "objects", "more objects %", "workers busy %",
    )  # fmt: skip
    rows: list[Sequence[Any]] = []
    for tile in plan.tiles:
        alone = report.find(method=SEQUENTIAL, tile=tile)
        if alone is not None:
            rows.append([str(tile), *_cells(alone, alone)])
        for workers in plan.workers:
            row = report.find(method=OURS, tile=tile, chunk=plan.chunk, workers=workers)
            if row is not None and alone is not None:
                rows.append(["", *_cells(row, alone)])
    return Table(f"figures 1 and 2: whole image, chunk {plan.chunk} px", columns, rows, _averages(report, plan))


def _cells(row: Row, alone: Row) -> list[Any]:
    is_alone = row is alone
    return [
        row["method"], f"{row['workers']} × {row['threads']}", row["passes"],
        row["load"] + row.get("import", 0.0), row["segment"], row["whole"],
        None if is_alone else alone["segment"] / row["segment"],
        None if is_alone else alone["whole"] / row["whole"],
        row["objects"],
        None if is_alone else _signed(percent(row["objects"], alone["objects"])),
        None if is_alone else f"{100 * row['busy']:.0f}",
    ]  # fmt: skip


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"


def _averages(report: Report, plan: Plan) -> str:
    """As the guide has them: means over the shapes of tile."""
    lines = []
    for workers in plan.workers:
        pairs = [
            (row, alone)
            for tile in plan.tiles
            if (row := report.find(method=OURS, tile=tile, chunk=plan.chunk, workers=workers))
            and (alone := report.find(method=SEQUENTIAL, tile=tile))
        ]
        if pairs:
            faster, whole = (mean(a[key] / r[key] for r, a in pairs) for key in ("segment", "whole"))
            more = [percent(row["objects"], alone["objects"]) for row, alone in pairs]
            objects = mean(value for value in more if value is not None) if any(v is not None for v in more) else 0.0
            lines.append(
                f"{workers} worker{'s' * (workers > 1)}, mean over tiles: {faster:.2f} × as fast "
                f"({whole:.2f} × from start to end), {objects:+.1f} % objects"
            )
    if plan.rounds > 1:
        lines.append(f"medians of {plan.rounds}, in turns; segmenting took {_ranges(report, plan)}")
    return "\n".join(lines)


def _ranges(report: Report, plan: Plan) -> str:
    """From the fastest to the slowest of each row of figure 1."""
    texts = []
    for row in report.rows:
        seconds = [run["segment"] for run in row.get("runs", [])]
        if len(seconds) > 1:
            who = row["method"] if row["method"] == SEQUENTIAL else f"{OURS} {row['workers']} × {row['threads']}"
            tile = f", tile {row['tile']}" if len(plan.tiles) > 1 else ""
            texts.append(f"{who}{tile} {min(seconds):.1f} to {max(seconds):.1f} s")
    return "; ".join(texts)


def _second(report: Report, plan: Plan) -> Table:
    columns = (
        "chunk", "tile", "encoder passes", "segmenting s", "whole s", "objects", "of the whole image by micro-sam",
        "the guide's way", "more objects there %", "slidesam %", "the guide's way, one process s",
    )  # fmt: skip
    rows: list[Sequence[Any]] = []
    for tile, chunk in plan.pairs():
        row = report.find(method=OURS, tile=tile, chunk=chunk, workers=plan.most)
        alone = report.find(method=SEQUENTIAL, tile=tile)
        guide = report.find(method=GUIDE, tile=tile, chunk=chunk) or alone
        if row is None or alone is None or guide is None:
            continue
        rows.append([
            str(chunk), str(tile), row["passes"], row["segment"], row["whole"], row["objects"], alone["objects"],
            guide["objects"], *(_signed(percent(each["objects"], alone["objects"])) for each in (guide, row)),
            guide["segment"],
        ])  # fmt: skip
    below = (
        f"objects against sequential micro-sam's on the whole image; threads of all: {number(report.about['threads'])}"
    )
    return Table(f"figures 3 and 4: slidesam, {plan.most} workers", columns, rows, below)
