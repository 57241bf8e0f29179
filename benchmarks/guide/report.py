"""Rows of a measurement: kept as JSON after each, so that a run that is stopped can go on, and printed as tables.

rich is used where it is there: a machine on which only `profile` runs may lack it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.guide.about import caption

Row = dict[str, Any]
# What may differ between a run and the one that goes on from it.
_VOLATILE = ("date", "command", "notes")
_WIDTH, _TABLE_WIDTH = 150, 175


@dataclass
class Table:
    """What is printed.

    Attributes:
        title: Above it.
        columns: Their names; the first ones that hold words are put to the left.
        rows: Texts and numbers; None is left empty.
        below: A line below it, or nothing.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[Any]]
    below: str = ""


class Report:
    """The rows of one part of the measurements.

    Args:
        folder: Where its files are.
        part: Which part: figures, seams, memory, profile.
        about: Facts for the caption.
        resume: Whether to go on from the rows that are there, if they are of the same case.
    """

    def __init__(self, folder: Path, part: str, about: Mapping[str, Any], resume: bool = False) -> None:
        self.part, self.about = part, dict(about)
        self.path = folder / f"{part}.json"
        self.rows: list[Row] = []
        if resume and self.path.exists():
            known = json.loads(self.path.read_text())
            if _same(known["about"], self.about):
                self.rows = known["rows"]

    def find(self, **key: Any) -> Row | None:
        """The row of a key that is there already."""
        return next((row for row in self.rows if all(row.get(name) == value for name, value in key.items())), None)

    def add(self, row: Row) -> Row:
        """Adds a row and writes the file."""
        self.rows.append(row)
        self.save()
        return row

    def save(self) -> None:
        """Writes the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"part": self.part, "about": self.about, "rows": self.rows}
        self.path.write_text(json.dumps(content, indent=1, default=str) + "\n")

    def show(self, tables: Iterable[Table]) -> None:
        """Prints tables and caption, and writes them beside the JSON as text."""
        words = textwrap.fill(caption(self.about), _WIDTH)
        text = "\n\n".join([*(_printed(table) for table in tables), words]) + "\n"
        self.path.with_suffix(".txt").write_text(text)
        print(f"\n{words}\n\nwritten: {self.path} and .txt")


def say(words: str) -> None:
    """A line on what has just been measured."""
    print(words, flush=True)


def number(value: Any) -> str:
    """A number as tables show it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 0.1 else f"{value:,.2f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def percent(value: float, of: float) -> float | None:
    """By how many per cent a value is more than another."""
    return 100 * (value - of) / of if of else None


def _same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether two captions are of one case, as JSON has them."""
    one, other = (
        {key: value for key, value in json.loads(json.dumps(facts, default=str)).items() if key not in _VOLATILE}
        for facts in (before, now)
    )
    return one == other


def _printed(table: Table) -> str:
    """Prints a table; its text."""
    texts = [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in table.rows]
    is_words = [
        any(isinstance(row[index], str) for row in table.rows) and index < 2 for index in range(len(table.columns))
    ]
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        text = _plain(table, texts, is_words)
        print(f"\n{text}")
        return text
    drawn = RichTable(title=table.title, title_justify="left", box=None)
    for column, words in zip(table.columns, is_words, strict=True):
        drawn.add_column(column, justify="left" if words else "right", overflow="fold")
    for row in texts:
        drawn.add_row(*row)
    console = Console(record=True, width=_TABLE_WIDTH)
    console.print()
    console.print(drawn)
    if table.below:
        console.print(table.below, highlight=False)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines()).strip("\n")


def _plain(table: Table, texts: list[list[str]], is_words: list[bool]) -> str:
    cells = [list(table.columns), *texts]
    widths = [max(len(row[index]) for row in cells) for index in range(len(table.columns))]
    lines = [
        "  ".join(
            cell.ljust(width) if words else cell.rjust(width)
            for cell, width, words in zip(row, widths, is_words, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join([table.title, *lines, *([table.below] if table.below else [])])
