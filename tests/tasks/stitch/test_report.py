"""The report on seams: what is counted and where, and a warning that is right about the halo."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.run.records import SeamReport
from slidesam.tasks.settings.sections import StitchSettings
from slidesam.tasks.stitch import report as seam_report
from slidesam.tasks.stitch.report import COLUMNS, find_seam_facts, make_report
from tests.support.blockwise import segmented, stitched
from tests.tasks.stitch.test_resolve import disagreeing_blocks, rules


def report_of(outer, grid: BlockGrid, rule: StitchSettings | None = None) -> SeamReport:
    result = stitched(outer, grid, rule)
    report = make_report(grid, result.block_labels, result.pairs, result.resolution)
    assert SeamReport.model_validate(json.loads(report.model_dump_json())) == report
    assert report.columns == ("first", "second", *COLUMNS)
    assert_counts_fit(report)
    facts = find_seam_facts(grid, result.block_labels, result.pairs, result.resolution)
    assert len(facts.disputed) == len(facts.fragments) == result.resolution.objects + 1
    # The report counts suppressed objects, too, which no table has.
    counted = report.totals["objects"] - report.totals["matched"]
    assert counted - report.totals["dropped"] <= facts.disputed[1:].sum() <= counted
    assert (facts.fragments >= 1).all()
    return report


def report_of_labels(labels: np.ndarray, grid: BlockGrid) -> SeamReport:
    """Return the report where every block sees the same labels."""
    return report_of(segmented(labels, grid, lambda image: image), grid)


def at(report: SeamReport, first: int, second: int) -> dict[str, int]:
    """Return the counts at a seam, without zeros."""
    rows = [row for row in report.rows if row[:2] == (first, second)]
    assert len(rows) <= 1
    return {name: count for row in rows for name, count in zip(COLUMNS, row[2:], strict=True) if count}


def totals(report: SeamReport) -> dict[str, int]:
    return {name: count for name, count in report.totals.items() if count}


def assert_counts_fit(report: SeamReport) -> None:
    """Seams in order, none empty; objects at a seam are matched, contested or one-sided; totals within what seams add up to."""
    ids = [tuple(row[:2]) for row in report.rows]
    assert ids == sorted(set(ids))
    assert all(first < second for first, second in ids)
    sums = dict.fromkeys(COLUMNS, 0)
    for first, second in ids:
        counts = dict.fromkeys(COLUMNS, 0) | at(report, first, second)
        assert any(counts.values())
        assert counts["objects"] == counts["matched"] + counts["contested"] + counts["one_sided"]
        sums = {name: sums[name] + counts[name] for name in COLUMNS}
    for name, count in report.totals.items():
        # An object that blocks disagree on at one of its seams isn't matched, whatever they say at the others.
        assert count <= sums[name]
        assert name == "matched" or (count > 0) == (sums[name] > 0)


class FourBlocks:
    """Four blocks of 40 px with a halo of 12 px: 0 and 1 above, 2 and 3 below."""

    def __init__(self) -> None:
        self.grid = BlockGrid((80, 80), (40, 40), 12)
        self.outer = [np.zeros(block.outer.shape, np.uint32) for block in self.grid]

    def see(self, rows: slice, columns: slice, *block_ids: int) -> FourBlocks:
        """Let these blocks see a rectangle of the slide."""
        for block_id in block_ids:
            whole = np.zeros(self.grid.shape, bool)
            whole[rows, columns] = True
            labels = self.outer[block_id]
            labels[whole[self.grid[block_id].outer.slices]] = labels.max() + 1
        return self

    def report(self, **rule) -> SeamReport:
        return report_of(self.outer, self.grid, StitchSettings(**rule))


def test_nothing_at_seams_is_nothing_to_report() -> None:
    report = FourBlocks().see(slice(10, 20), slice(10, 20), 0).report()
    assert (report.rows, totals(report), report.warnings) == ((), {}, ())
    assert (report.wide, report.halo, report.advised_halo) == (0, 12, None)


def test_a_slide_without_objects_and_one_in_a_single_block() -> None:
    assert FourBlocks().report().rows == ()
    report = report_of_labels(np.ones((20, 20), np.uint8), BlockGrid((20, 20), (32, 32), 0))
    assert (report.rows, totals(report), report.warnings) == ((), {}, ())


def test_matched() -> None:
    report = FourBlocks().see(slice(10, 20), slice(35, 45), 0, 1).see(slice(50, 60), slice(35, 45), 2, 3).report()
    assert at(report, 0, 1) == at(report, 2, 3) == {"objects": 1, "matched": 1}
    assert totals(report) == {"objects": 2, "matched": 2}


def test_one_sided() -> None:
    report = FourBlocks().see(slice(35, 45), slice(10, 20), 2).report()
    assert [list(row[:2]) for row in report.rows] == [[0, 2]]
    assert at(report, 0, 2) == totals(report) == {"objects": 1, "one_sided": 1}


def test_contested() -> None:
    # Each sees its own object, and they share a column of pixels.
    report = FourBlocks().see(slice(10, 20), slice(30, 42), 0).see(slice(10, 20), slice(39, 50), 1).report()
    assert at(report, 0, 1) == totals(report) == {"objects": 2, "contested": 2}


def test_objects_know_whether_they_are_disputed_and_of_how_many_fragments_they_are() -> None:
    blocks = FourBlocks().see(slice(4, 10), slice(35, 45), 0, 1).see(slice(12, 20), slice(30, 42), 0)
    blocks = blocks.see(slice(12, 20), slice(39, 50), 1).see(slice(60, 66), slice(2, 78), 2, 3)
    result = stitched(blocks.outer, blocks.grid, None)
    facts = find_seam_facts(blocks.grid, result.block_labels, result.pairs, result.resolution)
    assert facts.disputed[1:].tolist() == [0, 1, 1, 0]
    assert facts.fragments[1:].tolist() == [1, 1, 1, 2]


def test_suppressed_where_it_lies_at_the_seam_itself() -> None:
    report = FourBlocks().see(slice(4, 36), slice(10, 44), 0).see(slice(10, 16), slice(34, 43), 1).report()
    assert at(report, 0, 1) == {"objects": 2, "contested": 2, "dropped": 1}
    assert totals(report)["dropped"] == 1


def test_suppressed_though_it_lies_at_the_seam_only_by_what_covers_it() -> None:
    # Block 1 missed what block 0 sees in its halo, of which block 1's own object claims an eighth.
    case = FourBlocks().see(slice(10, 20), slice(41, 49), 0).see(slice(10, 20), slice(48, 60), 1)
    assert at(case.report(), 0, 1) == {"rescued": 1}
    report = case.report(max_conflict=0.1)
    assert at(report, 0, 1) == totals(report) == {"dropped": 1}


def test_recovered() -> None:
    case = FourBlocks().see(slice(10, 20), slice(41, 49), 0)
    assert at(case.report(), 0, 1) == totals(case.report()) == {"rescued": 1}
    assert totals(case.report(rescue=None)) == {}


def test_fragments_and_wider_than_the_halo() -> None:
    # Twice 30 px across a seam with a halo of 12 px: neither block sees it whole.
    report = FourBlocks().see(slice(50, 60), slice(10, 70), 2, 3).report()
    assert at(report, 2, 3) == totals(report) == {"objects": 1, "matched": 1, "united": 1}
    assert report.wide == 1
    # One object is no reason to change the halo.
    assert report.warnings == ()


def test_an_object_where_four_blocks_meet_lies_at_six_seams_and_counts_once() -> None:
    report = FourBlocks().see(slice(35, 45), slice(35, 45), 0, 1, 2, 3).report()
    assert [list(row[:2]) for row in report.rows] == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert all(row[2:4] == (1, 1) for row in report.rows)
    assert totals(report) == {"objects": 1, "matched": 1}


def test_at_a_corner_alone() -> None:
    # From block 0's corner into block 3, which sees nothing there; blocks 1 and 2 own none of it.
    case = FourBlocks().see(slice(30, 40), slice(30, 40), 0)
    case.outer[0][40:44, 40:44] = 1
    report = case.report()
    assert [list(row[:2]) for row in report.rows] == [[0, 3]]
    assert totals(report) == {"objects": 1, "one_sided": 1}


def test_an_object_that_blocks_disagree_on_at_one_seam_is_not_matched() -> None:
    # Block 2 misses what the three others see.
    report = FourBlocks().see(slice(35, 45), slice(35, 45), 0, 1, 3).report()
    assert at(report, 0, 1) == {"objects": 1, "matched": 1}
    assert at(report, 0, 2) == {"objects": 1, "one_sided": 1}
    assert totals(report) == {"objects": 1, "one_sided": 1}


@given(disagreeing_blocks(), rules)
@settings(max_examples=150, deadline=None)
def test_whatever_blocks_say_counts_fit(case, rule) -> None:
    grid, outer = case
    report_of(outer, grid, rule)


def bars(number: int, length: int) -> tuple[np.ndarray, int]:
    """(y, x) bars of 4 px across the middle, `length` long, and how many columns there are."""
    labels = np.zeros((8 * number, 4 * length), np.uint8)
    for row in range(number):
        labels[8 * row + 2 : 8 * row + 6, 2 * length - length // 2 : 2 * length + length // 2] = row + 1
    return labels, labels.shape[1]


def test_a_halo_that_is_too_small_is_named_with_one_that_is_not() -> None:
    labels, width = bars(8, 80)
    report = report_of_labels(labels, BlockGrid(labels.shape, (64, width // 2), 16))
    assert (report.wide, report.totals["objects"], report.advised_halo) == (8, 8, 48)
    (words,) = report.warnings
    assert words == "100 % of the 8 objects at seams are wider than the halo of 16 px: raise it to 48 (blocks.halo)"
    better = report_of_labels(labels, BlockGrid(labels.shape, (64, width // 2), 48))
    assert (better.wide, better.advised_halo, better.warnings) == (0, None, ())


@pytest.mark.parametrize(("halo", "needed", "factor", "advised"), [
    (64, 64, 1.0, 80), (64, 62, 1.0, 80), (64, 66, 1.0, 80), (64, 90, 1.0, 96), (70, 66, 1.0, 80), (106, 100, 213 / 128, 80),
])  # fmt: skip
def test_an_advised_halo_is_wider_than_the_one_that_was_too_small(halo, needed, factor, advised) -> None:
    grid = BlockGrid((4000, 4000), (1000, 1000), halo)
    found, warning = seam_report._advise(grid, 100, 90, np.full(90, needed), factor)
    assert found == advised
    assert f"halo of {halo / factor:.0f} px: raise it to {advised} (" in warning


def test_objects_longer_than_blocks_need_larger_blocks() -> None:
    labels, width = bars(8, 200)
    report = report_of_labels(labels, BlockGrid(labels.shape, (64, width // 16), 16))
    assert (report.wide, report.advised_halo) == (8, None)
    assert "larger blocks would help" in report.warnings[0]


def test_without_a_halo_all_stays_cut_and_that_is_said() -> None:
    labels, width = bars(3, 40)
    report = report_of_labels(labels, BlockGrid(labels.shape, (64, width // 2), 0))
    assert report.rows == ()
    assert report.advised_halo is None
    assert "halo of 0 px" in report.warnings[0]
    assert "blocks.halo" in report.warnings[0]


@st.composite
def scenes(draw):
    """Labels of at most 19 connected objects, later rectangles on earlier ones, and a grid whose halo is small for some."""
    height, width = draw(st.integers(40, 160)), draw(st.integers(40, 160))
    labels = np.zeros((height, width), np.uint8)
    for number in range(draw(st.integers(3, 19))):
        y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        labels[y : y + draw(st.integers(1, 60)), x : x + draw(st.integers(1, 60))] = number + 1
    for number in range(1, 20):
        parts, _ = ndimage.label(labels == number, structure=np.ones((3, 3)))
        # Blocks can't know that parts which no block sees together are one object.
        labels[parts > 1] = 0
    block = draw(st.integers(24, 64)), draw(st.integers(24, 64))
    return labels, BlockGrid(labels.shape, block, draw(st.integers(1, 12)))


@given(scenes())
@settings(max_examples=150, deadline=None)
def test_with_the_advised_halo_no_object_is_too_wide(case) -> None:
    labels, grid = case
    report = report_of_labels(labels, grid)
    event(f"advice: {report.advised_halo is not None}, wide: {report.wide > 0}")
    # Of up to nineteen, 95 % are all.
    if report.advised_halo is not None:
        assert report.advised_halo > grid.halo
        wider = report_of_labels(labels, BlockGrid(grid.shape, grid.block_shape, report.advised_halo))
        assert (wider.wide, wider.warnings) == (0, ())
