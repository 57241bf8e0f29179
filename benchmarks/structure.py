"""Measure how the code is laid out: sizes of files, functions and folders, names, untyped mappings, duplicates.

Compare two trees by naming both; the first column is the older one.

    .venv/bin/python -m benchmarks.structure [TREE ...]      # without a tree: this checkout
"""

from __future__ import annotations

import argparse
import ast
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
CODE = ("api", "flows", "tasks")
# Pronouns, adverbs and participles: names that do not say which thing they hold.
VAGUE = frozenset(
    """
    about after again all allowed alone already anew around asked at_once back before begun beside both by came changed
    chosen done each earlier else ended enough every found from_now given gone have held here how into is_there it kept
    known last_time left less listed made many marked meant more most named next_one none noted now old one ones other
    others own rest said same seen several shown so some started such that them then there these they this those told
    took used wanted was went what when where which while who whole why with_it within words
    """.split()  # noqa: SIM905 (a list of them would take a line each)
)


class Function(NamedTuple):
    """One function of the code: where it is and how many lines it has."""

    lines: int
    place: str


def python_files(tree: Path, *folders: str) -> list[Path]:
    """Return the Python files below some folders of a tree, sorted."""
    return sorted(path for folder in folders for path in (tree / folder).rglob("*.py") if ".venv" not in path.parts)


def n_lines(paths: list[Path]) -> int:
    """Return the number of lines of some text files."""
    return sum(len(path.read_bytes().splitlines()) for path in paths)


def infra_files(tree: Path) -> list[Path]:
    """Return the scripts, modules and configuration of `infra/`, without its pages."""
    return [path for path in (tree / "infra").rglob("*") if path.is_file() and path.suffix not in (".md", ".pyc")]


def functions(paths: list[Path], tree: Path) -> Iterator[Function]:
    """Yield all functions, with their docstrings counted."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                yield Function(node.end_lineno - node.lineno + 1, f"{path.relative_to(tree)}:{node.name}")


def bound_names(path: Path) -> Iterator[str]:
    """Yield each name that a file binds: variables, arguments, functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def vague_share(paths: list[Path]) -> float:
    """Return which share of the bound names is vague, from 0 to 1."""
    names = [name.strip("_") for path in paths for name in bound_names(path)]
    return sum(name in VAGUE for name in names) / max(1, len(names))


def public_names(paths: list[Path]) -> dict[str, list[Path]]:
    """Return the files that define each public function or class at their top level."""
    places: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
                places[node.name].append(path)
    return places


def count_text(paths: list[Path], text: str) -> int:
    """Return how often a text occurs."""
    return sum(path.read_text().count(text) for path in paths)


def duplicate_pairs(tree: Path) -> str:
    """Return the number of pairs of places that share six or more lines, by the command `duplicates` where it is installed."""
    command = shutil.which("duplicates")
    if command is None:
        return "?"
    done = subprocess.run(
        [command, "--repo", str(tree), "--seconds", "120"], capture_output=True, text=True, check=True
    )
    return next((word for word in done.stdout.split() if word.isdecimal()), "?")


def measure(tree: Path) -> dict[str, str]:
    """Return all measures of a tree in words."""
    code, tests = python_files(tree, *CODE), python_files(tree, "tests")
    folders = Counter(path.parent for path in code if path.name != "__init__.py")
    folder, n_files = folders.most_common(1)[0]
    largest = max(code, key=lambda path: n_lines([path]))
    longest = max(functions(code, tree))
    twice = [name for name, places in public_names(code).items() if len(places) > 1]
    rows = {f"lines of {name}/": f"{n_lines(python_files(tree, name)):,}" for name in (*CODE, "tests")}
    return rows | {
        "lines of infra/": f"{n_lines(infra_files(tree)):,}",
        "lines of api, flows, tasks, infra, tests": f"{n_lines([*code, *tests, *infra_files(tree)]):,}",
        "files in the largest folder": f"{n_files} ({folder.relative_to(tree)}/)",
        "lines of the largest file": f"{n_lines([largest])} ({largest.relative_to(tree)})",
        "files of more than 360 lines": str(sum(n_lines([path]) > 360 for path in code)),
        "lines of the longest function": f"{longest.lines} ({longest.place})",
        "vague names in flows/": f"{100 * vague_share(python_files(tree, 'flows')):.1f} %",
        "vague names in tasks/": f"{100 * vague_share(python_files(tree, 'tasks')):.1f} %",
        "`dict[str, Any]`": str(count_text(code, "dict[str, Any]")),
        "context variables": str(count_text(code, "ContextVar(") + count_text(code, "ContextVar[")),
        "public names in more than one module": str(len(twice)),
        "pairs of duplicated places": duplicate_pairs(tree),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="*", type=Path, default=[ROOT])
    trees = [tree.resolve() for tree in parser.parse_args().trees]
    columns = [measure(tree) for tree in trees]
    table = Table("measure", *(str(number) for number in range(1, len(trees) + 1)))
    for name in columns[-1]:
        table.add_row(*map(escape, [name, *(column[name] for column in columns)]))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
