"""From the blocks' labels to one label image, group of blocks by group of blocks.

1. `compare_group`   which labels of neighbouring blocks overlap, for the seams of a group
2. `resolve_run`     the slide's objects, from all overlaps: the only step that sees the whole slide, but no pixel
3. `paint_group`     the labels of a group's blocks, level 0 and what it fills of the levels above, and measurements

A group is a square of neighbouring blocks, so that few blocks are read by more than one task; each task takes a second or so.
docs/stitching.md explains the rule by which objects are matched, `resolve` has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from slidesam.tasks.errors import OutputError
from slidesam.tasks.grid import Block, Region, Seam
from slidesam.tasks.labels.kernels import View, measure_labels, overlay
from slidesam.tasks.labels.objects import ObjectTable, twins
from slidesam.tasks.labels.results import BlockResults, Frames, load_table
from slidesam.tasks.pixels.plan import in_block_levels, shard_region
from slidesam.tasks.pixels.pyramid import halve_labels
from slidesam.tasks.run.files import load_arrays, output_errors, read_json, save_array, save_arrays, write_json
from slidesam.tasks.run.marks import Marks, block_facts, kept_blocks
from slidesam.tasks.run.run import Run
from slidesam.tasks.stitch import report as seam_report
from slidesam.tasks.stitch.match import compare_views
from slidesam.tasks.stitch.resolve import resolve
from slidesam.tasks.stitch.tables import Instances, Pairs
from slidesam.tasks.store import ome_zarr as omezarr

# What a task compares or paints: some second of work, less where that would leave workers without any.
_TASK_PIXELS, _SMALLEST_TASK, _WANTED_TASKS = 64 * 2**20, 16 * 2**20, 16
_NUMBERING = ("offsets", "relabelling", "sizes")
_MEASURES = ("area", "sum_y", "sum_x", "y0", "x0", "y1", "x1")


def groups(run: Run) -> list[tuple[int, ...]]:
    """The groups of blocks that are compared and painted together."""
    height, width = run.grid.shape
    pixels = min(_TASK_PIXELS, max(_SMALLEST_TASK, height * width // _WANTED_TASKS))
    block = run.grid.block_shape[0] * run.grid.block_shape[1]
    return list(run.grid.groups(max(1, int((pixels / block) ** 0.5))))


def group_name(group: tuple[int, ...]) -> str:
    """By which a group's files are known; another way to cut the slide into groups has other names."""
    return f"{group[0]}-{group[-1]}"


# -------------------------------------------------------------------------------------------------------------- 1. compare


def compare_group(run: Run, group: tuple[int, ...]) -> int:
    """Writes what neighbouring blocks have in common, for the seams in which a block of the group comes first.

    Returns:
        How many pairs of labels overlap.
    """
    kept = set(kept_blocks(run))
    own = [block_id for block_id in group if block_id in kept]
    frames = Frames(run)
    tables = [_table(run, block_id) for block_id in own]
    counts = {block_id: table.area.size for block_id, table in zip(own, tables, strict=True)}
    # Also of the neighbours outside the group, which a seam may lead to.
    around = {seam.second for block_id in group for seam in run.grid.seams(block_id)} & kept
    known = counts | {block_id: _count(run, block_id) for block_id in around - counts.keys()}
    pairs, reach = [np.zeros((0, 9), np.int32)], [np.zeros((0, 5), np.int32)]
    for seam in (seam for block_id in group for seam in run.grid.seams(block_id)):
        if not kept.isdisjoint(seam[:2]):
            found = _compare_seam(run, seam, frames, kept, known)
            pairs.append(found[0])
            reach.append(found[1])
    ratio = run.settings.stitch.twin_border
    couples = [_with_block(block_id, twins(table, ratio)) for block_id, table in zip(own, tables, strict=True)]
    arrays: dict[str, NDArray[Any]] = {
        "blocks": np.asarray(own, np.int64),
        "counts": np.asarray(list(counts.values()), np.int64),
        **{name: _joined([getattr(table, name) for table in tables], name) for name in _KNOWN},
        "twins": np.concatenate([np.zeros((0, 3), np.int64), *couples]),
        "pairs": np.concatenate(pairs),
        "reach": np.concatenate(reach),
    }
    save_arrays(_overlaps_path(run, group), arrays)
    return int(arrays["pairs"].shape[0])


_KNOWN: dict[str, tuple[int, ...]] = {"area": (), "owned": (), "depth": (), "box": (4,)}


def _joined(parts: list[NDArray[Any]], name: str) -> NDArray[np.int32]:
    return np.concatenate([np.zeros((0, *_KNOWN[name]), np.int32), *(part.astype(np.int32) for part in parts)])


def _table(run: Run, block_id: int) -> ObjectTable:
    return load_table(run, block_id) if _count(run, block_id) else ObjectTable.empty()


