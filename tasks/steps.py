"""The Prefect tasks: each opens what it needs, calls the pure function, writes the result, then its done-mark.

Their functions (`.fn`) are the one code path per block, seam and shard: serial, in a local cluster and in a job. Only runs
(paths and settings), block ids and small mappings travel in and out.

1. `ready_image`      the store's image where the slide is read in place, else empty arrays
2. `write_pieces`     some pieces of the slide, converted or rechunked
3. `finish_image`     upper levels, and what makes the arrays an image
4. `prepare_slide`    the segmenter's slide-wide parameters, the blocks that hold tissue
5. `segment_blocks`   labels of some blocks
6. `match_blocks`     what a group of blocks has in common with its neighbours
7. `resolve_objects`  the slide's objects and their numbers, the seam report, the empty label pyramid
8. `paint_blocks`     a group's labels: level 0 and the levels that blocks fill whole
9. `export_slide`     upper levels, overlay, metadata, provenance
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE

from slidesam.tasks.errors import BlockFailure, BlockFailures
from slidesam.tasks.labels.objects import describe_block
from slidesam.tasks.labels.results import BlockResults, save_frame, save_table
from slidesam.tasks.pixels.background import background_of
from slidesam.tasks.pixels.mask_image import read_mask
from slidesam.tasks.pixels.plan import in_block_levels
from slidesam.tasks.pixels.pyramid import halve_labels, region_below, shard_regions
from slidesam.tasks.pixels.resample import to_level0
from slidesam.tasks.pixels.sample import sample_slide
from slidesam.tasks.pixels.tissue import blocks_with_tissue, find_tissue
from slidesam.tasks.report.overlay import write_overlay
from slidesam.tasks.report.provenance import provenance
from slidesam.tasks.run.files import load_arrays, output_errors, read_json, save_arrays, write_json
from slidesam.tasks.run.marks import Marks, block_facts, is_segmented, kept_blocks, prepared
from slidesam.tasks.run.run import Run
from slidesam.tasks.segment.block import begin_outer, renumbered
from slidesam.tasks.segment.devices import check_given, check_torch
from slidesam.tasks.segment.finisher import Finisher
from slidesam.tasks.segment.start_marks import Attempts, is_leaving
from slidesam.tasks.segmenters import Segmenter, jsonable_params, load_segmenter
from slidesam.tasks.settings.types import seconds_of
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.stitch import groups as stitch
from slidesam.tasks.store import convert
from slidesam.tasks.store import ome_zarr as omezarr
from slidesam.tasks.store.image import publish_image, slide_overview
from slidesam.tasks.store.readers import open_pixels

Facts = dict[str, Any]


@task(name="ready image", cache_policy=NO_CACHE, persist_result=False)
def ready_image(run: Run) -> Facts:
    """Makes empty arrays for the pixels; where they aren't converted, the store's image."""
    started = time.perf_counter()
    with output_errors(run.store):
        if run.image_plan.mode != "convert":
            publish_image(run)
        if run.image_plan.mode != "in place":
            convert.ready_arrays(run)
    return {"seconds": time.perf_counter() - started}


@task(name="write pieces", cache_policy=NO_CACHE, persist_result=False)
def write_pieces(run: Run, level: int, piece_ids: Sequence[int]) -> Facts:
    """Converts or rechunks these pieces of a level, but for those that are done."""
    started = time.perf_counter()
    with SlideReader(run.slide) as reader, output_errors(run.store):
        for piece_id in convert.pieces_to_do(run, level, piece_ids):
            convert.write_piece(run, reader, level, piece_id)
    return {"seconds": time.perf_counter() - started}


@task(name="finish image", cache_policy=NO_CACHE, persist_result=False)
def finish_image(run: Run, levels: Sequence[int]) -> Facts:
    """Writes the last levels, which are small, and then what makes the arrays an image."""
    started = time.perf_counter()
    for level in levels:
        write_pieces.fn(run, level, range(len(run.image_plan.grid(level))))
    with output_errors(run.store):
        convert.finish_image(run)
    return {"seconds": time.perf_counter() - started}


@task(name="prepare", cache_policy=NO_CACHE, persist_result=False)
def prepare_slide(run: Run) -> Facts:
    """Finds what all blocks share, and which of them hold tissue, unless that is known."""
    started = time.perf_counter()
    if is_segmented(run):
        # A model that wants a GPU isn't loaded where there is nothing left to segment.
        return prepared(run)
    # First of all, so that nothing is written for a segmenter that can't be made.
    segmenter = _segmenter(run)
    path = run.segment_folder / "params.json"
    known = read_json(path)
    if known is None:
        overview = slide_overview(run)
        with closing(open_pixels(run)) as reader:
            sample = sample_slide(run.segmented_grid.shape, overview, reader)
        params = jsonable_params(
            segmenter.prepare(sample[..., 0] if sample.shape[2] == 1 else sample, run.segmented_slide)
        )
        fill = background_of(overview, is_rgb=run.slide.is_rgb)
        blocks = _blocks_to_segment(run, overview)
        known = {"params": params, "fill": fill.tolist(), "blocks": blocks, "seconds": time.perf_counter() - started}
        write_json(run.segment_folder / "causes.json", run.causes["segment"])
        write_json(path, known)
    with output_errors(run.segment_folder):
        BlockResults.create(run)
    return known


@task(name="segment blocks", cache_policy=NO_CACHE, persist_result=False)
def segment_blocks(run: Run, block_ids: Sequence[int], go: str = "") -> Facts:
    """Segments blocks that have no done-mark; one that fails doesn't cost the others.

    Where this worker's job ends soon the rest is left, and named, for others.

    Args:
        run: The run.
        block_ids: Which blocks.
        go: Identifies this go at the slide, within which workers that a block costs are counted.

    Raises:
        OutputError: Results can't be written.
        SlideGoneError: The slide has changed or isn't there any more.
        BlockFailures: Some blocks failed; a single one's own error is raised instead.
    """
    started = time.perf_counter()
    todo = [block_id for block_id in block_ids if block_facts(run, block_id) is None]
    failures: dict[int, Exception] = {}
    left: list[int] = []
    if todo:
        _forget_stitching(run)
        timeout, retries = run.settings.run.block_timeout, run.settings.run.retries
        attempts = Attempts(run.segment_folder, go, 1 + retries, None if timeout is None else seconds_of(timeout))
        # Those that have cost a worker come last, so that they don't cost the others too.
        todo.sort(key=attempts.lost)
        with closing(open_pixels(run)) as reader, ThreadPoolExecutor(1) as ahead, Finisher(failures) as finisher:
            with attempts.before(todo[0]):
                # A model takes seconds to load the first time: meanwhile the first pixels are read.
                images = {todo[0]: ahead.submit(reader.read, run.segmented_grid[todo[0]].outer)}
                segmenter, known, results = _segmenter(run), prepared(run), BlockResults.of(run)
                wait(images.values())
            # Where the CPU computes, it has no time to spare.
            is_beside = getattr(segmenter, "device", "cpu") != "cpu" and attempts.allowed > 1

            def read(number: int) -> NDArray[Any]:
                """A block's pixels; while it is segmented, those of the next are read."""
                for block_id in todo[number + 1 : number + 2]:
                    images[block_id] = ahead.submit(reader.read, run.segmented_grid[block_id].outer)
                return images.pop(todo[number]).result()

            for number, block_id in enumerate(todo):
                if is_leaving():
                    left = todo[number:]
                    break
                # Of two blocks at once nobody could tell which one ended the worker.
                alone = not is_beside or attempts.lost(block_id) > 0
                if alone:
                    finisher.wait()
                with finisher.note(block_id), ExitStack() as marked:
                    marked.enter_context(attempts.at(block_id))
                    # In one expression, so that nothing here holds pixels or labels longer than it takes.
                    begin = partial(_begin_block, run, block_id, segmenter, known, results)
                    finisher.add(block_id, begin(read(number)), marked.pop_all())
                if alone:
                    finisher.wait()
            finisher.wait()
    if failures:
        raise _failure(run, failures, alone=len(block_ids) == 1)
    return {"seconds": time.perf_counter() - started, "left": left}


