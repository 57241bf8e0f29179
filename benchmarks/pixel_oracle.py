"""Print the pixel oracle's table: how many combinations of format, compression and colours are read right, refused, or wrong.

    .venv/bin/python -m benchmarks.pixel_oracle [--wrong]      # --wrong: name each that is wrong, or that nobody could write

Misnamed: refused though it can be read, or without the name of what can't be read. Left out: its writer isn't installed. The
combinations, and what is right for each, are those of tests/tasks/slides/test_pixel_oracle.py.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.support.pixel_decoders import PROGRAMS
from tests.support.pixel_files import Combination, missing_programs
from tests.support.pixel_oracle import Verdict, all_combinations, judge

OUTCOMES = ("right", "refused", "misnamed", "wrong", "left out")
FAULTS = ("wrong", "misnamed")


def main() -> None:
    """Judge all combinations and print how many came out how, by writer, and what was wrong, by colours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wrong", action="store_true", help="name each combination that is wrong")
    options = parser.parse_args()
    start = time.perf_counter()
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    kinds: Counter[str] = Counter()
    for combination in all_combinations():
        outcome, reason = _judge(combination)
        outcomes[combination.writer][outcome] += 1
        if outcome in FAULTS:
            kinds[combination.photometric] += 1
        if options.wrong and outcome in (*FAULTS, "left out"):
            print(f"{outcome}: {combination.name}: {reason}")
    _show(outcomes, kinds)
    print(f"{time.perf_counter() - start:.1f} s")


def _judge(combination: Combination) -> tuple[str, str]:
    missing = missing_programs(combination, PROGRAMS)
    if missing:
        return "left out", f"not installed: {', '.join(missing)}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            return judge(combination, Path(folder))
        except Exception as error:  # noqa: BLE001 (whatever a reader raises counts as a wrong result)
            return Verdict("wrong", repr(error))


def _show(outcomes: dict[str, Counter[str]], kinds: Counter[str]) -> None:
    table = Table("writer", "combinations", *OUTCOMES)
    for writer, counts in outcomes.items():
        table.add_row(writer, str(counts.total()), *(str(counts[outcome]) for outcome in OUTCOMES))
    total = sum(outcomes.values(), Counter())
    table.add_section()
    table.add_row("all", str(total.total()), *(str(total[outcome]) for outcome in OUTCOMES))
    console = Console()
    console.print(table)
    if kinds:
        console.print(
            "wrong or misnamed, by colours:", ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        )


if __name__ == "__main__":
    main()
