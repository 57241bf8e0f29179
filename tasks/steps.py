"""The Prefect tasks: each opens what it needs, calls the pure function, writes the result, then its done-mark.

Their functions (`.fn`) are the one code path per block, seam and shard: serial, in a local cluster and in a job. Only runs
(paths and settings), block ids and small mappings travel in and out.

1. `prepare_slide`    the store's image, the segmenter's slide-wide parameters
2. `segment_block`    labels of one block
3. `match_blocks`     matches at the seams of some blocks
4. `resolve_objects`  one relabelling for the slide, the empty label pyramid
5. `paint_blocks`     level 0 and the levels that blocks fill whole
6. `export_slide`     upper levels, overlay, metadata, provenance
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from prefect import task
from prefect.cache_policies import NO_CACHE

from slidesam.tasks import omezarr, stitch
from slidesam.tasks.errors import OutputError
from slidesam.tasks.grid import Region
from slidesam.tasks.overlay import write_overlay
from slidesam.tasks.overview import publish_image, read_published
from slidesam.tasks.plan import provenance
from slidesam.tasks.pyramid import halve_labels, halve_level
from slidesam.tasks.sample import sample_slide
from slidesam.tasks.segment import background_of, segment_outer
from slidesam.tasks.segmenters import jsonable_params, load_segmenter
from slidesam.tasks.slide import SlideReader
from slidesam.tasks.work import (
    BlockResults,
    Marks,
    Run,
    block_facts,
    load_arrays,
    read_json,
    save_array,
    save_arrays,
    write_json,
)

Facts = dict[str, Any]


@task(name="prepare", cache_policy=NO_CACHE, persist_result=False, tags=["slidesam"])
def prepare_slide(run: Run) -> Facts:
    """Writes the store's image and the parameters that all blocks share, unless they are there."""
    started = time.perf_counter()
    # First of all, so that nothing is written for a segmenter that can't be made.
    segmenter = _segmenter(run)
    publish_image(run)
    path = run.segment_folder / "params.json"
    known = read_json(path)
    if known is None:
        overview = read_published(run, run.slide.channels)
        sample = sample_slide(run.slide, overview, run.slide.channels)
        params = jsonable_params(segmenter.prepare(sample[..., 0] if sample.shape[2] == 1 else sample, run.slide))
        fill = background_of(overview, is_rgb=run.slide.is_rgb)
        known = {"params": params, "fill": fill.tolist(), "seconds": time.perf_counter() - started}
        write_json(path, known)
    BlockResults(run, create=True)
    return known


