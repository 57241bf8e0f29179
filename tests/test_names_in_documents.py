"""Modules, functions and files that documents, scripts and settings name are there: a move that forgets one fails here."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.support import ROOT

# CHANGELOG.md tells of modules that have moved since.
PATTERNS = (
    "README.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml", ".ci/*", "docs/**/*.md", "docs/**/*.toml", "infra/**/*",
    "deployments/*", "flows/**/*", "tasks/**/*", "benchmarks/**/*.py", "tests/**/*.py",
)  # fmt: skip
SUFFIXES = {"", ".cfg", ".def", ".example", ".in", ".md", ".py", ".service", ".sh", ".toml", ".yaml"}
DOTTED = re.compile(r"(?<![\w.])slidesam\.(?:flows|tasks)(?:\.[A-Za-z_]\w*)*")
IN_FOLDERS = re.compile(r"(?<![\w./-])(?:tasks|flows|tests|benchmarks)/[\w/*-]+\.(?:py|yaml)\b")
TEST_FILE = re.compile(r"(?<![\w/])test_\w+\.py\b")


def documents() -> list[Path]:
    found = {path for pattern in PATTERNS for path in ROOT.glob(pattern)}
    # This file names what isn't there, to show that it is noticed.
    return sorted(path for path in found - {Path(__file__)} if path.is_file() and path.suffix in SUFFIXES)


@cache
def module_file(name: str) -> Path | None:
    """The file of a module, given by its name without `slidesam.`."""
    path = ROOT.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@cache
def defined_in(path: Path) -> set[str]:
    """Names that a module defines or imports on its first level."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return names


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")[1:]
    for length in range(len(parts), 0, -1):
        file = module_file(".".join(parts[:length]))
        if file is not None:
            return length == len(parts) or parts[length] in defined_in(file)
    return False


def missing_names(text: str) -> list[str]:
    """Names in a text of which nothing is there."""
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    return [
        *(name for name in DOTTED.findall(text) if not is_there(name)),
        *(path for path in IN_FOLDERS.findall(text) if not any(ROOT.glob(path))),
        *(name for name in TEST_FILE.findall(text) if name not in tests),
    ]


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_is_there(document: Path) -> None:
    assert missing_names(document.read_text()) == []


def test_a_wrong_name_is_noticed() -> None:
    wrong = ["slidesam.tasks.nothing", "slidesam.tasks.errors.Nothing", "flows/nothing.py", "test_nothing_of_it.py"]
    right = ["slidesam.tasks", "slidesam.tasks.errors.SlideError", "slidesam.flows.cluster.on_worker", "flows/*.py"]
    assert missing_names(" ".join([*wrong, *right])) == wrong