def _begin_block(
    run: Run, block_id: int, segmenter: Segmenter, known: Facts, results: BlockResults, image: NDArray[Any]
) -> Callable[[], None]:
    """What one block wants of the device; the function that is returned writes its labels, then its done-mark."""
    started = time.perf_counter()
    seen = run.segmented_grid[block_id]
    fill = np.asarray(known["fill"], image.dtype)
    labels = begin_outer(image, seen, run.segmented_grid, segmenter, known["params"], fill)
    facts = {
        # Part of what makes results equal, so the provenance has them.
        "device": getattr(segmenter, "device", "cpu"),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        **getattr(segmenter, "computing", {}),
    }
    seconds = time.perf_counter() - started
    return lambda: _finish_block(run, block_id, labels, facts, seconds, results)


def _finish_block(
    run: Run,
    block_id: int,
    labelled: Callable[[], NDArray[np.uint32]],
    facts: Facts,
    seconds: float,
    results: BlockResults,
) -> None:
    """Writes one block's labels, then its done-mark; `seconds` is what it took so far."""
    started, block = time.perf_counter(), run.grid[block_id]
    labels = labelled()
    if not run.scale.is_one:
        labels = renumbered(to_level0(labels, run.segmented_grid[block_id].outer, block.outer, run.scale))
    marks = Marks(run.segment_folder)
    # An old mark must not vouch for a mixture of old and new.
    marks.remove(block_id)
    with output_errors(run.segment_folder):
        results.write(block, labels)
    table = describe_block(labels, block, run.grid.shape)
    if table.area.size:
        save_table(run, block_id, table)
        save_frame(run, block, labels)
    seconds += time.perf_counter() - started
    marks.put(block_id, {"count": table.area.size, "seconds": round(seconds, 3), **facts})


