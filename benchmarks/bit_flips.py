"""Flip one bit in each kind of file that a run writes, before and after its end, and run the same command again.

Files are also cut to length 0 and deleted, once each kind. What the outcomes mean: `OUTCOMES` in tests/support/damage.py.

    .venv/bin/python -m benchmarks.bit_flips --flips 200
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter, defaultdict
from itertools import cycle, islice
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

import slidesam
from tests.support.damage import GOOD, OUTCOMES, Damage, Snapshot, judge, run_forked, snapshots_after_renames
from tests.support.result_bytes import find_difference, find_volatile_keys, read_result
from tests.support.slides import write_blobs

SETTINGS = {
    "segmenter": {"kind": "watershed"},
    "blocks": {"block_shape": 256, "halo": 32},
    "run": {"retries": 1, "retry_delay": 0},
}


def take_snapshots(slide: Path, folder: Path, count: int, chance: random.Random) -> list[Snapshot]:
    """Segment a slide; return its output folder at moments of chance, and at the end."""
    output, names = folder / "out", []

    def note(name: str) -> bool:
        names.append(name)
        return False

    patch = pytest.MonkeyPatch()
    with snapshots_after_renames(folder / "try", folder, note, patch):
        slidesam.segment(slide, folder / "try", SETTINGS, progress=False)
    moments = set(chance.sample(range(len(names)), min(count, len(names))))
    numbers = iter(range(10**9))
    with snapshots_after_renames(output, folder / "taken", lambda _: next(numbers) in moments, patch) as taken:
        slidesam.segment(slide, output, SETTINGS, progress=False)
    return [*taken, Snapshot("end", output.rename(folder / "end"))]


def list_cases(
    snapshots: list[Snapshot], flips: int, chance: random.Random
) -> list[tuple[str, Damage, Snapshot, Path]]:
    """List what is damaged: so many flips, spread over the kinds, and each kind cut to 0 and deleted once."""
    places: dict[str, list[tuple[Snapshot, list[Path]]]] = defaultdict(list)
    for snapshot in snapshots:
        for kind, paths in snapshot.kinds().items():
            places[f"{'after ' if snapshot.is_finished else 'before'} {kind}"].append((snapshot, paths))
    kinds = sorted(places)
    damages: list[tuple[str, Damage]] = [(kind, "flip") for kind in islice(cycle(kinds), flips)]
    damages += [(kind, damage) for kind in kinds for damage in ("truncate", "delete")]
    cases = []
    for kind, damage in damages:
        # Soon after a file is written it is still needed.
        snapshot, paths = chance.choice(places[kind][:3])
        cases.append((kind, damage, snapshot, chance.choice(paths)))
    return cases


def main() -> None:
    """Damage, run again, and print a table by kind of file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=120, help="after which a run counts as stuck")
    parser.add_argument("--list", action="store_true", help="name each case that isn't equal")
    options = parser.parse_args()
    console, chance = Console(highlight=False, width=180), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = write_blobs(folder / "slide.tif", 768)
        snapshots = take_snapshots(slide, folder, 24, chance)
        expected, again = read_result(snapshots[-1].folder), read_result(folder / "try")
        expected.ignore(find_volatile_keys(expected, again))
        if difference := find_difference(expected, again):
            raise SystemExit(f"two undisturbed runs differ: {difference}")
        run, counts = run_forked(slide, SETTINGS, options.seconds), defaultdict[str, Counter[str]](Counter)
        for kind, damage, snapshot, path in list_cases(snapshots, options.flips, chance):
            outcome, said = judge(snapshot, path, damage, chance, folder / "out", run, expected)
            counts[kind][outcome] += 1
            counts[damage][outcome] += 1
            if options.list and outcome not in OUTCOMES[:1]:
                console.print(f"{outcome:20} {kind[:6]} {said[:400]}", markup=False, soft_wrap=True)
    print_table(console, counts)
    if any(
        count
        for damage in ("flip", "truncate", "delete")
        for outcome, count in counts[damage].items()
        if outcome not in GOOD
    ):
        raise SystemExit("FAILED")


def print_table(console: Console, counts: dict[str, Counter[str]]) -> None:
    """Print how many cases came out how, by kind of file, and by kind of damage in the end."""
    table = Table("file", *OUTCOMES, box=None)
    for name in sorted(counts, key=lambda name: (" " not in name, name)):
        table.add_row(name, *(str(counts[name][outcome] or "") for outcome in OUTCOMES))
    console.print(table)


if __name__ == "__main__":
    main()
