"""Files of arrays: what is written is read, in parts too, and any damage to them is found."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slidesam.tasks.errors import DamagedError, OutputError
from slidesam.tasks.run import array_files
from slidesam.tasks.run.array_files import SMALL, ArrayFile, load_arrays, read_array_facts, write_arrays

RNG = np.random.default_rng(0)
ARRAYS = {
    "labels": RNG.integers(0, 9, (40, 30), np.uint32),
    "table": RNG.integers(-(2**40), 2**40, 500),
    "one row": np.arange(7, dtype=np.int32)[None],
    "bits": RNG.integers(0, 2, 333).astype(np.uint8),
    "empty": np.zeros((0, 9), np.int32),
    "no columns": np.zeros((4, 0), np.int32),
}
FACTS = {"block_id": 3, "count": 8, "name": "é", "fill": [0.5, None]}


@pytest.fixture
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_files, "_PIECE_BYTES", 1000)


def written(folder: Path) -> Path:
    path = folder / "segment-a" / "blocks" / "3.arrays"
    write_arrays(path, ARRAYS, FACTS, SMALL)
    return path


@pytest.mark.usefixtures("_small_pieces")
def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert read_array_facts(path) == FACTS
    arrays = load_arrays(path)
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(arrays[name], array)
    assert [file.name for file in path.parent.iterdir()] == ["3.arrays"]


@pytest.mark.usefixtures("_small_pieces")
@given(data=st.data())
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_read_alone(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "segment-a" / "blocks" / "3.arrays"
    file = ArrayFile(path if path.exists() else written(tmp_path))
    name = data.draw(st.sampled_from(["labels", "table", "bits"]))
    start = data.draw(st.integers(0, len(ARRAYS[name])))
    stop = data.draw(st.integers(start, len(ARRAYS[name])))
    np.testing.assert_array_equal(file.read(name, start, stop), ARRAYS[name][start:stop])
    on_demand = file.on_demand(name)
    np.testing.assert_array_equal(on_demand.load(start, stop), ARRAYS[name][start:stop])
    if stop > start:
        rows = np.array([start, stop - 1])
        on_demand = file.on_demand(name)
        on_demand.load_at(rows)
        np.testing.assert_array_equal(on_demand.values[rows], ARRAYS[name][rows])


@pytest.mark.usefixtures("_small_pieces")
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_cut_or_addition_is_found(data: st.DataObject, tmp_path: Path) -> None:
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    match data.draw(st.sampled_from(["flip", "cut", "add"])):
        case "flip":
            content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        case _:
            content += data.draw(st.binary(min_size=1, max_size=5))
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"3\.arrays is damaged and was removed: run the same command again"):
        load_arrays(path)
    assert not path.exists()


def test_a_file_of_another_place_is_found(tmp_path: Path) -> None:
    path = written(tmp_path)
    for place in ("segment-a/blocks/4.arrays", "segment-b/blocks/3.arrays", "segment-a/other/3.arrays"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / place)
        assert read_array_facts(tmp_path / place) is None
    # The output folder as a whole may move.
    shutil.move(tmp_path / "segment-a", tmp_path / "moved" / "segment-a")
    assert read_array_facts(tmp_path / "moved" / "segment-a" / "blocks" / "3.arrays") == FACTS


def test_what_is_no_file_of_arrays_is_damaged_and_what_is_none_is_gone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "json").write_text('{"count": 3}' * 9)
    for name in ("fifo", "folder", "json/inside", "json", "absent"):
        assert read_array_facts(tmp_path / name) is None, name
        with pytest.raises(
            DamagedError, match="is gone" if name in ("absent", "json/inside") else "damaged and was removed"
        ):
            load_arrays(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]
    with pytest.raises(OutputError, match="move away the folder that is in its place, then run the same command again"):
        write_arrays(tmp_path / "folder", {})


def test_an_array_that_isnt_there_is_damage(tmp_path: Path) -> None:
    with pytest.raises(DamagedError):
        ArrayFile(written(tmp_path)).read("other")


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.ENOMEM, errno.EACCES])
@pytest.mark.parametrize("call", ["open", "pread"])
def test_a_file_that_the_system_doesnt_let_be_read_stays(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    file = ArrayFile(path)

    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    for read in (lambda: load_arrays(path), lambda: file.read("labels"), lambda: read_array_facts(path)):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            with pytest.raises(OutputError, match=rf"can't be read \({os.strerror(code)}\): check the folder") as info:
                read()
        assert not isinstance(info.value, DamagedError)
    assert read_array_facts(path) == FACTS