def _forget_stitching(run: Run) -> None:
    """Removes what was made of blocks of which some are segmented anew: on another device their labels may be others."""
    for folder in (*run.work.glob("stitch-*"), *run.work.glob("paint-*")):
        for name in ("resolved.json", "started.json"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _failure(run: Run, failures: dict[int, Exception], *, alone: bool) -> Exception:
    """What a task raises for blocks that failed."""
    if alone:
        return next(iter(failures.values()))
    return BlockFailures(
        run.name,
        {block_id: BlockFailure.of(error) for block_id, error in failures.items()},
        len(kept_blocks(run)),
    )


@task(name="match seams", cache_policy=NO_CACHE, persist_result=False)
def match_blocks(run: Run, group: tuple[int, ...]) -> Facts:
    """Compares a group of blocks (`stitch.groups`) with their neighbours."""
    started = time.perf_counter()
    if not stitch.is_compared(run, group):
        stitch.compare_group(run, group)
    return {"seconds": time.perf_counter() - started}


@task(name="number objects", cache_policy=NO_CACHE, persist_result=False)
def resolve_objects(run: Run) -> Facts:
    """Numbers the slide's objects, reports on its seams and makes the empty label pyramid."""
    started = time.perf_counter()
    resolved = stitch.resolve_run(run)
    with output_errors(run.store):
        _ready_label(run, resolved["objects"])
    return {
        "objects": resolved["objects"],
        "warnings": resolved["seams"]["warnings"],
        "seconds": time.perf_counter() - started,
    }


@task(name="paint", cache_policy=NO_CACHE, persist_result=False)
def paint_blocks(run: Run, group: tuple[int, ...]) -> Facts:
    """Writes the labels of a group of blocks to level 0 and to the further levels that they fill with whole shards."""
    started = time.perf_counter()
    if not stitch.is_painted(run, group):
        stitch.paint_group(run, group)
    return {"seconds": time.perf_counter() - started}


@task(name="export", cache_policy=NO_CACHE, persist_result=False)
def export_slide(run: Run, objects: int, seconds: dict[str, float]) -> Facts:
    """Writes the upper levels and the overlay, then what makes the result count as finished: metadata, and run.json."""
    started = time.perf_counter()
    # One that is listed is whole; a run that was killed after that must not touch it again.
    if not omezarr.is_finished(run.store, run.label):
        with output_errors(run.store):
            _finish_levels(run)
    mask = read_tissue(run)
    write_overlay(run, objects, mask, kept_blocks(run))
    with output_errors(run.store):
        omezarr.finish_label(zarr.open_group(run.store, mode="r+"), run.label, run.slide.mpp)
    seconds = {**seconds, "export": time.perf_counter() - started}
    seams = stitch.resolve_run(run)["seams"]
    facts = provenance(run, objects=objects, seams=seams, seconds=seconds)
    write_json(run.provenance, facts)
    # A row per seam is for the file, not for a flow's result.
    return facts | {"seams": {name: value for name, value in seams.items() if name != "rows"}}


def _finish_levels(run: Run) -> None:
    """Fills the levels that blocks don't fill."""
    levels = omezarr.open_levels(run.store / "labels" / run.label, run.settings.image.ome_zarr)
    for level in range(in_block_levels(run.grid.block_shape, len(levels)), len(levels)):
        finer, coarser = levels[level - 1], levels[level]
        for region in shard_regions(coarser):
            below = region_below(region, finer.shape[3:])
            labels = np.asarray(finer[(0, 0, 0, *below.slices)])
            omezarr.write_shards(coarser, region, halve_labels(labels))


def _blocks_to_segment(run: Run, overview: NDArray[Any]) -> list[int] | None:
    """Ids of the blocks that hold tissue, None for all; the mask is kept for the picture."""
    where = run.settings.blocks.tissue
    if where == "off":
        return None
    is_rgb = run.slide.is_rgb
    mask = find_tissue(overview, is_rgb=is_rgb) if where == "auto" else read_mask(Path(where), run.slide.shape)
    arrays = {"bits": np.packbits(mask), "shape": np.asarray(mask.shape)}
    save_arrays(run.segment_folder / "tissue.npz", arrays, compressed=True)
    return blocks_with_tissue(mask, run.grid)


def read_tissue(run: Run) -> NDArray[np.bool_] | None:
    """(y, x) the mask that was found, or None where all blocks are segmented."""
    path = run.segment_folder / "tissue.npz"
    if not path.exists():
        return None
    arrays = load_arrays(path)
    height, width = arrays["shape"]
    return np.unpackbits(arrays["bits"], count=height * width).reshape(height, width).astype(bool)


def _segmenter(run: Run) -> Any:
    """The run's segmenter, on the device that this worker was given.

    Raises:
        DeviceError: It would compute on another.
    """
    check_given()
    segmenter = load_segmenter(run.settings.segmenter.model_dump_json(), run.slide.is_rgb, run.segmenter_identity)
    check_torch()
    return segmenter


def _ready_label(run: Run, objects: int) -> None:
    """Makes the empty label pyramid, unless this very one is being painted already."""
    started = run.paint_folder / "started.json"
    if read_json(started) is not None and (run.store / "labels" / run.label / "0").is_dir():
        return
    run.provenance.unlink(missing_ok=True)
    run.overlay.unlink(missing_ok=True)
    for old in run.work.glob("paint-*"):
        _forget(old)
    stitch.ready_label(run, objects)
    write_json(started, {"objects": objects})


def _forget(folder: Path) -> None:
    """Removes a folder of marks, the one that says `started` first."""
    (folder / "started.json").unlink(missing_ok=True)
    shutil.rmtree(folder)
