"""Show what each block took: seconds, failed tries, workers that it ended; as a map over the slide, and in numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.grid import BlockGrid
from slidesam.tasks.pages.html import list_facts, tabulate, write_number
from slidesam.tasks.pages.slide_map import cover_blocks, draw_blocks, write_layer, write_lines
from slidesam.tasks.run.marks import find_mark
from slidesam.tasks.run.run import Run

# Rows of the table of the slowest blocks, and of those that failed.
_MOST_ROWS = 5
# From quick to slow; blocks that failed in between.
_QUICK, _SLOW, _FAILED = (255, 237, 160), (189, 0, 38), (60, 60, 255)
_OPACITY = 190


class BlockTimes(NamedTuple):
    """What is known of a run's blocks, (blocks,) each.

    Attributes:
        seconds: How long each took; NaN where that isn't known.
        objects: How many labels it has.
        failed: How often it failed before.
        lost: How many workers it ended before.
    """

    seconds: NDArray[np.float64]
    objects: NDArray[np.int64]
    failed: NDArray[np.int64]
    lost: NDArray[np.int64]


def read_block_times(run: Run) -> BlockTimes:
    """Read what the blocks' done-marks say; nothing is known of blocks whose results `slidesam clean` has removed."""
    n_blocks = len(run.grid)
    found = BlockTimes(np.full(n_blocks, np.nan), *(np.zeros(n_blocks, np.int64) for _ in range(3)))
    for block_id in sorted(run.segment_folder.list_results()):
        mark = find_mark(run, block_id) if block_id < n_blocks else None
        if mark is not None:
            found.seconds[block_id] = mark.seconds
            found.objects[block_id], found.failed[block_id], found.lost[block_id] = mark.count, mark.failed, mark.lost
    return found


def write_block_times(times: BlockTimes, grid: BlockGrid, shape: tuple[int, int]) -> str:
    """Write the section on blocks.

    Args:
        times: What is known of them.
        grid: The blocks on level 0.
        shape: Height and width of level 0.
    """
    known = np.flatnonzero(np.isfinite(times.seconds))
    if not known.size:
        return '<p class="dim">The times of single blocks are gone: <code>slidesam clean</code> has removed the blocks.</p>'
    seconds = times.seconds[known]
    first, median, third = (write_number(value) for value in np.percentile(seconds, (25, 50, 75)).tolist())
    failed, lost = int(times.failed.sum()), int(times.lost.sum())
    troubled = int(((times.failed > 0) | (times.lost > 0)).sum())
    summary = {
        "blocks segmented": f"{known.size:,} of {len(grid):,}",
        "seconds per block": f"median {median}, quartiles {first} to {third}, slowest {write_number(float(seconds.max()))}",
        "all blocks together": f"{write_number(float(seconds.sum()))} s of workers",
        "tried again": f"{troubled:,} block{'s'[: troubled - 1]}: {failed:,} failures, {lost:,} workers ended"
        if troubled
        else "none",
    }
    picture = ""
    if len(grid) > 1:
        layer = write_layer(draw_blocks(_colour(times, grid)), "times", cover_blocks(grid), shape)
        picture = (
            f'<figure><div class="map"><div class="slide"></div>{layer}{write_lines(grid)}</div>'
            f'<figcaption><span class="ramp quick"></span> 0 to {write_number(float(seconds.max()))} s'
            f"{', <span class=failed></span> tried again' if troubled else ''}</figcaption></figure>"
        )
    slowest = known[np.argsort(-seconds, kind="stable")][:_MOST_ROWS]
    retried = np.flatnonzero((times.failed > 0) | (times.lost > 0))
    parts = [list_facts(summary), "<h3>Slowest blocks</h3>" if len(grid) > 1 else ""]
    parts.append(_list_blocks(times, grid, slowest) if len(grid) > 1 else "")
    if retried.size:
        worst = retried[np.argsort(-(times.failed + times.lost)[retried], kind="stable")][:_MOST_ROWS]
        more = f" ({retried.size - worst.size:,} more)" if retried.size > worst.size else ""
        parts.append(f"<h3>Blocks tried again{more}</h3>{_list_blocks(times, grid, worst)}")
    return f'<div class="pair"><div>{"".join(parts)}</div>{picture}</div>'


def _list_blocks(times: BlockTimes, grid: BlockGrid, block_ids: NDArray[np.int64]) -> str:
    rows = [
        (
            *map(str, (block_id, *grid[block_id].block_index)),
            *(f"{column[block_id]:,}" for column in (times.objects, times.failed, times.lost)),
            write_number(float(times.seconds[block_id])),
        )
        for block_id in block_ids.tolist()
    ]
    return tabulate(("block", "row", "column", "labels", "failures", "workers ended", "seconds"), rows, left=0)


def _colour(times: BlockTimes, grid: BlockGrid) -> NDArray[np.uint8]:
    """Colour blocks by their seconds, (rows, columns, 4); transparent where these aren't known."""
    is_known = np.isfinite(times.seconds)
    share = np.where(is_known, times.seconds, 0) / max(float(np.nanmax(times.seconds)), 1e-9)
    colours = np.zeros((len(grid), 4), np.uint8)
    for channel, ends in enumerate(zip(_QUICK, _SLOW, strict=True)):
        colours[:, channel] = np.interp(share, (0, 1), ends)
    colours[:, 3] = np.where(is_known, _OPACITY, 0)
    colours[(times.failed > 0) | (times.lost > 0)] = (*_FAILED, _OPACITY)
    return colours.reshape(*grid.grid_shape, 4)


STYLE = f"""
.ramp{{display:inline-block;width:90px;height:10px;border-radius:2px;vertical-align:-1px}}
.ramp.quick{{background:linear-gradient(90deg,rgb{_QUICK},rgb{_SLOW})}}
.pair .map{{max-width:320px}}
.failed{{display:inline-block;width:10px;height:10px;background:rgb{_FAILED}}}
"""
