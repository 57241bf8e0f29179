"""From the blocks' labels to one label image, batch of blocks by batch of blocks; files and order, the rule is `resolve`.

1. `compare_batch`   which labels of neighbouring blocks overlap, for the seams of a batch
2. `resolve_run`     the slide's objects, from all overlaps: the only step that sees the whole slide, but no pixel
3. `paint_batch`     the labels of a batch's blocks, level 0 and the further levels that a block fills, and measurements

A batch is a square of neighbouring blocks, so that few blocks are read by more than one task; each task takes some seconds at
most. It is made of whole *groups*: the blocks of one shard of the label image, which are painted into one array and written at
once, so that a slide is few files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from slidesam.tasks.grid import Block, Region
from slidesam.tasks.labels.parts import NO_PARTS, measure_parts
from slidesam.tasks.labels.results import BlockResults
from slidesam.tasks.pixels.plan import group_blocks, group_levels, shard_region
from slidesam.tasks.pixels.pyramid import halve_labels
from slidesam.tasks.run.array_files import load_arrays, read_array_facts, read_checksum, write_arrays
from slidesam.tasks.run.files import output_errors, remove_synced, write_json
from slidesam.tasks.run.marks import list_blocks
from slidesam.tasks.run.records import Resolved
from slidesam.tasks.run.run import Run
from slidesam.tasks.segmenters.votes import has_classes
from slidesam.tasks.stitch.classes import add_up_votes
from slidesam.tasks.stitch.numbering import StoredNumbering, save_numbering
from slidesam.tasks.stitch.overlaps import BatchOverlaps, compare_blocks, join_batches
from slidesam.tasks.stitch.paint import Numbering, paint_block, paint_group
from slidesam.tasks.stitch.report import find_seam_facts, make_report
from slidesam.tasks.stitch.resolve import resolve_labels
from slidesam.tasks.stitch.tables import BlockLabels, LabelPairs
from slidesam.tasks.store.arrays import open_levels, remove_shards, shard_paths, write_shards
from slidesam.tasks.store.file_list import Files, has_all, vouch_for

Batch = tuple[int, ...]
# What a task compares or paints: about a second of work, less where that would leave workers without any, more where the tasks
# would be too many, since each leaves files.
_TASK_PIXELS, _SMALLEST_TASK, _WANTED_TASKS, _MOST_TASKS = 64 * 2**20, 16 * 2**20, 16, 64


def block_batches(run: Run) -> list[Batch]:
    """Cut the slide into the batches of blocks, as ids, that are compared and painted together."""
    height, width = run.grid.shape
    pixels = min(_TASK_PIXELS, max(_SMALLEST_TASK, height * width // _WANTED_TASKS))
    pixels = max(pixels, height * width // _MOST_TASKS)
    group = run.group_shape
    groups = max(1, int((pixels / (group[0] * group[1])) ** 0.5))
    rows, columns = group_blocks(run.grid.block_shape)
    return list(run.grid.batches((groups * rows, groups * columns)))


def batch_name(batch: Batch) -> str:
    """Return the name that a batch's files carry; another way to cut the slide into batches has other names."""
    return f"{batch[0]}-{batch[-1]}"


# -------------------------------------------------------------------------------------------------------------- 1. compare


def compare_batch(run: Run, batch: Batch) -> int:
    """Write what neighbouring blocks have in common, for the seams in which a block of the batch comes first.

    Returns:
        How many pairs of labels overlap.

    Raises:
        DamagedError: A block's result is damaged or gone.
    """
    segmented, seen = set(list_blocks(run)), _seen_blocks(run, batch)
    # Before anything is read of them: blocks that are replaced meanwhile have other checksums.
    facts = {"blocks": _read_checksums(run, seen)}
    results = BlockResults(run)
    tables = {block_id: results.table(block_id) for block_id in batch if block_id in segmented}
    counts = {block_id: table.area.size for block_id, table in tables.items()}
    counts |= {block_id: results.count(block_id) for block_id in seen if block_id not in counts}
    overlaps = compare_blocks(run.grid, batch, tables, counts, results.view, run.settings.stitch.twin_border)
    write_arrays(_overlaps_path(run, batch), overlaps._asdict(), facts)
    return len(overlaps.pairs)


def _seen_blocks(run: Run, batch: Batch) -> list[int]:
    """List the segmented blocks that are compared for a batch: also neighbours outside of it, which a seam leads to."""
    neighbours = {seam.second for block_id in batch for seam in run.grid.seams(block_id)}
    return sorted(neighbours.union(batch).intersection(list_blocks(run)))


def _read_checksums(run: Run, block_ids: Sequence[int]) -> list[int | None]:
    return [read_checksum(run.segment_folder.block(block_id)) for block_id in block_ids]


# -------------------------------------------------------------------------------------------------------------- 2. resolve


