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
from slidesam.tasks.grid import Region
from slidesam.tasks.labels.kernels import measure_labels
from slidesam.tasks.labels.objects import ObjectTable
from slidesam.tasks.labels.results import Frames, load_table
from slidesam.tasks.pixels.plan import in_block_levels, shard_region
from slidesam.tasks.pixels.pyramid import halve_labels
from slidesam.tasks.run.files import load_arrays, output_errors, read_json, save_array, save_arrays, write_json
from slidesam.tasks.run.marks import Marks, block_facts, kept_blocks
from slidesam.tasks.run.run import Run
from slidesam.tasks.stitch import report as seam_report
from slidesam.tasks.stitch.overlaps import BatchOverlaps, compare_blocks, join_batches
from slidesam.tasks.stitch.paint import Numbering, paint_block
from slidesam.tasks.stitch.resolve import resolve
from slidesam.tasks.stitch.tables import Instances, Pairs
from slidesam.tasks.store import ome_zarr as omezarr

# What a task compares or paints: some second of work, less where that would leave workers without any.
_TASK_PIXELS, _SMALLEST_TASK, _WANTED_TASKS = 64 * 2**20, 16 * 2**20, 16
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
    segmented = set(kept_blocks(run))
    tables = {block_id: _table(run, block_id) for block_id in group if block_id in segmented}
    counts = {block_id: table.area.size for block_id, table in tables.items()}
    # Also of the neighbours outside the group, which a seam may lead to.
    around = {seam.second for block_id in group for seam in run.grid.seams(block_id)} & segmented
    counts |= {block_id: _count(run, block_id) for block_id in around - counts.keys()}
    strips = Frames(run)
    overlaps = compare_blocks(run.grid, group, tables, counts, strips.view, run.settings.stitch.twin_border)
    save_arrays(_overlaps_path(run, group), overlaps._asdict())
    return len(overlaps.pairs)


def _table(run: Run, block_id: int) -> ObjectTable:
    return load_table(run, block_id) if _count(run, block_id) else ObjectTable.empty()


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
    path = run.stitch_folder.resolved
    resolved = read_json(path)
    if resolved is not None and all(run.stitch_folder.numbering(name).exists() for name in Numbering._fields):
        return resolved
    instances, pairs = load_instances(run)
    result = resolve(instances, pairs, run.settings.stitch)
    report = seam_report.make_report(run.grid, instances, pairs, result, min(run.scale.factor))
    numbering = Numbering(instances.offsets, result.relabelling, result.size)
    for name, array in numbering._asdict().items():
        save_array(run.stitch_folder.numbering(name), array)
    resolved = {"objects": result.objects, "seams": report}
    write_json(run.stitch_folder.causes, run.causes["stitch"])
    write_json(path, resolved)
    return resolved


def load_instances(run: Run) -> tuple[Instances, Pairs]:
    """All labels of all blocks and all their overlaps, from what the groups wrote.

    Raises:
        OutputError: A group's file is damaged or gone.
    """
    return join_batches(run.grid, [BatchOverlaps(**load_arrays(_overlaps_path(run, group))) for group in groups(run)])


def _overlaps_path(run: Run, group: tuple[int, ...]) -> Path:
    return run.stitch_folder.overlaps(group_name(group))


def is_compared(run: Run, group: tuple[int, ...]) -> bool:
    """Whether a group's overlaps are written."""
    return _overlaps_path(run, group).exists()


# ---------------------------------------------------------------------------------------------------------------- 3. paint


def paint_group(run: Run, group: tuple[int, ...]) -> None:
    """Writes the labels of a group's blocks to level 0 and to the further levels that they fill, then what they measure."""
    segmented, strips = set(kept_blocks(run)), Frames(run)
    levels = omezarr.open_levels(run.paths.label_image, run.settings.image.ome_zarr)
    in_block = in_block_levels(run.grid.block_shape, len(levels))
    numbering = _numbering(run)
    measures = [np.zeros((0, 1 + len(_MEASURES)), np.int64)]
    for block in (run.grid[block_id] for block_id in group):
        seen_by = (block.block_id, *run.grid.neighbours(block.block_id))
        sources = (run.grid[block_id] for block_id in seen_by if block_id in segmented)
        labels = paint_block(block, sources, numbering, strips.view, levels[0].dtype)
        if labels is None:
            continue
        measures.append(_measured(labels, block.inner))
        with output_errors(run.store):
            for number, array in enumerate(levels[:in_block]):
                omezarr.write_shards(array, shard_region(block.inner, number), labels)
                labels = halve_labels(labels)
    save_array(run.paint_folder.measures(group_name(group)), np.concatenate(measures))
    Marks(run.paint_folder).put(group_name(group), {})


def is_painted(run: Run, group: tuple[int, ...]) -> bool:
    """Whether a group's labels are written."""
    measured = run.paint_folder.measures(group_name(group)).exists()
    return measured and Marks(run.paint_folder).get(group_name(group)) is not None


def _numbering(run: Run) -> Numbering:
    """Read the numbering; only what is looked at comes into memory.

    Raises:
        OutputError: It is damaged or gone; it is forgotten, so that the next run does it again.
    """
    folder = run.stitch_folder
    try:
        # Not read-only, which numba would compile for once more; nothing is written back.
        return Numbering(*(np.asarray(np.load(folder.numbering(name), mmap_mode="c")) for name in Numbering._fields))
    except (OSError, ValueError, EOFError) as error:
        folder.resolved.unlink(missing_ok=True)
        raise OutputError(f"{folder.path} lost the numbers of the objects: run the same command again") from error


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
