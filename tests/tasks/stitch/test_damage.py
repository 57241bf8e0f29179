"""Damage to any file of the work folder: it is found, said, and healed by the same command, and labels stay what they were."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from scipy import ndimage

from slidesam.attempts import run_stages
from slidesam.progress import StageReporter
from slidesam.tasks.errors import DamagedError, OutputError
from slidesam.tasks.plan import explain, plan_run
from slidesam.tasks.run.array_files import load_arrays, read_array_facts, write_arrays
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.stitch import batches
from tests.support.serial import Serial, stitch_serially

SETTINGS = {
    "segmenter.kind": "function",
    "segmenter.target": "tests.support.faults:bright_pieces",
    "blocks.block_shape": 64,
    "blocks.halo": 12,
    "image.convert": "never",
}


class Listener(StageReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def inform(self, message: str) -> None:
        self.messages.append(message)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_SMALLEST_TASK", 2**13)
    monkeypatch.setattr(batches, "_TASK_PIXELS", 2**13)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    noise = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=(190, 190)), 5)
    path = tmp_path_factory.mktemp("slide") / "s.tif"
    tifffile.imwrite(path, (noise > np.quantile(noise, 0.7)).astype(np.uint8) * 200, tile=(64, 64))
    return path


def segment(slide: Path, output: Path) -> tuple[Run, np.ndarray, list[str]]:
    """The run, its labels, and what was said."""
    run, listener = plan_run(slide, output, make_settings(overrides=SETTINGS)), Listener()
    list(explain(run))
    run_stages(run, Serial(listener), check=lambda: None)
    labels = np.asarray(zarr.open_array(run.paths.label_image / "0", mode="r")[0, 0, 0])
    return run, labels, listener.messages


def files_of_work(run: Run) -> list[Path]:
    """One file of each kind: the middle one."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(run.paths.work.rglob("*")):
        if path.is_file() and path.name not in ("lock.json", "state.json"):
            numbered = path.parent.name in ("blocks", "overlaps", "measures", "marks")
            kinds.setdefault(path.parent.name if numbered else f"{path.parent.name[:5]} {path.name}", []).append(path)
    return [paths[len(paths) // 2] for paths in kinds.values()]


def flipped(whole: bytes, path: Path) -> bytes:
    """One bit is another, where it matters least to see."""
    place = len(whole) - 3 if path.suffix == ".arrays" else len(whole) // 2
    return whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]


def swapped(whole: bytes, path: Path) -> bytes:
    """The file of another block or batch, where there is one."""
    others = sorted(set(path.parent.glob(f"*{path.suffix}")) - {path})
    return others[0].read_bytes() if others else flipped(whole, path)


DAMAGES = {
    "flipped": flipped,
    "swapped": swapped,
    "empty": lambda whole, path: b"",
    "cut": lambda whole, path: whole[:-1],
    "no UTF-8": lambda whole, path: b"\xff\xfe" + whole[2:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_healed_by_the_same_command(damage: str, slide: Path, tmp_path: Path) -> None:
    run, expected, _ = segment(slide, tmp_path)
    assert expected.max() > 10
    paths = files_of_work(run)
    names, folders = {path.name for path in paths}, {path.parent.name for path in paths}
    assert {"params.json", "tissue.arrays", "numbering.arrays", "resolved.json", "causes.json", "started.json"} < names
    assert {"blocks", "overlaps", "measures"} < folders
    # First each alone, then all at once.
    for damaged in ([path] for path in paths), [paths]:
        for files in damaged:
            for path in files:
                path.write_bytes(DAMAGES[damage](path.read_bytes(), path))
            _, labels, _ = segment(slide, tmp_path)
            np.testing.assert_array_equal(labels, expected, err_msg=str(files))


@pytest.mark.parametrize("is_header", [True, False], ids=["header", "content"])
def test_nothing_is_made_again_without_a_word(is_header: bool, slide: Path, tmp_path: Path) -> None:
    run, expected, _ = segment(slide, tmp_path)
    paths = files_of_work(run) if is_header else [run.segment_folder.tissue, *run.stitch_folder.path.glob("over*/0-*")]
    for path in paths:
        if path.parent.name not in ("blocks", "starts") and path.name != "causes.json":
            whole = path.read_bytes()
            at = 3 if is_header else len(whole) - 3
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            if not is_header:
                # So that they are read at all.
                run.stitch_folder.resolved.unlink(missing_ok=True)
            said = explain(plan_run(slide, tmp_path, make_settings(overrides=SETTINGS)))
            _, labels, messages = segment(slide, tmp_path)
            assert [line for line in [*said, *messages] if path.name in line and "is damaged" in line], path
            np.testing.assert_array_equal(labels, expected)


def test_what_is_no_file_is_healed_or_named(slide: Path, tmp_path: Path) -> None:
    run, expected, _ = segment(slide, tmp_path)
    for path in files_of_work(run):
        path.unlink()
        os.mkfifo(path)
    _, labels, _ = segment(slide, tmp_path)
    np.testing.assert_array_equal(labels, expected)
    folder = run.segment_folder.block(4)
    folder.unlink()
    folder.mkdir()
    with pytest.raises(OutputError, match=r"4\.arrays can't be written \(Is a directory\): move away the folder"):
        segment(slide, tmp_path)


class ArrayPlace:
    """Where in a block's file: behind the header, in the first array; in the last one."""

    CORE, END = "core", "end"


def flip(content: bytes, place: str) -> bytes:
    """Flip a bit of a block's file."""
    header = 16 + int.from_bytes(content[8:12], "little")
    at = header + 20 if place == ArrayPlace.CORE else len(content) - 5
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


def test_a_block_whose_header_is_damaged_is_said_and_segmented_again(slide: Path, tmp_path: Path) -> None:
    run, expected, _ = segment(slide, tmp_path)
    for number in (3, 5):
        run.segment_folder.block(number).write_bytes(b"")
    _, labels, messages = segment(slide, tmp_path)
    np.testing.assert_array_equal(labels, expected)
    assert [message for message in messages if "results of blocks are damaged and are made again: 3, 5" in message]


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays["relabelling"][:-5],
        lambda arrays: arrays["relabelling"] + 10**6,
        lambda arrays: np.full_like(arrays["relabelling"], -(10**12)),
    ],
)
def test_a_numbering_that_doesnt_fit_never_reaches_a_compiled_loop(change: object, slide: Path, tmp_path: Path) -> None:
    run, expected, _ = segment(slide, tmp_path)
    arrays, facts = load_arrays(run.stitch_folder.numbering), read_array_facts(run.stitch_folder.numbering)
    write_arrays(run.stitch_folder.numbering, arrays | {"relabelling": change(arrays)}, facts)
    for path in run.paint_folder.measures("").parent.iterdir():
        path.unlink()
    with pytest.raises(DamagedError, match="run the same command again"):
        stitch_serially(run)
    _, labels, _ = segment(slide, tmp_path)
    np.testing.assert_array_equal(labels, expected)


def test_a_numbering_of_other_labels_is_removed_with_what_it_was_made_of(slide: Path, tmp_path: Path) -> None:
    run, expected, _ = segment(slide, tmp_path)
    arrays, facts = load_arrays(run.stitch_folder.numbering), read_array_facts(run.stitch_folder.numbering)
    arrays["offsets"][1:-1] += 1
    write_arrays(run.stitch_folder.numbering, arrays, facts)
    for path in run.paint_folder.measures("").parent.iterdir():
        path.unlink()
    _, labels, messages = segment(slide, tmp_path)
    np.testing.assert_array_equal(labels, expected)
    assert [message for message in messages if "is of other labels of block" in message]
