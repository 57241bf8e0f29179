"""Runs that are disturbed at random, the same command again each time: equal results, nothing finished done twice, nothing left.

Each run draws one or two disturbances from its seed, starts the command, disturbs it at a random moment, lets it end or ends it,
and gives the same command again. The last time it is left alone. Disturbances:

    kill flow | server | worker | group     SIGKILL (the flow's process holds Dask's scheduler, and local workers' nannies)
    stop flow | server | worker             SIGSTOP for some seconds, then SIGCONT
    stop for good                           SIGSTOP of a member; the group is killed some seconds later, as a person would
    disk                                    the output's disk is full until the command has ended (root: a tmpfs)
    clock                                   time.time() of all its processes jumps by hours, to and fro
    network                                 its loopback, or one node's link, is gone for some seconds (root)
    kill | stop nanny, cancel job           on Slurm (--slurm): a job's first process; scancel

A block is done twice if the segmenter is called for it while its result is on disk; the segmenter logs that. The moment is drawn
from the time that an undisturbed run takes, or is when some number of blocks has been computed.

    make chaos        (or: .venv/bin/python -m benchmarks.chaos --runs 100 --seed 1; --slurm with infra/dev-slurm)
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.chaos.run import Outcome, run_once, run_undisturbed
from benchmarks.chaos.scene import Scene, SlurmScene


def make_table(outcomes: list[Outcome]) -> Table:
    """Make the table of all runs."""
    table = Table(box=None)
    for column in ("seed", "disturbances", "exit codes", "equal", "twice", "left over", "s"):
        table.add_column(column)
    for outcome in outcomes:
        table.add_row(
            str(outcome.seed), ", ".join(outcome.deeds), " ".join(map(str, outcome.exits)), "yes" if outcome.is_equal else "NO",
            str(outcome.twice), "; ".join(outcome.leftovers) or "0", f"{outcome.seconds:.0f}",
        )  # fmt: skip
    return table


def main() -> None:
    """Runs all seeds, two at once, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1, help="seed of the first run; the others follow")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--only", default="", help='disturbances of each run, such as "kill flow,disk"')
    parser.add_argument("--slurm", action="store_true", help="in jobs of infra/dev-slurm, which has to run")
    chosen = parser.parse_args()
    console, kind = Console(highlight=False, width=150), SlurmScene if chosen.slurm else Scene
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(chosen.at_once) as pool:
        usual = run_undisturbed(kind, Path(name) / "scene")
        console.print(f"undisturbed: {usual.seconds:.0f} s; disturbances: {', '.join(kind.deeds)}")
        deeds = [deed for deed in chosen.only.split(",") if deed]
        seeds = range(chosen.seed, chosen.seed + chosen.runs)
        outcomes = []
        for outcome in pool.map(partial(run_once, kind, usual=usual, deeds=deeds), seeds):
            outcomes.append(outcome)
            console.print(make_table([outcome]))
    console.print(make_table(outcomes))
    bad = [outcome.seed for outcome in outcomes if not outcome.is_good]
    console.print(f"{len(outcomes)} runs, {len(bad)} bad: {bad}")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