def resolve_run(run: Run) -> Resolved:
    """Number the slide's objects and report on its seams, unless that is done.

    Raises:
        DamagedError: A block's result is damaged or gone.
    """
    folder = run.stitch_folder
    resolved, facts = Resolved.read(folder.resolved), read_array_facts(folder.numbering)
    if resolved is not None and facts is not None and facts.get("overlaps") == _overlaps_checksums(run):
        return resolved
    labels, pairs = load_labels(run)
    resolution = resolve_labels(labels, pairs, run.settings.stitch)
    report = make_report(run.grid, labels, pairs, resolution, max(run.scale.factor))
    numbering = Numbering(labels.offsets, resolution.relabelling, resolution.size)
    seam_facts = find_seam_facts(run.grid, labels, pairs, resolution)
    save_numbering(run, numbering, seam_facts, {"overlaps": _overlaps_checksums(run)})
    resolved = Resolved(objects=resolution.objects, seams=report)
    write_json(folder.causes, run.causes["stitch"])
    resolved.write(folder.resolved)
    return resolved


def load_labels(run: Run) -> tuple[BlockLabels, LabelPairs]:
    """Load the labels of all blocks and all their overlaps, from what the batches wrote.

    Compare again where it is gone, or was made of other results: a task of an earlier attempt may have written it late.

    Raises:
        DamagedError: A batch's file, or a block's, is damaged and removed, or gone.
    """
    overlaps = [_load_overlaps(run, batch) for batch in block_batches(run)]
    return join_batches(run.grid, overlaps, run.scale.factor)


def _load_overlaps(run: Run, batch: Batch) -> BatchOverlaps:
    path, made_of = _overlaps_path(run, batch), _read_checksums(run, _seen_blocks(run, batch))
    facts = read_array_facts(path)
    if facts is None or facts.get("blocks") != made_of:
        compare_batch(run, batch)
    return BatchOverlaps(**load_arrays(path))


def _overlaps_checksums(run: Run) -> list[int | None]:
    return [read_checksum(_overlaps_path(run, batch)) for batch in block_batches(run)]


def _overlaps_path(run: Run, batch: Batch) -> Path:
    return run.stitch_folder.overlaps(batch_name(batch))


def is_compared(run: Run, batch: Batch) -> bool:
    """Whether a batch's overlaps are written."""
    return read_array_facts(_overlaps_path(run, batch)) is not None


# ---------------------------------------------------------------------------------------------------------------- 3. paint


def paint_batch(run: Run, batch: Batch) -> None:
    """Write the labels of a batch's blocks to level 0 and to the further levels that a group fills, then their measurements.

    One group after the other, so that memory holds one.

    Raises:
        DamagedError: A block's result or the numbering is damaged or gone.
        OutputError: The label image can't be written.
    """
    segmented, results = set(list_blocks(run)), BlockResults(run)
    levels = open_levels(run.paths.label_image, run.settings.image.ome_zarr)
    numbering = StoredNumbering(run, results)
    # From now on the levels that groups don't fill no longer show what is painted.
    remove_synced(run.paint_folder.whole_mark)
    measures = [NO_PARTS]

    def paint(block: Block) -> NDArray[Any] | None:
        seen_by = (block.block_id, *run.grid.neighbours(block.block_id))
        sources = (run.grid[block_id] for block_id in seen_by if block_id in segmented)
        labels = paint_block(block, sources, numbering, results.view, levels[0].dtype)
        if labels is not None:
            measures.append(measure_parts(labels, block.inner))
        return labels

    written: list[Path] = []
    for blocks in _split_groups(run, batch):
        region, labels = paint_group(blocks, paint, levels[0].dtype)
        with output_errors(run.store):
            written += _write_group(levels[: group_levels(run.group_shape, len(levels))], region, labels)
        # Before the next group is painted: a group takes 64 MiB.
        del labels
    arrays: dict[str, NDArray[Any]] = {"measures": np.concatenate(measures)}
    if has_classes(run.settings.segmenter):
        arrays |= add_up_votes(sorted(segmented.intersection(batch)), numbering, results)._asdict()
    # Last, as it is the batch's done-mark.
    facts = {"files": vouch_for(written, run.output, is_sparse=True), "numbering": numbering.checksum}
    write_arrays(run.paint_folder.measures(batch_name(batch)), arrays, facts)


def _split_groups(run: Run, batch: Batch) -> Iterator[list[Block]]:
    """Split a batch into its groups."""
    rows, columns = group_blocks(run.grid.block_shape)
    groups: dict[tuple[int, int], list[Block]] = {}
    for block in (run.grid[block_id] for block_id in batch):
        row, column = block.block_index
        groups.setdefault((row // rows, column // columns), []).append(block)
    return iter(groups.values())


def _write_group(levels: Sequence[zarr.Array[Any]], region: Region, labels: NDArray[Any] | None) -> list[Path]:
    """Write a group's labels to the levels that it fills; return where its shards lie, if it has any."""
    written: list[Path] = []
    for number, array in enumerate(levels):
        if labels is None:
            remove_shards(array, shard_region(region, number))
        else:
            write_shards(array, shard_region(region, number), labels)
            written += shard_paths(array, shard_region(region, number))
            labels = halve_labels(labels)
    return written


def is_painted(run: Run, batch: Batch) -> bool:
    """Whether a batch's labels are written."""
    files = painted_files(run, batch)
    return files is not None and has_all(files, run.output)


def painted_files(run: Run, batch: Batch) -> Files | None:
    """Return the files that hold a batch's labels, as its done-mark has them; None if it isn't painted with this numbering."""
    facts = read_array_facts(run.paint_folder.measures(batch_name(batch)))
    if facts is None or facts.get("numbering") != read_checksum(run.stitch_folder.numbering):
        return None
    return {path: (size, checksum) for path, (size, checksum) in facts["files"].items()}