@task(name="segment block", cache_policy=NO_CACHE, persist_result=False, tags=["slidesam", "segment"])
def segment_block(run: Run, block_id: int) -> Facts:
    """Segments one block, unless its done-mark is there."""
    if (done := block_facts(run, block_id)) is not None:
        return done
    started = time.perf_counter()
    known = read_json(run.segment_folder / "params.json")
    if known is None:
        raise OutputError(f"{run.name}: {run.segment_folder} lost its params.json: run the same command again")
    block, segmenter = run.grid[block_id], _segmenter(run)
    with SlideReader(run.slide) as reader:
        image = reader.read(block.outer)
    fill = np.asarray(known["fill"], image.dtype)
    labels = segment_outer(image, block, run.grid, segmenter, known["params"], fill)
    BlockResults(run).write(block, labels)
    count = int(labels.max(initial=0))
    visible = stitch.visible_ids(labels[block.inner.relative_to(block.outer).slices], count)
    facts = {
        "count": count,
        "halo_only": (np.flatnonzero(~visible) + 1).tolist(),
        "seconds": round(time.perf_counter() - started, 3),
        # Part of what makes results equal, so the provenance has them.
        "device": getattr(segmenter, "device", "cpu"),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    Marks(run.segment_folder).put(block_id, facts)
    return facts


@task(name="match seams", cache_policy=NO_CACHE, persist_result=False, tags=["slidesam", "stitch"])
def match_blocks(run: Run, block_ids: Sequence[int]) -> Facts:
    """Matches at the seams in which these blocks come first."""
    started = time.perf_counter()
    results, marks = BlockResults(run), Marks(run.stitch_folder)
    found = 0
    for block_id in block_ids:
        path = run.stitch_folder / "matches" / f"{block_id}.npz"
        if marks.get(block_id) is not None and path.exists():
            continue
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for seam in run.grid.seams(block_id):
            first, second = (results.read(run.grid[side], seam.overlap) for side in (seam.first, seam.second))
            matches = stitch.match_seam(first, second, run.settings.stitch.min_iou)
            arrays |= {f"{seam.second}.{field}": array for field, array in matches._asdict().items()}
            found += matches.first.size
        save_arrays(path, arrays)
        marks.put(block_id, {"seconds": round(time.perf_counter() - started, 3)})
    return {"matches": found, "seconds": time.perf_counter() - started}


@task(name="number objects", cache_policy=NO_CACHE, persist_result=False, tags=["slidesam", "stitch"])
def resolve_objects(run: Run) -> Facts:
    """Numbers the slide's objects and makes the empty label pyramid."""
    path = run.stitch_folder / "resolved.json"
    resolved = read_json(path)
    if resolved is None:
        marks = [block_facts(run, block_id) for block_id in range(len(run.grid))]
        lost = marks.count(None)
        if lost:
            raise OutputError(f"{run.name}: {lost} blocks lost their results: run the same command again")
        counts = [mark["count"] for mark in marks if mark is not None]
        visible = [np.ones(count, bool) for count in counts]
        for array, mark in zip(visible, marks, strict=True):
            array[np.asarray(mark["halo_only"] if mark else [], np.int64) - 1] = False
        offsets, relabelling, objects = stitch.resolve(counts, visible, _matches(run))
        save_array(run.stitch_folder / "offsets.npy", offsets)
        save_array(run.stitch_folder / "relabelling.npy", relabelling)
        resolved = {"objects": objects}
        write_json(path, resolved)
    _ready_label(run, resolved["objects"])
    return resolved


@task(name="paint", cache_policy=NO_CACHE, persist_result=False, tags=["slidesam", "stitch"])
def paint_blocks(run: Run, block_ids: Sequence[int]) -> Facts:
    """Writes these blocks' inner regions to level 0 and to the further levels that they fill with whole shards."""
    started = time.perf_counter()
    results, marks = BlockResults(run), Marks(run.paint_folder)
    levels = _label_levels(run)
    in_block = omezarr.in_block_levels(run.grid.block_shape, len(levels))
    # Only this batch's part of them comes into memory.
    offsets, relabelling = (
        np.load(run.stitch_folder / f"{name}.npy", mmap_mode="r") for name in ("offsets", "relabelling")
    )
    for block_id in block_ids:
        if marks.get(block_id) is not None:
            continue
        block = run.grid[block_id]
        own = relabelling[offsets[block_id] : offsets[block_id + 1]]
        labels = stitch.paint(results.read(block, block.inner), own, levels[0].dtype)
        region = block.inner
        for array in levels[:in_block]:
            omezarr.write_plane(array, region, labels)
            labels = halve_labels(labels)
            region = Region(region.y0 // 2, region.x0 // 2, -(-region.y1 // 2), -(-region.x1 // 2))
        marks.put(block_id, {})
    return {"seconds": time.perf_counter() - started}


@task(name="export", cache_policy=NO_CACHE, persist_result=False, tags=["slidesam", "export"])
def export_slide(run: Run, objects: int, seconds: dict[str, float]) -> Facts:
    """Writes the upper levels and the overlay, then what makes the result count as finished: metadata, and run.json."""
    started = time.perf_counter()
    levels = _label_levels(run)
    for level in range(omezarr.in_block_levels(run.grid.block_shape, len(levels)), len(levels)):
        halve_level(levels[level - 1], levels[level])
    write_overlay(run, objects)
    omezarr.finish_label(zarr.open_group(run.store, mode="r+"), run.label, run.slide.mpp)
    seconds = {**seconds, "export": time.perf_counter() - started}
    facts = provenance(run, objects=objects, seconds=seconds)
    write_json(run.provenance, facts)
    return facts


def _segmenter(run: Run) -> Any:
    return load_segmenter(run.settings.segmenter.model_dump_json(), run.slide.is_rgb, run.segmenter_identity)


def _matches(run: Run) -> list[tuple[int, int, stitch.Matches]]:
    found = []
    for block_id in range(len(run.grid)):
        arrays = load_arrays(run.stitch_folder / "matches" / f"{block_id}.npz")
        for seam in run.grid.seams(block_id):
            fields = (arrays[f"{seam.second}.{field}"] for field in stitch.Matches._fields)
            found.append((seam.first, seam.second, stitch.Matches(*fields)))
    return found


def _ready_label(run: Run, objects: int) -> None:
    """Makes the empty label pyramid, unless this very one is being painted already."""
    started = run.paint_folder / "started.json"
    if read_json(started) is not None and (run.store / "labels" / run.label / "0").is_dir():
        return
    run.provenance.unlink(missing_ok=True)
    run.overlay.unlink(missing_ok=True)
    for old in run.work.glob("paint-*"):
        _forget(old)
    dtype = np.dtype(np.uint32 if objects < 2**32 else np.uint64)
    root = zarr.open_group(run.store, mode="r+")
    omezarr.create_label(root, run.label, run.grid.shape, run.grid.block_shape, dtype, run.settings.image)
    write_json(started, {"objects": objects})


def _forget(folder: Path) -> None:
    """Removes a folder of marks, the one that says `started` first."""
    (folder / "started.json").unlink(missing_ok=True)
    shutil.rmtree(folder)


def _label_levels(run: Run) -> list[zarr.Array[Any]]:
    group = zarr.open_group(run.store / "labels" / run.label, mode="r+")
    return [array for _, array in sorted(group.arrays(), key=lambda item: int(item[0]))]
