"""The Prefect tasks, and nothing else: each opens what it needs, calls the functions of its room, and measures its time.

Their functions (`.fn`) are the one code path per block, seam and shard: serially, in a local cluster and in a job. Only runs
(paths and settings), block ids and small mappings travel in and out.

1. `ready_image`      the store's image if the slide is read in place, else empty arrays
2. `write_tiles`      some tiles of the slide, converted or rechunked
3. `finish_image`     upper levels, and the metadata of the image
4. `prepare_slide`    the segmenter's slide-wide parameters, the blocks that hold tissue
5. `segment_blocks`   labels of some blocks
6. `match_blocks`     the overlaps of a batch of blocks with its neighbours
7. `resolve_objects`  the slide's objects and their numbers, the seam report, the empty label pyramid
8. `paint_blocks`     a batch's labels: level 0 and the levels that blocks fill whole
9. `export_slide`     upper levels, overlay, table of classes, metadata, provenance
10. `verify_result`   what was written, compared with its checksums
11. `measure_objects_of_blocks`  parts of objects in a batch of blocks, if painting's files are gone
12. `index_objects`   where each object lies
13. `describe_objects`  rows of the table and outlines, of a batch of tiles
14. `write_objects`   a file of the objects

`write_small_image` is 1 to 3 in one task, `stitch_small_slide` 6 to 9, `write_small_objects` 11 to 14, where there is too
little to share among workers: a task takes a tenth of a second.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import zarr
from prefect import task
from prefect.cache_policies import NO_CACHE

from slidesam.tasks.errors import DamagedError, OutputError, SegmenterError, SlideError
from slidesam.tasks.export.describe import describe_batch
from slidesam.tasks.export.files import list_outline_forms, write_format
from slidesam.tasks.export.index import OutlineForm, batches_to_measure, measure_batch, tile_batches, write_index
from slidesam.tasks.report.overlay import write_overlay
from slidesam.tasks.report.provenance import make_provenance
from slidesam.tasks.run.files import output_errors
from slidesam.tasks.run.marks import list_blocks
from slidesam.tasks.run.records import Params, Provenance
from slidesam.tasks.run.run import Run
from slidesam.tasks.segment.loop import segment_missing
from slidesam.tasks.segment.prepare import prepare_run, read_tissue
from slidesam.tasks.settings.sections import ExportFormat
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.stitch.batches import (
    Batch,
    block_batches,
    compare_batch,
    is_compared,
    is_painted,
    paint_batch,
    resolve_run,
)
from slidesam.tasks.stitch.class_table import write_classes
from slidesam.tasks.stitch.label_image import finish_upper_levels, list_label_files, prepare_label_image
from slidesam.tasks.store import convert
from slidesam.tasks.store.image import check_shown, publish_image
from slidesam.tasks.store.ome_zarr import finish_label
from slidesam.tasks.store.verify import Depth, check_image, check_result, repair, take_back, word_damages

# Seconds to wait for another label's run that writes the image.
_IMAGE_WAIT = 60.0
Facts = dict[str, Any]


@task(name="ready image", cache_policy=NO_CACHE, persist_result=False)
def ready_image(run: Run) -> Facts:
    """Make empty arrays for the pixels; if they aren't converted, write the store's image."""
    start_time = time.perf_counter()
    with output_errors(run.store):
        if run.image_plan.mode != "convert":
            publish_image(run)
        if run.image_plan.mode != "in place":
            convert.ready_arrays(run)
    return {"seconds": time.perf_counter() - start_time}


@task(name="write tiles", cache_policy=NO_CACHE, persist_result=False)
def write_tiles(run: Run, level: int, tile_ids: Sequence[int]) -> Facts:
    """Convert or rechunk these tiles of a level, except those that are done."""
    start_time = time.perf_counter()
    with SlideReader(run.slide) as reader, output_errors(run.store):
        for tile_id in convert.missing_tiles(run, level, tile_ids):
            convert.write_tile(run, reader, level, tile_id)
    return {"seconds": time.perf_counter() - start_time}


@task(name="finish image", cache_policy=NO_CACHE, persist_result=False)
def finish_image(run: Run, levels: Sequence[int]) -> Facts:
    """Write the last levels, which are small, and then the metadata that makes the arrays an image."""
    start_time = time.perf_counter()
    for level in levels:
        write_tiles.fn(run, level, range(len(run.image_plan.grid(level))))
    with output_errors(run.store):
        convert.complete_image(run)
    return {"seconds": time.perf_counter() - start_time}


@task(name="small image", cache_policy=NO_CACHE, persist_result=False)
def write_small_image(run: Run) -> Facts:
    """Convert or rechunk a slide whose level 0 is a task's work, with all other levels and the metadata."""
    start_time = time.perf_counter()
    ready_image.fn(run)
    finish_image.fn(run, convert.tiled_levels(run))
    return {"seconds": time.perf_counter() - start_time}


