"""The examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

from tests.support import ROOT


def modules() -> list[str]:
    paths = [*(ROOT / "tasks").rglob("[a-z]*.py"), *(ROOT / "flows").rglob("[a-z]*.py")]
    return sorted("slidesam." + ".".join(Path(path.relative_to(ROOT)).with_suffix("").parts) for path in paths)


@pytest.mark.parametrize("name", modules())
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_examples_hold(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples() -> None:
    assert (
        sum(
            doctest.testmod(importlib.import_module(f"slidesam.tasks.{name}")).attempted
            for name in ("grid", "settings.parse")
        )
        > 3
    )
