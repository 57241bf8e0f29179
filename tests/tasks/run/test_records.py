"""Records on disk: those of older versions read, and what is written has the same keys and form as ever.

`tests/data/records_0.1` is what version 0.1.0 wrote for a slide of three objects in nine blocks.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run.files import read_json
from slidesam.tasks.run.records import (
    BlockMark,
    FileFacts,
    InboxMemory,
    Mark,
    Params,
    Provenance,
    Record,
    Resolved,
    StartMark,
    State,
)
from tests.support import ROOT

OLD = ROOT / "tests" / "data" / "records_0.1"
MODELS = {
    "run": Provenance,
    "state": State,
    "failed_state": State,
    "params": Params,
    "block_mark": BlockMark,
    "piece_mark": Mark,
    "group_mark": Mark,
    "start_mark": StartMark,
    "resolved": Resolved,
    "inbox": InboxMemory,
}


def old(name: str) -> Record:
    record = MODELS[name].read(OLD / f"{name}.json")
    assert record is not None
    return record


@pytest.mark.parametrize("name", MODELS)
def test_what_an_older_version_wrote_is_written_the_same(name: str, tmp_path: Path) -> None:
    old(name).write(tmp_path / "record.json")
    assert (tmp_path / "record.json").read_bytes() == (OLD / f"{name}.json").read_bytes()


def test_what_an_older_version_wrote_is_understood() -> None:
    run, failed, start = old("run"), old("failed_state"), old("start_mark")
    assert (run.objects, run.blocks, run.slide.name, run.label, run.image.mode) == (3, 9, "s", "cells", "convert")
    assert (run.seams.totals["objects"], len(run.seams.rows)) == (2, 7)
    assert run.seams == old("resolved").seams
    assert (run.segmenter.devices, run.segmenter.threads) == (("cpu",), ("1",))
    assert (failed.status, failed.file.size, failed.jobs) == ("failed", run.slide.identity.size, ("slidesam-cpu-1",))
    assert failed.settings == old("state").settings == run.settings
    assert old("block_mark") == BlockMark(
        block_id=4, count=1, seconds=old("block_mark").seconds, device="cpu", threads="1"
    )
    assert (start.state, start.attempt, start.host) == ("failed", "c0ffee", "node1")
    assert old("inbox").seen["s.tif"].started.startswith("1-")
    assert read_json(OLD / "causes.json")["format of the work"] == 3


def test_what_a_newer_version_adds_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "mark.json").write_text('{"block_id": 1, "count": 2, "colour": "red"}')
    assert BlockMark.read(tmp_path / "mark.json") == BlockMark(block_id=1, count=2)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"objects": 3', "\xff{"])
def test_a_damaged_record_counts_as_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "resolved.json").write_bytes(text.encode("latin-1"))
    assert Resolved.read(tmp_path / "resolved.json") is None
    assert Resolved.read(tmp_path / "none.json") is None
    assert Resolved.read(tmp_path / "resolved.json" / "none.json") is None


@pytest.mark.parametrize(
    ("text", "keys"), [('{"objects": 3}', "seams"), ('{"objects": "x", "seams": 1}', "objects, seams")]
)
def test_a_record_of_another_version_is_refused(text: str, keys: str, tmp_path: Path) -> None:
    (tmp_path / "resolved.json").write_text(text)
    with pytest.raises(OutputError, match=rf"was written by another version of slidesam, .* \({keys}\)"):
        Resolved.read(tmp_path / "resolved.json")


def test_only_what_is_set_is_written(tmp_path: Path) -> None:
    State(status="failed", error="x", file=None).write(tmp_path / "state.json")
    assert json.loads((tmp_path / "state.json").read_text()) == {"status": "failed", "error": "x", "file": None}
    State.read(tmp_path / "state.json").model_copy(update={"status": "stopped"}).write(tmp_path / "state.json")
    assert json.loads((tmp_path / "state.json").read_text()) == {"status": "stopped", "error": "x", "file": None}


def test_an_updated_state_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"status": "running", "colour": "red"}')
    State.read(tmp_path / "state.json").model_copy(update={"status": "stopped"}).write(tmp_path / "state.json")
    assert json.loads((tmp_path / "state.json").read_text()) == {"status": "stopped", "colour": "red"}


def test_paths_need_not_be_utf_8(tmp_path: Path) -> None:
    slide = Path("/scans/caf\udce9.svs")
    State(status="failed", slide_path=slide, file=FileFacts(files=1, size=2, modified=3, changed=4)).write(
        tmp_path / "s"
    )
    assert State.read(tmp_path / "s").slide_path == slide
