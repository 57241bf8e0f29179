"""The list of label images, and how a process that used zarr ends."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from slidesam.tasks.errors import DamagedError, OutputError
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


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_a_label_image_whose_metadata_is_damaged_is_called_so(version: str, tmp_path: Path) -> None:
    image = ImageSettings(ome_zarr=version)
    root = ome_zarr.create_store(tmp_path / "s.ome.zarr", image, tmp_path / "s.tif")
    ome_zarr.create_label(root, "a", (300, 300), (256, 256), np.dtype(np.uint32), image)
    (path,) = (path for path in (tmp_path / "s.ome.zarr/labels/a").glob("*") if path.name in ("zarr.json", ".zgroup"))
    text = path.read_bytes()
    for key in (b"attributes", b"zarr_format", b"node_type"):
        path.write_bytes(text.replace(key, key[:-1] + bytes([key[-1] ^ 1])))
        if path.read_bytes() != text:
            with pytest.raises(DamagedError, match="labels/a has damaged metadata"):
                finish_without_size(root, "a")
    path.write_bytes(text)
    finish_without_size(root, "a")


@pytest.mark.parametrize("old", [b"attributes", b"slidesam", b"s.tif", b"group", b"{"])
def test_a_damaged_root_of_ours_is_not_taken_for_another_s(old: bytes, tmp_path: Path) -> None:
    store, slide, image = tmp_path / "s.ome.zarr", tmp_path / "s.tif", ImageSettings()
    ome_zarr.create_store(store, image, slide)
    whole = (store / "zarr.json").read_bytes()
    damaged = whole.replace(old, bytes([old[0] ^ 1]) + old[1:])
    (store / "zarr.json").write_bytes(damaged)
    with pytest.raises(DamagedError, match="has damaged metadata: run the same command again"):
        ome_zarr.create_store(store, image, slide)
    assert ome_zarr.is_damaged_root(store, slide)
    ome_zarr.recreate_root(store, image, slide)
    assert (store / "zarr.json").read_bytes() == whole
    # A store of somebody else's stays one.
    shutil.rmtree(tmp_path / ".slidesam")
    (store / "zarr.json").write_bytes(damaged)
    assert not ome_zarr.is_damaged_root(store, slide)
    with pytest.raises(OutputError, match=r"wasn't made by slidesam|no Zarr group|holds results of"):
        ome_zarr.create_store(store, image, slide)