def _with_block(block_id: int, couples: NDArray[np.uint32]) -> NDArray[np.int64]:
    return np.column_stack([np.full(len(couples), block_id), couples]).astype(np.int64)


def _compare_seam(
    run: Run, seam: Seam, frames: Frames, kept: set[int], counts: dict[int, int]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Pairs (first block, second block, then as in `Overlaps`) and reach (block, label, into which, ...) of one seam."""
    first, second = run.grid[seam.first], run.grid[seam.second]
    one, two = (_view(frames, block, seam.overlap, kept, counts) for block in (first, second))
    owned_by_one, owned_by_two = ((block.inner & seam.overlap).relative_to(seam.overlap) for block in (first, second))
    found = compare_views(one, two, seam.overlap.shape, owned_by_one, owned_by_two)
    blocks = np.array([seam.first, seam.second], np.int32)
    side = found.reach[:, 0]
    reach = np.column_stack([blocks[side], found.reach[:, 1], blocks[1 - side], found.reach[:, 2:]])
    return np.column_stack([np.broadcast_to(blocks, (len(found.pairs), 2)), found.pairs]), reach


def _view(frames: Frames, block: Block, region: Region, kept: set[int], counts: dict[int, int]) -> View:
    """A block's labels, or background where it has none or is left out."""
    if block.block_id not in kept or not counts[block.block_id]:
        return View(np.zeros(region.shape, np.uint32))
    return frames.view(block, region)


def _count(run: Run, block_id: int) -> int:
    """How many objects a block has.

    Raises:
        OutputError: Its result is gone.
    """
    facts = block_facts(run, block_id)
    if facts is None:
        raise OutputError(f"{run.name}: block {block_id} lost its result: run the same command again")
    return int(facts["count"])


# -------------------------------------------------------------------------------------------------------------- 2. resolve


def resolve_run(run: Run) -> dict[str, Any]:
    """Numbers the slide's objects and reports on its seams, unless that is done.

    Returns:
        `objects`, their number, and `seams`, the report.
    """
    path = run.stitch_folder / "resolved.json"
    resolved = read_json(path)
    if resolved is not None and all((run.stitch_folder / f"{name}.npy").exists() for name in _NUMBERING):
        return resolved
    instances, pairs = load_instances(run)
    result = resolve(instances, pairs, run.settings.stitch)
    report = seam_report.make_report(run.grid, instances, pairs, result, min(run.scale.factor))
    save_array(run.stitch_folder / "offsets.npy", instances.offsets)
    save_array(run.stitch_folder / "relabelling.npy", result.relabelling)
    save_array(run.stitch_folder / "sizes.npy", result.size)
    resolved = {"objects": result.objects, "seams": report}
    write_json(run.stitch_folder / "causes.json", run.causes["stitch"])
    write_json(path, resolved)
    return resolved


def load_instances(run: Run) -> tuple[Instances, Pairs]:
    """All labels of all blocks and all their overlaps, from what the groups wrote.

    Raises:
        OutputError: A group's file is damaged or gone.
    """
    parts = [load_arrays(_overlaps_path(run, group)) for group in groups(run)]
    blocks, counts = (np.concatenate([part[name] for part in parts]) for name in ("blocks", "counts"))
    per_block = np.zeros(len(run.grid), np.int64)
    per_block[blocks] = counts
    offsets = np.concatenate([[0], np.cumsum(per_block)])
    known = {name: np.concatenate([part[name] for part in parts]) for name in _KNOWN}
    # Groups aren't in block order.
    order = _in_block_order(blocks, counts, offsets)
    known = {name: _placed(column, order) for name, column in known.items()}
    couples = np.concatenate([part["twins"] for part in parts])
    couples = offsets[couples[:, :1]] + couples[:, 1:] - 1
    instances = Instances(offsets=offsets, twins=couples, halo=run.grid.halo, **known)
    rows = np.concatenate([part["pairs"] for part in parts]).astype(np.int64)
    reach = np.concatenate([part["reach"] for part in parts]).astype(np.int64)
    pairs = Pairs(
        first=offsets[rows[:, 0]] + rows[:, 2] - 1,
        second=offsets[rows[:, 1]] + rows[:, 3] - 1,
        shared=rows[:, 4],
        shared_owned=rows[:, 5:7],
        area=rows[:, 7:9],
        reaching=offsets[reach[:, 0]] + reach[:, 1] - 1,
        into=reach[:, 2],
        reach=reach[:, 3:5],
    )
    return instances, pairs


def _in_block_order(
    blocks: NDArray[np.int64], counts: NDArray[np.int64], offsets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Where each row of columns that hold the blocks one after the other belongs."""
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.repeat(offsets[blocks] - before, counts) + np.arange(int(counts.sum()))


def _placed(column: NDArray[Any], places: NDArray[np.int64]) -> NDArray[Any]:
    out = np.empty_like(column)
    out[places] = column
    return out


def _overlaps_path(run: Run, group: tuple[int, ...]) -> Path:
    return run.stitch_folder / "overlaps" / f"{group_name(group)}.npz"


def is_compared(run: Run, group: tuple[int, ...]) -> bool:
    """Whether a group's overlaps are written."""
    return _overlaps_path(run, group).exists()


# ---------------------------------------------------------------------------------------------------------------- 3. paint


def paint_group(run: Run, group: tuple[int, ...]) -> None:
    """Writes the labels of a group's blocks to level 0 and to the further levels that they fill, then what they measure."""
    kept = set(kept_blocks(run))
    results, frames = BlockResults.of(run), Frames(run)
    levels = omezarr.open_levels(run.store / "labels" / run.label, run.settings.image.ome_zarr)
    in_block = in_block_levels(run.grid.block_shape, len(levels))
    numbering = _numbering(run)
    measures = [np.zeros((0, 1 + len(_MEASURES)), np.int64)]
    for block_id in group:
        labels = _painted(run, run.grid[block_id], results, frames, kept, numbering, levels[0].dtype)
        if labels is None:
            continue
        measures.append(_measured(labels, run.grid[block_id].inner))
        with output_errors(run.store):
            for number, array in enumerate(levels[:in_block]):
                omezarr.write_shards(array, shard_region(run.grid[block_id].inner, number), labels)
                labels = halve_labels(labels)
    save_array(run.paint_folder / "measures" / f"{group_name(group)}.npy", np.concatenate(measures))
    Marks(run.paint_folder).put(group_name(group), {})


def is_painted(run: Run, group: tuple[int, ...]) -> bool:
    """Whether a group's labels are written."""
    measured = (run.paint_folder / "measures" / f"{group_name(group)}.npy").exists()
    return measured and Marks(run.paint_folder).get(group_name(group)) is not None


def _numbering(run: Run) -> dict[str, NDArray[np.int64]]:
    """Offsets, relabelling and sizes; only what is looked at comes into memory.

    Raises:
        OutputError: They are damaged or gone; the numbering is forgotten, so that the next run does it anew.
    """
    folder = run.stitch_folder
    try:
        # Not read-only, which numba would compile for once more; nothing is written back.
        found = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in _NUMBERING}
    except (OSError, ValueError, EOFError) as error:
        (folder / "resolved.json").unlink(missing_ok=True)
        raise OutputError(f"{folder} lost the numbers of the objects: run the same command again") from error
    return found


def _painted(
    run: Run,
    block: Block,
    results: BlockResults,
    frames: Frames,
    kept: set[int],
    numbering: dict[str, NDArray[np.int64]],
    dtype: np.dtype[Any],
) -> NDArray[Any] | None:
    """(y, x) ids of a block's inner region; None where no block shows anything."""
    painted: NDArray[Any] = np.zeros(block.inner.shape, dtype)
    shown = False
    for block_id in (block.block_id, *run.grid.neighbours(block.block_id)):
        ids = _ids(numbering, block_id) if block_id in kept else None
        # Of another block's labels only those that are painted as a whole come here.
        ids = np.abs(ids) if ids is not None and block_id == block.block_id else ids
        if ids is None or not (ids > 0).any():
            continue
        other = run.grid[block_id]
        region = block.inner & other.outer
        at = region.relative_to(block.inner)[:2]
        view = View(results.read(other, region)) if other == block else frames.view(other, region)
        overlay(painted, at, view, region.shape, ids, numbering["sizes"])
        shown = True
    return painted if shown else None


def _ids(numbering: dict[str, NDArray[np.int64]], block_id: int) -> NDArray[np.int64]:
    """Id in the slide by a block's local label, 0 for background."""
    start, stop = numbering["offsets"][block_id : block_id + 2]
    return np.concatenate([np.zeros(1, np.int64), numbering["relabelling"][start:stop]])


def _measured(labels: NDArray[Any], inner: Region) -> NDArray[np.int64]:
    """(n, 8) id, area, sums of y and x, and box, in the slide's coordinates, of the objects in a block's inner region."""
    ids, parts = measure_labels(labels)
    area = parts[:, 0]
    parts[:, 1] += inner.y0 * area
    parts[:, 2] += inner.x0 * area
    parts[:, [3, 5]] += inner.y0
    parts[:, [4, 6]] += inner.x0
    return np.column_stack([ids, parts])


def ready_label(run: Run, objects: int) -> None:
    """Makes the empty label pyramid."""
    dtype = np.dtype(np.uint32 if objects < 2**32 else np.uint64)
    root = zarr.open_group(run.store, mode="r+")
    omezarr.create_label(root, run.label, run.grid.shape, run.grid.block_shape, dtype, run.settings.image)
