"""Where the time of a tile of SAM's own 1024 px goes, what the encoder makes of the device, and how workers share it.

Tiles are 768 px with an overlap of 128 px on each side: 1024 px, which SAM doesn't scale. A block of slidesam's is such a tile
unless `--profile-block` says otherwise. Needs torch, micro_sam and slidesam.tasks: neither Prefect nor Dask, so that it runs on a
bare machine with a GPU; it runs on the CPU too.
"""

from __future__ import annotations

import csv
import io
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import numpy as np
import zarr

from benchmarks.guide.case import RANDOM_AMG, Case, Tiling, ours_settings
from benchmarks.guide.report import Report, Row, Table, say
from benchmarks.guide.sequential import Job, run_sequential
from benchmarks.guide.workers import Work, device_busy, run_workers, write_pixels
from tests.support.same import score

VIEW, HALO = 1024, 128
TILE = VIEW - 2 * HALO
MODES = ("ais", "amg")


@dataclass(frozen=True)
class Plan:
    """What is profiled.

    Attributes:
        modes: micro-sam's: ais, amg.
        workers: Numbers of worker processes on the device.
        worker_threads: Threads of each worker; None = together as many as micro-sam alone.
        block: Side of slidesam's blocks in pixels.
        batches: Images that the encoder is given at once.
        precisions: Numbers that it computes with: float32, bfloat16.
        repeats: Of each of its measurements.
        peak: The device's own dense bf16 TFLOP/s, of which shares are given.
        cpu_blocks: How many blocks are segmented on the CPU too, to compare labels.
        points: AMG's points per side.
    """

    modes: Sequence[str]
    workers: Sequence[int]
    worker_threads: int | None
    block: int
    batches: Sequence[int]
    precisions: Sequence[str]
    repeats: int
    peak: float
    cpu_blocks: int
    points: int


def measure(case: Case, plan: Plan, report: Report) -> None:
    """Measures what the report hasn't yet: rows of the kinds encoder, sequential, workers, stages and cpu."""
    _encoder(case, plan, report)
    image = np.load(case.image)
    write_pixels(case.folder / "pixels.zarr", image)
    for mode in plan.modes:
        options = case.options if mode == case.mode == "amg" else {}
        if mode == "amg":
            random = RANDOM_AMG if "random" in case.weights else {}
            options = {"points_per_side": plan.points, **random, **options}
        _mode(replace(case, mode=mode, options=options), plan, report, image)


