"""`slidesam verify`: the table, what is named, the exit code, and repairing."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import slidesam
from slidesam.flows.cli.app import app
from slidesam.tasks.run.files import read_json, write_json
from slidesam.tasks.run.status import write_state
from slidesam.tasks.store.file_list import describe
from tests.support.serial import segment_serially
from tests.support.slides import write_numbered_slide

SETTINGS = {"segmenter.kind": "watershed", "blocks.block_shape": 64, "blocks.halo": 16}


def verify(*arguments: object) -> tuple[int, str]:
    """Return the exit code, and what is printed, with single spaces: terminals differ in width."""
    result = CliRunner().invoke(app, ["verify", *map(str, arguments)])
    return result.exit_code, " ".join(result.stdout.split())


def test_a_damaged_result_is_named_taken_back_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    slide, out = write_numbered_slide(tmp_path / "s.tif"), tmp_path / "out"
    (tmp_path / "empty").mkdir()
    assert verify("empty") == (1, f"{tmp_path / 'empty'}: no finished results of slidesam here")
    segment_serially(slide, out, SETTINGS)
    code, text = verify("out")
    assert code == 0
    assert text.startswith("slide result files MiB state s image ")
    assert text.count("sound") == 2

    overlay = out / "s.cells.overlay.png"
    overlay.write_bytes(overlay.read_bytes()[:-1] + b"?")
    assert verify("out", "--sample")[0] in (0, 1)
    code, text = verify("out")
    assert code == 1
    assert f"✗ s (cells): {overlay} differs from its checksum" in text
    assert "--repair" in text
    assert overlay.exists()

    code, text = verify("out", "--repair")
    assert code == 1
    assert "taken back: run `slidesam segment`" in text
    assert not overlay.exists()
    segment_serially(slide, out, SETTINGS)
    assert verify("out")[0] == 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slide")
    segment_serially(write_numbered_slide(folder / "s.tif"), folder / "out", SETTINGS)
    return folder / "out"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A finished output folder of the test's own."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def read_all(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("name", ["s.cells.run.json", "s.cells.files.json", "s.image-files.json"])
def test_repair_leaves_what_another_version_wrote(name: str, out: Path) -> None:
    record = read_json(out / name)
    for key in ("slide", "fingerprint"):
        record.pop(key, None)
    write_json(out / name, record)
    if name == "s.cells.files.json":
        provenance = read_json(out / "s.cells.run.json")
        write_json(out / "s.cells.run.json", provenance | {"file_list": describe(out / name)})
    before = read_all(out)
    code, text = verify(out, "--repair")
    assert code == 1
    assert "was written by another version" in text
    assert "can't be read is left as it is" in text
    assert read_all(out) == before


@pytest.mark.parametrize("name", ["s.cells.run.json", "s.ome.zarr/labels/cells/0/c/0/0/0/0/0", "s.cells.overlay.png"])
def test_repair_leaves_what_the_system_does_not_let_it_read(
    name: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os_open = os.open

    def refuse(path: str | Path, *arguments: int, **options: int) -> int:
        if str(path) == str(out / name):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return os_open(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    before = read_all(out)
    code, text = verify(out, "--repair")
    assert code == 1
    assert f"{out / name} can't be read (Input/output error)" in text
    assert "can't be read is left as it is" in text
    monkeypatch.undo()
    assert read_all(out) == before


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_lost_list_of_the_image_is_made_again(damage: str, out: Path, finished: Path) -> None:
    path = out / "s.image-files.json"
    expected = path.read_bytes()
    path.write_bytes(b"") if damage == "cut" else path.unlink()
    assert verify(out)[0] == 1
    assert verify(out, "--repair")[0] == 1
    slidesam.segment(finished.parent / "s.tif", out, SETTINGS, progress=False)
    assert verify(out)[0] == 0
    assert path.read_bytes() == expected


@pytest.mark.parametrize("rest", ["everything", "store", "state"])
def test_a_result_without_its_record_is_not_out_of_sight(rest: str, out: Path) -> None:
    (out / "s.cells.run.json").unlink()
    if rest == "store":
        shutil.rmtree(out / ".slidesam")
        (out / "s.cells.files.json").unlink()
    if rest == "state":
        shutil.rmtree(out / "s.ome.zarr")
        for path in out.glob("s.*.json"):
            path.unlink()
        write_state(out, "s", "cells", "finished")
    code, text = verify(out)
    assert code == 1
    assert f"✗ s (cells): {out / 's.cells.run.json'} is gone: the result isn't finished" in text


def test_where_the_work_is_cleaned_it_is_said_what_a_repair_costs(out: Path) -> None:
    overlay, cost = out / "s.cells.overlay.png", "s (cells): its intermediate results are cleaned, all its blocks"
    whole = overlay.read_bytes()
    for is_cleaned in (False, True):
        shutil.copytree(out, copy := out.with_name(f"{is_cleaned}"))
        (copy / overlay.name).write_bytes(whole[:-1])
        if is_cleaned:
            shutil.rmtree(copy / ".slidesam" / "s" / "cells")
        assert (cost in verify(copy, "--repair")[1]) == is_cleaned


def test_after_a_repair_status_and_verify_say_that_the_result_is_not_finished(out: Path, finished: Path) -> None:
    write_state(out, "s", "cells", "finished", slide_path=finished.parent / "s.tif")
    assert "unfinished" not in status(out)
    shard = out / "s.ome.zarr/labels/cells/0/c/0/0/0/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert verify(out, "--repair")[0] == 1
    assert "unfinished" in status(out)
    assert verify(out)[0] == 1
    slidesam.segment(finished.parent / "s.tif", out, SETTINGS, progress=False)
    assert "unfinished" not in status(out)
    assert verify(out)[0] == 0


def status(output: Path) -> str:
    return CliRunner().invoke(app, ["status", str(output)]).stdout
