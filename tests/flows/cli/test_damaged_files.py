"""Damaged small files of one slide in an output folder: no command stops, and none shows a library's words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import slidesam
from slidesam.flows.cli import command
from slidesam.flows.cli.app import app
from slidesam.tasks.errors import OutputError, SlidesamError
from slidesam.tasks.folder.inbox import has_result, look
from slidesam.tasks.run.layout import RunPaths
from slidesam.tasks.run.service_folders import inbox_memory
from slidesam.tasks.run.status import read_states, write_state
from slidesam.tasks.settings.parse import make_settings
from tests.support.records import finished_record
from tests.support.serial import segment_serially
from tests.support.slides import write_numbered_slide

WATERSHED = {"segmenter.kind": "watershed", "blocks.block_shape": 64, "blocks.halo": 16}


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def in_its_place(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def replace(path: Path) -> None:
        path.unlink(missing_ok=True)
        make(path)

    return replace


DAMAGES = {
    "empty": write(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "a flipped bit": lambda path: path.write_bytes(path.read_bytes().replace(b"finished", b"finished"[:-1] + b"e")),
    "no UTF-8": write(b'{"status": "failed", "error": "\xff"}'),
    "nested without end": write(b'{"a":' * 200_000),
    "a long number": write(b'{"objects": ' + b"9" * 5000 + b"}"),
    "an infinite number": write(b'{"objects": 1e999, "blocks": -1e999, "status": "finished", "finished": "x"}'),
    "wrong types": write(b'{"status": 3, "settings": [], "jobs": {"a": 1}, "slide": 1, "segment_folder": [1]}'),
    "a list": write(b"[1, 2]"),
    "a folder": in_its_place(Path.mkdir),
    "a FIFO": in_its_place(os.mkfifo),
    "a loop of links": in_its_place(lambda path: path.symlink_to(path)),
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a slide."""
    folder = tmp_path_factory.mktemp("result")
    write_numbered_slide(folder / "good.tif")
    segment_serially(folder / "good.tif", folder / "out", WATERSHED)
    return folder


def run(*arguments: object) -> tuple[int, str]:
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "400"})
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit | SlidesamError):
        raise outcome.exception
    assert outcome.exception is None or isinstance(outcome.exception, SystemExit), outcome.exception
    return outcome.exit_code, " ".join(outcome.output.split())


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_slides_damaged_files_stop_nothing(
    damage: str, result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = result / "out"
    bad, good = RunPaths(output, "bad", "cells"), RunPaths(output, "good", "cells")
    record = finished_record(settings=make_settings(overrides=WATERSHED).model_dump(mode="json"))
    memory = inbox_memory(output, result)
    for path in (bad.state, bad.provenance, memory):
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        path.unlink(missing_ok=True)
    write_state(output, "good", "cells", "finished", objects=3, blocks=9)
    write_state(output, "bad", "cells", "finished", objects=3, blocks=9)
    (bad.work / "segment-1").mkdir(parents=True, exist_ok=True)
    record.write(bad.provenance)
    look(result, memory, 0.0, 1.0)
    for path in (bad.state, bad.provenance, memory):
        DAMAGES[damage](path)
    code, text = run("status", output)
    assert code == 0
    assert "good cells finished" in text
    assert "unreadable" in text
    assert "`slidesam segment` with the same settings writes it again" in text
    monkeypatch.setattr(command, "prefect_api", lambda *_: pytest.fail("nothing is to be run"))
    code, text = run("retry", output)
    assert (code, "note: bad: " in text, "writes it again" in text) == (1, True, True)
    run("clean", output, "--keep", "0d", "--dry-run")
    code, text = run("seams", good.store)
    assert code == 0
    assert {state.slide: state.state.status for state in read_states(output)} == {
        "bad": "unreadable",
        "good": "finished",
    }
    assert slidesam.open_result(output).name == "good"
    assert slidesam.open_result(good.store).label == "cells"
    bad.store.mkdir(exist_ok=True)
    with pytest.raises(OutputError, match=r"bad"):
        slidesam.open_result(bad.store)
    bad.store.rmdir()
    # Folders where slides arrive.
    if damage == "a folder":
        with pytest.raises(OutputError, match="move away the folder"):
            look(result, memory, 0.0, 2.0)
        memory.rmdir()
    assert [arrival.path.name for arrival in look(result, memory, 0.0, 2.0)[0]] == ["good.tif"]
    assert not has_result(tmp_path / "bad.tif", output, make_settings(overrides=WATERSHED | {"slide.name": "bad"}))


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name not in ("a folder", "a loop of links")])
def test_a_lock_that_is_damaged_is_taken_over_or_named(damage: str, tmp_path: Path) -> None:
    write_state(tmp_path, "s", "cells", "failed", settings={}, cluster={})
    lock = RunPaths(tmp_path, "s", "cells").lock
    lock.write_bytes(b'{"status": "finished"}')
    DAMAGES[damage](lock)
    os.utime(lock, (0, 0))
    assert run("status", tmp_path)[0] == 0
    run("clean", tmp_path, "--dry-run")