def _mode(case: Case, plan: Plan, report: Report, image: np.ndarray) -> None:
    """All of one mode."""
    if report.find(kind="sequential", mode=case.mode) is None:
        (alone,) = run_sequential(case, [Job(TILE, HALO)])
        alone = {"kind": "sequential", "mode": case.mode, "workers": 1, "threads": case.threads, **alone}
        report.add(alone | {"seconds_per_tile": alone["segment"] / alone["passes"], "tiles": alone["passes"]})
        say(f"{case.mode}, micro-sam alone: {alone['segment'] / alone['passes']:.2f} s per tile")
    work = _work(case, plan, image)
    blocks = range(len(work.grid()))
    for workers in plan.workers:
        threads = plan.worker_threads or max(1, case.threads // workers)
        key = {"kind": "workers", "mode": case.mode, "workers": workers, "threads": threads}
        if report.find(**key) is None:
            with _utilization() as used:
                found = run_workers(work, workers, threads, blocks)
            per_tile = found["wall"] / found["tiles"]
            report.add(key | found | {"seconds_per_tile": per_tile, "utilization": used})
            say(f"{case.mode}, {workers} workers × {threads} threads: {per_tile:.2f} s per tile")
    _stages(case, plan, report, work)
    _cpu(case, plan, report, work)


def _work(case: Case, plan: Plan, image: np.ndarray) -> Work:
    """What workers are told; parameters are found here, from the whole image."""
    window = plan.block + 2 * HALO
    tile = None if window <= VIEW else TILE
    passes = 1 if tile is None else (-(-window // tile)) ** 2
    settings = ours_settings(case, Tiling(plan.block, HALO, tile, HALO, passes))
    channels = 1 if image.ndim == 2 else image.shape[2]
    params: dict[str, Any] = {}
    if case.scaling == "slide":
        from slidesam.tasks.segmenters.microsam.inputs import intensity_range

        params = intensity_range(image, is_rgb=True)
    fill = np.percentile(image.reshape(-1, channels), 99, axis=0, method="nearest")
    labels = case.folder / f"labels-{case.mode}.zarr"
    return Work(
        case.folder / "pixels.zarr", labels, settings, params, tuple(map(float, fill)), plan.block, HALO, case.small
    )


def _stages(case: Case, plan: Plan, report: Report, work: Work) -> None:
    """Seconds of each stage per tile with one worker, and how busy the GPU was."""
    one = report.find(kind="workers", mode=case.mode, workers=1)
    if one is None or report.find(kind="stages", mode=case.mode) is not None:
        return
    seconds = {name: value / one["tiles"] for name, value in one["seconds"].items()}
    busy = device_busy(work, case.threads, 0) if case.device == "cuda" else None
    report.add({"kind": "stages", "mode": case.mode, "seconds": seconds, "busy": busy})


def _cpu(case: Case, plan: Plan, report: Report, work: Work) -> None:
    """How the CPU's labels differ from the device's."""
    if not plan.cpu_blocks or case.device == "cpu" or report.find(kind="cpu", mode=case.mode) is not None:
        return
    blocks = range(min(plan.cpu_blocks, len(work.grid())))
    one = report.find(kind="workers", mode=case.mode)
    if one is None:
        return
    on_cpu = replace(
        work, labels=case.folder / f"labels-{case.mode}-cpu.zarr", settings=work.settings | {"segmenter.device": "cpu"}
    )
    found = run_workers(on_cpu, 1, case.threads, blocks)
    here, there = (np.asarray(zarr.open_array(each.labels, mode="r")[: len(blocks)]) for each in (work, on_cpu))
    report.add({
        "kind": "cpu", "mode": case.mode, "blocks": len(blocks),
        "equal": sum(found["digests"][block] == _digest(one, block) for block in blocks),
        "foreground_differs": float(np.mean((here > 0) != (there > 0))),
        "objects": [int(sum(labels.max() for labels in each)) for each in (here, there)],
        "f1": float(np.mean([score(a, b) for a, b in zip(here, there, strict=True)])),
    })  # fmt: skip


def _digest(row: Row, block: int) -> str | None:
    """Of a block; JSON makes its number a text."""
    digests = row["digests"]
    return digests.get(block, digests.get(str(block)))


def equal_labels(rows: Sequence[Row], mode: str) -> list[str]:
    """How many blocks have the same labels whatever the number of workers, in words; by threads, which can change labels."""
    runs = [row for row in rows if row["kind"] == "workers" and row["mode"] == mode]
    lines = []
    for threads in (*sorted({row["threads"] for row in runs}), None):
        same = [row for row in runs if threads in (row["threads"], None)]
        if len(same) < 2 or (threads is None and len({row["threads"] for row in runs}) == 1):
            continue
        blocks = range(len(same[0]["digests"]))
        equal = sum(len({_digest(row, block) for row in same}) == 1 for block in blocks)
        of = "however many threads each has" if threads is None else f"of {threads} thread{'s' * (threads > 1)} each"
        workers = ", ".join(str(row["workers"]) for row in same)
        lines.append(f"{mode}: {equal} of {len(blocks)} blocks have the same labels with {workers} workers {of}")
    return lines


# ------------------------------------------------------------------------------------------------------------ the encoder


def _encoder(case: Case, plan: Plan, report: Report) -> None:
    """A row per batch size and precision: seconds per image, FLOPs, TFLOP/s."""
    wanted = [
        (precision, batch)
        for precision in plan.precisions
        for batch in plan.batches
        if report.find(kind="encoder", precision=precision, batch=batch) is None
    ]
    if not wanted:
        return
    # In a process that ends, so that its memory is free for the others.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for row in pool.submit(_encode, case, wanted, plan.repeats).result():
            report.add({"kind": "encoder", **row, "share": row["tflops"] / plan.peak})
            say(f"encoder, {row['precision']}, batch {row['batch']}: {row['seconds']:.3f} s per image")


def _encode(case: Case, wanted: Sequence[tuple[str, int]], repeats: int) -> list[Row]:
    """In a process of its own: times the encoder on random pixels."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    if case.small:
        from tests.support.microsam_small import use_small_networks

        use_small_networks()
    from micro_sam.util import get_sam_model

    torch.set_num_threads(case.threads)
    predictor = get_sam_model(case.model, device=case.device, checkpoint_path=case.checkpoint)
    encoder = predictor.model.image_encoder.eval()
    rows = []
    with torch.no_grad():
        one = torch.rand(1, 3, VIEW, VIEW, device=case.device)
        with FlopCounterMode(display=False) as counter:
            encoder(one)
        flops = counter.get_total_flops()
        for precision, batch in wanted:
            images = torch.rand(batch, 3, VIEW, VIEW, device=case.device)
            low = torch.autocast(case.device, torch.bfloat16) if precision == "bfloat16" else nullcontext()
            with low:
                seconds = statistics.median(_timed(encoder, images) for _ in range(repeats + 1)) / batch
            rows.append({
                "precision": precision, "batch": batch, "seconds": seconds, "flops": flops,
                "tflops": flops / seconds / 1e12,
            })  # fmt: skip
    return rows


def _timed(encoder: Any, images: Any) -> float:
    """Seconds of one call."""
    from benchmarks.guide.stopwatch import synchronize

    synchronize()
    started = time.perf_counter()
    encoder(images)
    synchronize()
    return time.perf_counter() - started


@contextmanager
def _utilization() -> Iterator[dict[str, float]]:
    """What nvidia-smi says of the GPU meanwhile: mean use in %, most memory in MiB, mean W; nothing without one."""
    used: dict[str, float] = {}
    fields = "utilization.gpu,memory.used,power.draw"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "-lms", "250", "-i", "0"]
    with tempfile.TemporaryFile("w+") as said:
        try:
            watch: Any = subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            watch = SimpleNamespace(terminate=lambda: None, wait=lambda: None)
        try:
            yield used
        finally:
            watch.terminate()
            watch.wait()
            said.seek(0)
            used.update(_summed_up(said.read()))


def _summed_up(text: str) -> dict[str, float]:
    samples = []
    for row in csv.reader(io.StringIO(text)):
        try:
            samples.append([float(cell) for cell in row])
        except ValueError:
            continue  # a line that was cut off, or [N/A]
    samples = [sample for sample in samples if len(sample) == 3]
    if not samples:
        return {}
    use, memory, power = zip(*samples, strict=True)
    return {"percent": statistics.mean(use), "memory_mib": max(memory), "watts": statistics.mean(power)}


# ------------------------------------------------------------------------------------------------------------ tables


def tables(report: Report, plan: Plan) -> list[Table]:
    """Encoder, stages, and workers."""
    return [_encoder_table(report, plan), _stages_table(report), _workers_table(report)]


def _encoder_table(report: Report, plan: Plan) -> Table:
    columns = ("precision", "batch", "ms per image", "images/s", "TFLOP/s", f"% of {plan.peak:g} TFLOP/s")
    rows: list[Sequence[Any]] = [
        [
            row["precision"], str(row["batch"]), 1000 * row["seconds"], 1 / row["seconds"], row["tflops"],
            100 * row["share"],
        ]
        for row in report.rows
        if row["kind"] == "encoder"
    ]  # fmt: skip
    flops = next((row["flops"] for row in report.rows if row["kind"] == "encoder"), 0)
    below = f"{flops / 1e12:.3f} TFLOP per image of 1024 px; the peak is the device's own for dense bf16"
    return Table("the encoder alone", columns, rows, below)


def _stages_table(report: Report) -> Table:
    stages = ("read", "rest", "encoder", "decoder", "post-processing", "write")
    columns = ("mode", *(f"{stage} s" for stage in stages), "sum s", "networks %", "GPU computes %", "GPU waits %")
    rows: list[Sequence[Any]] = []
    for row in report.rows:
        if row["kind"] == "stages":
            seconds, busy = row["seconds"], row["busy"]
            total = sum(seconds.values())
            networks = 100 * (seconds.get("encoder", 0.0) + seconds.get("decoder", 0.0)) / total
            gpu = [None, None] if busy is None else [100 * busy, 100 * (1 - busy)]
            rows.append([row["mode"], *(seconds.get(stage, 0.0) for stage in stages), total, networks, *gpu])
    below = (
        "one worker, per tile, the device waited for around each stage; rest: scaling to 8 bit and to 1024 px, copies;\n"
        "post-processing: all that micro-sam does beside its networks; GPU computes: by torch's profiler, without waiting"
    )
    return Table("where the time of a 1024 px tile goes", columns, rows, below)


def _workers_table(report: Report) -> Table:
    columns = (
        "mode", "method", "workers × threads", "tiles", "s per tile", "speed-up", "loading s", "peak GiB per worker",
        "on the GPU GiB", "GPU in use %", "objects",
    )  # fmt: skip
    rows: list[Sequence[Any]] = []
    lines = []
    for mode in MODES:
        alone = report.find(kind="sequential", mode=mode)
        if alone is None:
            continue
        for row in report.rows:
            if row["kind"] not in ("sequential", "workers") or row["mode"] != mode:
                continue
            is_alone = row is alone
            rows.append([
                mode, "micro-sam alone" if is_alone else "slidesam", f"{row['workers']} × {row['threads']}", row["tiles"],
                row["seconds_per_tile"], None if is_alone else alone["seconds_per_tile"] / row["seconds_per_tile"],
                row["load"], row["peak"] / 1024, row.get("device_peak", 0.0) / 1024 or None,
                (row.get("utilization") or {}).get("percent"), row["objects"],
            ])  # fmt: skip
        lines += equal_labels(report.rows, mode)
        lines += [_in_words(row) for row in report.rows if row["kind"] == "cpu" and row["mode"] == mode]
    below = "slidesam's workers read and write their blocks, and have no Prefect or Dask around them\n" + "\n".join(
        lines
    )
    return Table("seconds per tile on one device", columns, rows, below)


def _in_words(row: Row) -> str:
    here, there = row["objects"]
    return (
        f"{row['mode']}: {row['equal']} of {row['blocks']} blocks have the same labels on the CPU; foreground differs in "
        f"{100 * row['foreground_differs']:.3f} % of pixels, {here} objects here, {there} there, F1 at IoU 0.5 {row['f1']:.3f}"
    )
