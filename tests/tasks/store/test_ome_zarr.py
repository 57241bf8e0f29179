"""The list of label images, and how a process that used zarr ends."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from slidesam.tasks.settings.sections import ImageSettings
from slidesam.tasks.store import ome_zarr

# zarr's thread is at work, for longer than zarr waits, as the process ends.
BUSY = """
import time
{ours}
from zarr.core import sync
async def nothing(): pass
sync.sync(nothing())
sync.loop[0].call_soon_threadsafe(time.sleep, 1.0)
"""


def ended(ours: str) -> str:
    code = BUSY.format(ours=ours)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=True).stderr


def test_nothing_is_said_where_zarrs_thread_takes_its_time() -> None:
    assert "Cannot close a running event loop" in ended("")
    assert ended("import slidesam.tasks.store.ome_zarr") == ""


@pytest.mark.parametrize(("first_is_removed", "listed"), [(False, ["a", "b"]), (True, ["b"])])
def test_of_two_labels_at_once_none_undoes_the_others_entry(
    first_is_removed: bool, listed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = ImageSettings()
    root = ome_zarr.create_store(tmp_path / "s.ome.zarr", image, tmp_path / "s.tif")
    for label in ("a", "b"):
        ome_zarr.create_label(root, label, (300, 300), (256, 256), np.dtype(np.uint32), image)
    if first_is_removed:
        ome_zarr.finish_label(root, "a", None)
    read = ome_zarr.listed_labels

    def read_slowly(store: zarr.Group) -> list[str]:
        names = read(store)
        time.sleep(0.3)
        return names

    monkeypatch.setattr(ome_zarr, "listed_labels", read_slowly)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(ome_zarr.remove_label if first_is_removed else finish_without_size, root, "a")
        second = threads.submit(finish_without_size, root, "b")
        first.result()
        second.result()
    assert read(root) == listed


def finish_without_size(root: zarr.Group, label: str) -> None:
    ome_zarr.finish_label(root, label, None)
