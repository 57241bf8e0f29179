"""What several test files of clusters need."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidesam.flows.cluster.keys import make_keys, write_secret


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key of the cluster."""
    path = tmp_path_factory.mktemp("keys") / "keys.pem"
    write_secret(path, make_keys())
    return path
