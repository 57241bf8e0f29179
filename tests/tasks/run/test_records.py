"""Records on disk: those of older versions read, and what is written has the same keys and form as ever.

`tests/data/records_0.1` is what version 0.1.0 wrote for a slide of three objects in nine blocks.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run.files import read_json
from slidesam.tasks.run.inbox_records import InboxMemory
from slidesam.tasks.run.records import (
    BlockMark,
    FileFacts,
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
    text, checksum = re.subn(r',\n  "crc32c": "[0-9a-f]{8}"\n}', "\n}", (tmp_path / "record.json").read_text())
    assert (text, checksum) == ((OLD / f"{name}.json").read_text(), 1)


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


DAMAGED = {
    "empty": b"",
    "cut": b'{"objects": 3',
    "no mapping": b"[]",
    "a number": b"3",
    "no UTF-8": b'{"objects": 3, "seams": {}, "a": "\xff"}',
    "nested without end": b'{"a":' * 100_000,
    "a number of many digits": b'{"objects": ' + b"1" * 5000 + b"}",
    "other content than its checksum says": b'{"objects": 3, "seams": {}, "crc32c": "00000000"}',
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("model", [Resolved, State, Provenance, InboxMemory])
def test_a_damaged_record_counts_as_none(name: str, model: type[Record], tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(DAMAGED[name])
    assert model.read(tmp_path / "file.json") is None


def test_what_is_no_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(b"{}")
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "fifo.json")
    with (tmp_path / "large.json").open("wb") as stream:
        stream.truncate(2**40)
    for name in ("none.json", "file.json/none.json", "folder.json", "fifo.json", "large.json"):
        assert State.read(tmp_path / name) is None, name


def test_a_file_that_the_system_doesnt_hand_out_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.json").symlink_to(tmp_path / "state.json")
    with pytest.raises(
        OutputError, match=r"state\.json can't be read \(Too many levels of symbolic links\): check the folder"
    ):
        State.read(tmp_path / "state.json")


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_or_cut_of_a_record_is_found(data: st.DataObject, tmp_path: Path) -> None:
    params = Params(blocks=(1, 2, 30), params={"threshold": 0.5, "name": "é"}, fill=(255, 254), has_tissue=True)
    path = tmp_path / "params.json"
    params.write(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path.write_bytes(content)
    # What only changes the form, or the word before the checksum, changes nothing that is read.
    assert Params.read(path) in (None, params)


VALUES = {"NaN": "NaN", "infinite": "1e999", "text": '"x"', "a list": "[]", "null": "null", "a mapping": "{}"}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_values_of_the_wrong_type_count_as_none_in_a_stage_and_as_another_version_beside_it(
    value: str, tmp_path: Path
) -> None:
    (tmp_path / "file.json").write_text(f'{{"objects": {value}, "blocks": {value}, "count": {value}, "block_id": 1}}')
    assert Resolved.read(tmp_path / "file.json") is None
    assert BlockMark.read(tmp_path / "file.json") is None
    with pytest.raises(OutputError, match="was written by another version of slidesam"):
        Provenance.read(tmp_path / "file.json")


@pytest.mark.parametrize(
    ("text", "keys"), [('{"blocks": "x"}', "blocks"), ('{"status": 3, "jobs": 1}', "status, jobs")]
)
def test_a_record_of_another_version_is_refused(text: str, keys: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(OutputError, match=rf"was written by another version of slidesam, .* \({keys}\)"):
        State.read(tmp_path / "state.json")


def test_only_what_is_set_is_written(tmp_path: Path) -> None:
    State(status="failed", error="x", file=None).write(tmp_path / "state.json")
    assert read_json(tmp_path / "state.json") == {"status": "failed", "error": "x", "file": None}
    State.read(tmp_path / "state.json").model_copy(update={"status": "stopped"}).write(tmp_path / "state.json")
    assert read_json(tmp_path / "state.json") == {"status": "stopped", "error": "x", "file": None}


def test_an_updated_state_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"status": "running", "colour": "red"}')
    State.read(tmp_path / "state.json").model_copy(update={"status": "stopped"}).write(tmp_path / "state.json")
    assert read_json(tmp_path / "state.json") == {"status": "stopped", "colour": "red"}


def test_paths_need_not_be_utf_8(tmp_path: Path) -> None:
    slide = Path("/scans/caf\udce9.svs")
    State(status="failed", slide_path=slide, file=FileFacts(files=1, size=2, modified=3, changed=4)).write(
        tmp_path / "s"
    )
    assert State.read(tmp_path / "s").slide_path == slide
