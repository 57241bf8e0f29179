"""Finishing a block while the next begins: order, errors, and which block is blamed for the end of a worker."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from slidesam.tasks import steps
from slidesam.tasks.errors import BlockFailures, OutputError
from slidesam.tasks.plan import plan_run
from slidesam.tasks.run.files import write_json
from slidesam.tasks.run.marks import find_mark
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from tests.support.serial import segment_serially, write_image_serially
from tests.support.slides import write_numbered_slide

BLOCKS = {"segmenter.kind": "function", "blocks.block_shape": 64, "blocks.halo": 0}


def two_phase(log: Path, **options: object) -> dict:
    return BLOCKS | {
        "segmenter.target": "tests.support.faults:TwoPhase",
        "segmenter.options": {"log": str(log), **options},
    }


def prepared(tmp_path: Path, settings: dict) -> Run:
    """A slide of nine blocks, of which block k holds the number k + 1, ready to be segmented."""
    run = plan_run(write_numbered_slide(tmp_path / "s.tif"), tmp_path / "out", make_settings(overrides=settings))
    write_image_serially(run)
    steps.prepare_slide.fn(run)
    return run


def test_the_device_begins_a_block_while_the_last_is_finished(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run = prepared(tmp_path, two_phase(log, blocks=9))
    steps.segment_blocks.fn(run, range(9))
    order = ["1 begun", *(f"{k}" for n in range(1, 9) for k in (f"{n + 1} begun", f"{n} done")), "9 done"]
    assert log.read_text().splitlines() == order
    facts = [find_mark(run, block_id) for block_id in range(9)]
    assert all(each and each.device == "cuda" for each in facts)


@pytest.mark.parametrize("change", [{"device": "cpu"}, {"run.retries": 0}])
def test_a_cpu_takes_one_at_a_time_and_so_does_who_may_lose_none(
    change: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.faults import TwoPhase

    log, change = tmp_path / "log", dict(change)
    monkeypatch.setattr(TwoPhase, "device", change.pop("device", "cuda"))
    run = prepared(tmp_path, two_phase(log) | change)
    steps.segment_blocks.fn(run, range(9))
    assert log.read_text().splitlines() == [f"{n} {what}" for n in range(1, 10) for what in ("begun", "done")]


def test_labels_are_those_of_one_at_a_time(tmp_path: Path) -> None:
    slide = write_numbered_slide(tmp_path / "s.tif")
    together = two_phase(tmp_path / "log") | {"blocks.blocks_per_task": 9}
    beside = segment_serially(slide, tmp_path / "beside", together)
    alone = segment_serially(
        slide, tmp_path / "alone", BLOCKS | {"segmenter.target": "tests.support.faults:bright_pieces"}
    )
    np.testing.assert_array_equal(beside, alone)


@pytest.mark.parametrize("fails_first", [False, True])
@pytest.mark.parametrize("number", [1, 5, 9])
def test_an_error_is_that_of_its_block(number: int, fails_first: bool, tmp_path: Path) -> None:
    run = prepared(tmp_path, two_phase(tmp_path / "log", fail_on=number, fails_first=fails_first))
    with pytest.raises(BlockFailures, match="1 of 9 blocks failed") as caught:
        steps.segment_blocks.fn(run, range(9))
    assert caught.value.block_ids == (number - 1,)
    assert [block_id for block_id in range(9) if find_mark(run, block_id) is None] == [number - 1]


def test_labels_that_cant_be_written_end_it_and_hold_nothing_against_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    run = prepared(tmp_path, two_phase(log))

    def full(*_: object) -> None:
        # The disk is full as soon as there are labels to write.
        if log.exists():
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OutputError, match="No space left"):
            steps.segment_blocks.fn(run, range(9))
    assert "3 begun" not in log.read_text().splitlines()
    steps.segment_blocks.fn(run, range(9))
    assert all(find_mark(run, block_id) for block_id in range(9))


def test_a_block_that_has_cost_a_worker_is_computed_by_itself(tmp_path: Path) -> None:
    log = tmp_path / "log"
    run = prepared(tmp_path, two_phase(log))
    for block_id in (0, 5):
        write_json(run.segment_folder.start_mark(block_id), {"state": "running", "go": "attempt"})
    steps.segment_blocks.fn(run, range(9), "attempt")
    assert log.read_text().splitlines()[-4:] == ["1 begun", "1 done", "6 begun", "6 done"]