@task(name="prepare", cache_policy=NO_CACHE, persist_result=False)
def prepare_slide(run: Run) -> Params:
    """Find what all blocks share, and which of them hold tissue, unless an earlier task has done so."""
    return prepare_run(run)


@task(name="segment blocks", cache_policy=NO_CACHE, persist_result=False)
def segment_blocks(run: Run, block_ids: Sequence[int], attempt: str = "", can_grow: bool = False) -> Facts:
    """Segment blocks that have no done-mark; one that fails doesn't stop the others.

    If this worker's job ends soon, the remaining blocks are returned as `left`, for other workers.

    Args:
        run: The run.
        block_ids: Which blocks.
        attempt: Identifies this attempt at the slide, within which the workers that a block ends are counted.
        can_grow: Whether larger workers can be had for blocks that run out of memory.

    Raises:
        OutputError: Results can't be written.
        SlideGoneError: The slide has changed or isn't there any more.
        BlockFailures: Some blocks failed; a single one's own error is raised instead.
    """
    start_time = time.perf_counter()
    remaining = segment_missing(run, block_ids, attempt, can_grow=can_grow)
    return {"seconds": time.perf_counter() - start_time, "left": remaining}


@task(name="match seams", cache_policy=NO_CACHE, persist_result=False)
def match_blocks(run: Run, batch: Batch) -> Facts:
    """Compare a batch of blocks with their neighbours."""
    start_time = time.perf_counter()
    if not is_compared(run, batch):
        compare_batch(run, batch)
    return {"seconds": time.perf_counter() - start_time}


@task(name="number objects", cache_policy=NO_CACHE, persist_result=False)
def resolve_objects(run: Run) -> Facts:
    """Number the slide's objects, report on its seams and make the empty label pyramid."""
    start_time = time.perf_counter()
    resolved = resolve_run(run)
    with output_errors(run.store):
        prepare_label_image(run, resolved.objects)
    return {
        "objects": resolved.objects,
        "warnings": resolved.seams.warnings,
        "seconds": time.perf_counter() - start_time,
    }


@task(name="paint", cache_policy=NO_CACHE, persist_result=False)
def paint_blocks(run: Run, batch: Batch) -> Facts:
    """Write the labels of a batch of blocks to level 0 and to the further levels that they fill with whole shards."""
    start_time = time.perf_counter()
    if not is_painted(run, batch):
        paint_batch(run, batch)
    return {"seconds": time.perf_counter() - start_time}


@task(name="export", cache_policy=NO_CACHE, persist_result=False)
def export_slide(run: Run, objects: int, seconds: dict[str, float]) -> Provenance:
    """Write the upper levels, the overlay and the table of classes, then what makes the result finished: metadata, and run.json.

    Raises:
        OutputError: The store's image isn't this run's any more.
    """
    start_time = time.perf_counter()
    check_shown(run)
    with output_errors(run.store):
        finish_upper_levels(run)
    mask = read_tissue(run)
    write_overlay(run, objects, mask, list_blocks(run))
    with output_errors(run.store):
        classes = write_classes(run)
        finish_label(zarr.open_group(run.store, mode="r+"), run.label, run.slide.mpp, run.slide.position, classes)
        file_list = list_label_files(run)
    seconds = {**seconds, "export": time.perf_counter() - start_time}
    seams = resolve_run(run).seams
    facts = make_provenance(run, objects=objects, seams=seams, seconds=seconds, file_list=file_list)
    facts.write(run.paths.provenance)
    # A row per seam is for the file, not for a flow's result.
    return facts.model_copy(update={"seams": seams.without_rows()})


