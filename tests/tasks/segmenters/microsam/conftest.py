"""Caches of weights and a server that they are fetched from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from slidesam.tasks.segmenters.microsam.registry import OVERRIDES
from tests.flows.cli.test_app import slidesam as run_slidesam
from tests.support.weights_mirror import CONTENTS, Mirror


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    started = Mirror(tmp_path, CONTENTS)
    yield started
    started.stop()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """micro-sam's cache of this test, empty; its folder of models isn't there yet."""
    monkeypatch.setenv("MICROSAM_CACHEDIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fetched(cache: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of models with what the mirror's registry names, put there by hand."""
    monkeypatch.setenv(OVERRIDES, str(mirror.file))
    (cache / "models").mkdir(parents=True)
    for name, data in CONTENTS.items():
        (cache / "models" / name).write_bytes(data)
    return cache / "models"


@pytest.fixture
def slidesam(tmp_path: Path, mirror: Mirror):
    """The command, with the mirror's registry and no proxy."""
    return partial(run_slidesam, home=tmp_path / "home", **{OVERRIDES: str(mirror.file), "NO_PROXY": "127.0.0.1"})
