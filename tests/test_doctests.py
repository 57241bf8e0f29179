"""The examples in docstrings."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.support import ROOT


def modules() -> list[str]:
    packages = {"slidesam": "api", "slidesam.flows": "flows", "slidesam.tasks": "tasks"}
    return sorted(
        ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts))
        for package, folder in packages.items()
        for path in (ROOT / folder).rglob("[a-z]*.py")
    )


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