@task(name="verify", cache_policy=NO_CACHE, persist_result=False)
def verify_result(run: Run) -> Facts:
    """Compare the files of the image and the label image with their checksums: some, or all.

    Raises:
        DamagedError: Some aren't as they were written; they are taken back, so that they are made again.
    """
    start_time = time.perf_counter()
    depth: Depth = "whole" if run.settings.run.verify == "whole" else "sample"
    image, labels = check_image(run.paths, depth), check_result(run.paths, depth)
    damaged = [finding for finding in (image, labels) if finding.damages]
    if labels.damages:
        # What was just written and can't be read is lost.
        take_back(labels, even_unreadable=True)
    if image.damages:
        # Another label's run may be writing it.
        repair(image, depth, f"the run of {run.label}", wait=_IMAGE_WAIT, even_unreadable=True)
    if damaged:
        raise DamagedError("; ".join(map(word_damages, damaged)), "run the same command again")
    return {"files": image.files + labels.files, "seconds": time.perf_counter() - start_time}


@task(name="stitch small slide", cache_policy=NO_CACHE, persist_result=False)
def stitch_small_slide(run: Run, seconds: dict[str, float]) -> tuple[list[str], Provenance]:
    """Stitch and export a slide whose blocks are one batch.

    Args:
        run: The run.
        seconds: Of the stages before, for the provenance.

    Returns:
        The warnings about its seams, and its provenance.
    """
    seconds = dict(seconds)
    batches = block_batches(run)
    seconds["match"] = sum(match_blocks.fn(run, batch)["seconds"] for batch in batches)
    resolved = resolve_objects.fn(run)
    seconds["resolve"] = resolved["seconds"]
    seconds["paint"] = sum(paint_blocks.fn(run, batch)["seconds"] for batch in batches)
    provenance = export_slide.fn(run, resolved["objects"], seconds)
    if run.settings.run.verify != "none":
        verify_result.fn(run)
    return list(resolved["warnings"]), provenance


@task(name="measure objects", cache_policy=NO_CACHE, persist_result=False)
def measure_objects_of_blocks(run: Run, batch: Batch) -> Facts:
    """Measure what a batch of blocks shows of objects."""
    start_time = time.perf_counter()
    measure_batch(run, batch)
    return {"seconds": time.perf_counter() - start_time}


@task(name="index objects", cache_policy=NO_CACHE, persist_result=False)
def index_objects(run: Run) -> Facts:
    """Find where each object lies, and which tile describes it."""
    start_time = time.perf_counter()
    objects = write_index(run)
    return {"objects": objects, "seconds": time.perf_counter() - start_time}


@task(name="describe objects", cache_policy=NO_CACHE, persist_result=False)
def describe_objects(run: Run, forms: Sequence[OutlineForm], tile_ids: Batch) -> Facts:
    """Measure the objects of a batch of tiles, and outline them in these forms."""
    start_time = time.perf_counter()
    describe_batch(run, tile_ids, forms)
    return {"seconds": time.perf_counter() - start_time}


@task(name="write objects", cache_policy=NO_CACHE, persist_result=False)
def write_objects(run: Run, kind: ExportFormat) -> Facts:
    """Write one file of the objects."""
    start_time = time.perf_counter()
    path = write_format(run, kind)
    return {"path": str(path), "seconds": time.perf_counter() - start_time}


@task(name="objects", cache_policy=NO_CACHE, persist_result=False)
def write_small_objects(run: Run, kinds: Sequence[ExportFormat]) -> Facts:
    """Write the files of the objects of a slide of few tiles."""
    start_time = time.perf_counter()
    for batch in batches_to_measure(run):
        measure_batch(run, batch)
    write_index(run)
    for tiles in tile_batches(run):
        describe_batch(run, tiles, list_outline_forms(kinds))
    failed = []
    for kind in kinds:
        try:
            write_format(run, kind)
        except DamagedError:
            raise
        except (OutputError, SlideError, SegmenterError) as error:
            # The others are written all the same.
            failed.append((kind, error))
    return {"failed": failed, "seconds": time.perf_counter() - start_time}
