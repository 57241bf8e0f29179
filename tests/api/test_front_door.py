"""What `import slidesam` gives, and what it doesn't load."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import slidesam
from slidesam.tasks import errors

HEAVY = ("torch", "prefect", "dask", "distributed", "numba", "scipy", "skimage", "zarr", "micro_sam")


def test_importing_it_loads_nothing_heavy() -> None:
    code = f"import sys, slidesam; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


@pytest.mark.parametrize(
    ("use", "unneeded"),
    [
        ("slidesam.Settings, slidesam.SettingsError, slidesam.BlockGrid", HEAVY),
        ("slidesam.inspect, slidesam.open_result, slidesam.Result, slidesam.segment", ("torch", "prefect", "dask")),
        ("slidesam.Profile('local')", ("torch", "prefect", "zarr")),
    ],
)
def test_each_name_loads_only_what_it_needs(use: str, unneeded: tuple[str, ...]) -> None:
    code = f"import sys, slidesam; {use}; print(*(name for name in {unneeded!r} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_all_its_names_are_there() -> None:
    assert [name for name in slidesam.__all__ if getattr(slidesam, name, None) is None] == []
    assert dir(slidesam) == sorted(slidesam.__all__)


def test_all_errors_are_among_its_names() -> None:
    ours = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert ours <= set(slidesam.__all__)


def test_its_version_is_the_installed_one() -> None:
    assert slidesam.__version__ == importlib.metadata.version("slidesam")


def test_a_name_that_it_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'segmentt'"):
        _ = slidesam.segmentt  # type: ignore[attr-defined]
