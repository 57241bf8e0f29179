"""Repeats the guide's measurements (benchmarks/guide/__init__.py) on an image and a device, in tables, JSON and plots.

    python -m benchmarks.guide [IMAGE]              figures 1 to 4, and objects that chunks make too many
    python -m benchmarks.guide --small              the same at a size that two cores do in half an hour
    python -m benchmarks.guide --figures|--seams    one of the two
    python -m benchmarks.guide --memory             peak memory per worker on slides of two sizes
    python -m benchmarks.guide --profile            where the time goes; needs neither Prefect nor Dask
    python -m benchmarks.guide --replot FILE.json   draws again

Without IMAGE: micro-sam's whole-slide example if it lies in micro-sam's cache, else slidesam's demo image. Without weights: a
ViT-B with random ones. The encoder takes as long with those as with any; what follows it depends on how many objects there are,
so that times of it, and all counts, are only comparable among each other.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.guide.about import about, cores
from benchmarks.guide.case import RANDOM_AMG, ROOT, Case, default_image, random_weights, read_image, write_image
from benchmarks.guide.report import Report

_FULL = {"side": 4096, "tiles": [256, 512, 1024], "chunks": [1024, 2048, 4096], "workers": [1, 2, 4]}
_SMALL = {"side": 1024, "tiles": [256, 512], "chunks": [256, 512, 1024], "workers": [1, 2, 4]}
_RANDOM = (
    "a ViT-B with random weights (the encoder's time is as with any; what follows depends on the number of objects)"
)


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", type=Path, help="TIFF, PNG or .npy, (y, x) or (y, x, c)")
    parts = parser.add_argument_group("what").add_mutually_exclusive_group()
    for part in ("figures", "seams", "memory", "profile"):
        parts.add_argument(f"--{part}", dest="parts", action="store_const", const=[part])
    parts.add_argument("--replot", type=Path, metavar="FILE.json", nargs="+")
    _add_sizes(parser.add_argument_group("sizes, in pixels"))
    how = parser.add_argument_group("how")
    how.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    how.add_argument("--mode", choices=("ais", "amg"), default="ais")
    how.add_argument("--checkpoint", type=Path, help="weights; --model then names their architecture")
    how.add_argument(
        "--model", help="name in micro-sam's registry; without --checkpoint it must be in micro-sam's cache"
    )
    how.add_argument("--threads", type=int, default=cores(), help="of micro-sam, and of all workers together")
    how.add_argument("--scaling", choices=("tile", "slide"), default="tile", help="tile: as micro-sam does")
    how.add_argument(
        "--mpp", type=float, default=0.5, help="pixel size in µm, which watershed's diameter of 8 µm needs"
    )
    how.add_argument("--tiling", choices=("fitted", "same"), default="fitted", help="see benchmarks/guide/case.py")
    how.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="an option of micro-sam's generator"
    )
    how.add_argument("--set", action="append", default=[], metavar="A.B=C", help="a setting of slidesam's")
    how.add_argument(
        "--small-networks", action="store_true", help="a smoke test: random small networks, times mean nothing"
    )
    how.add_argument("--rounds", type=int, default=1, help="figure 1's times are medians of so many, taken in turns")
    profile = parser.add_argument_group("--profile")
    profile.add_argument("--peak-tflops", type=float, default=989.0, help="dense bf16; H100 and H200 by default")
    profile.add_argument("--modes", nargs="+", choices=("ais", "amg"), default=["ais", "amg"])
    profile.add_argument(
        "--worker-threads", type=int, help="default: cores / most workers; on the CPU threads / workers"
    )
    profile.add_argument("--profile-block", type=int, default=768, help="side of slidesam's blocks; 768 = one tile")
    profile.add_argument("--batches", type=int, nargs="+", help="default: 1 4 8; 1 on the CPU")
    profile.add_argument(
        "--precisions", nargs="+", choices=("float32", "bfloat16"), help="default: both; float32 on the CPU"
    )
    profile.add_argument("--repeats", type=int, help="default: 10; 2 on the CPU")
    profile.add_argument("--cpu-blocks", type=int, default=2, help="blocks whose labels are compared with the CPU's")
    profile.add_argument("--points", type=int, help="AMG's points per side; default: 32; 8 on the CPU")
    where = parser.add_argument_group("where")
    where.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "guide")
    where.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "slidesam-benchmark" / "guide")
    where.add_argument("--resume", action="store_true", help="keep what --out has of the same case")
    where.add_argument("--no-plots", action="store_true")
    return _completed(parser.parse_args(words))


def _add_sizes(sizes: Any) -> None:
    sizes.add_argument("--small", action="store_true", help=f"instead of {_FULL} take {_SMALL}".replace("'", ""))
    sizes.add_argument("--side", type=int, help="of the image, whose middle is taken")
    sizes.add_argument("--tiles", type=int, nargs="+")
    sizes.add_argument("--chunks", type=int, nargs="+", help="what a worker takes at once, slidesam's blocks")
    sizes.add_argument(
        "--chunk", type=int, help="of figures 1 and 2; default: a quarter of the side, no less than a tile"
    )
    sizes.add_argument("--workers", type=int, nargs="+")
    sizes.add_argument(
        "--most", type=int, help="workers of figures 3 and 4; default: the largest of --workers that has cores"
    )
    sizes.add_argument("--memory-block", type=int, default=4096)
    sizes.add_argument("--memory-tile", type=int, default=1024)
    sizes.add_argument("--memory-blocks", type=int, nargs="+", default=[1, 4], help="slides are so many blocks long")
    sizes.add_argument("--memory-workers", type=int, default=1)


def _completed(chosen: argparse.Namespace) -> argparse.Namespace:
    """The command line with what follows from it."""
    on_cpu = chosen.device == "cpu"
    chosen.parts = chosen.parts or ["figures", "seams"]
    preset: dict[str, Any] = dict(_SMALL if chosen.small else _FULL)
    if chosen.parts == ["profile"]:
        preset |= {"side": 1536, "workers": [1, 2]} if on_cpu else {"side": 6144, "workers": [1, 2, 4, 8]}
    for name, value in preset.items():
        if getattr(chosen, name) is None:
            setattr(chosen, name, value)
    within = [workers for workers in chosen.workers if not on_cpu or workers <= cores()]
    chosen.most = chosen.most or max(within or [min(chosen.workers)])
    chosen.batches = chosen.batches or ([1] if on_cpu else [1, 4, 8])
    chosen.precisions = chosen.precisions or (["float32"] if on_cpu else ["float32", "bfloat16"])
    chosen.repeats = chosen.repeats or (2 if on_cpu else 10)
    if chosen.worker_threads is None and not on_cpu:
        chosen.worker_threads = max(1, chosen.threads // max(chosen.workers))
    chosen.points = chosen.points or (8 if on_cpu else 32)
    return chosen


def main(words: Sequence[str] | None = None) -> None:
    """Measures, prints, draws."""
    chosen = parse(words)
    if chosen.replot:
        for path in chosen.replot:
            _draw(path)
        return
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=_made(chosen.folder)))
    try:
        case = make_case(chosen, folder)
        for part in chosen.parts:
            path = _MEASURES[part](chosen, case)
            if not chosen.no_plots:
                _draw(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_case(chosen: argparse.Namespace, folder: Path) -> Case:
    """What is measured, its image and weights written to files."""
    image, name = _image(chosen, chosen.side)
    array, slide = write_image(folder, image)
    model, checkpoint, weights = _weights(chosen)
    options = _named(chosen.option)
    if chosen.mode == "amg":
        options = {"points_per_side": chosen.points, **(RANDOM_AMG if weights == _RANDOM else {}), **options}
    return Case(
        folder=folder, image=array, slide=slide, name=name, shape=(image.shape[0], image.shape[1]), mode=chosen.mode,
        model=model, checkpoint=checkpoint, weights=weights, device=chosen.device, threads=chosen.threads,
        mpp=chosen.mpp, scaling=chosen.scaling, options=options, settings=_named(chosen.set), small=chosen.small_networks,
    )  # fmt: skip


def _image(chosen: argparse.Namespace, side: int) -> tuple[NDArray[Any], str]:
    return default_image(side) if chosen.image is None else read_image(chosen.image, side)


def _weights(chosen: argparse.Namespace) -> tuple[str, Path | None, str]:
    """Model, checkpoint and both in words; random weights are made once and kept."""
    if chosen.checkpoint is not None:
        model = chosen.model or "vit_b"
        return model, chosen.checkpoint.resolve(), f"{model} from {chosen.checkpoint.name}"
    if chosen.model is not None:
        return chosen.model, None, chosen.model
    path = _made(chosen.folder) / ("random_small.pt" if chosen.small_networks else "random_vit_b.pt")
    if chosen.parts == ["seams"]:
        return "vit_b", path, "watershed, which has none"
    return "vit_b", random_weights(path, chosen.small_networks), _RANDOM


def _named(texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; a value that is no JSON is a text."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise SystemExit(f"{text!r} is not of the form NAME=VALUE")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _figures(chosen: argparse.Namespace, case: Case) -> Path:
    from benchmarks.guide import figures

    # Tiles are cut from a chunk, and nothing is gained by a chunk that is larger than the image.
    chunks = sorted({min(chunk, _rounded(max(case.shape))) for chunk in chosen.chunks})
    chunk = chosen.chunk or max(chosen.side // 4, *chosen.tiles)
    plan = figures.Plan(
        chosen.tiles, chunks, chosen.workers, chunk, chosen.most, chosen.tiling == "fitted", chosen.rounds
    )
    notes = [
        "micro-sam smooths AIS's maps on all cores, in an order that differs from run to run; slidesam on one thread per worker",
        "chunks overlap by a quarter of a tile with slidesam, "
        + ("and tiles are as much larger" if plan.fitted else "and tiles are the same, so that there are more"),
        "counts of different rows are of different scales: SAM enlarges a tile until it has 1024 px, and at the edge of an image "
        "or chunk micro-sam's tiles are narrower (1 to 1.25 of the tile's side at corners, 1.5 inside; slidesam's fitted ones "
        "1.25 to 1.75), so that percentages of objects tell scales apart, not methods",
    ]
    facts = about(
        case,
        notes=notes,
        chunk=chunk,
        chunks=chunks,
        workers=list(chosen.workers),
        most=chosen.most,
        tiling=chosen.tiling,
    )
    report = Report(chosen.out, "figures", facts, chosen.resume)
    figures.measure(case, plan, report)
    report.show(figures.tables(report, plan))
    return report.path


def _seams(chosen: argparse.Namespace, case: Case) -> Path:
    from benchmarks.guide import seams

    facts = about(case, mode="watershed", weights="no weights", scaling="slide", options={}, mpp=case.mpp)
    report = Report(chosen.out, "seams", facts, chosen.resume)
    seams.measure(case.slide, np.load(case.image), chosen.chunks, case.mpp, case.folder / "seams", report)
    report.show(seams.tables(report))
    return report.path


def _memory(chosen: argparse.Namespace, case: Case) -> Path:
    from benchmarks.guide import memory

    sizes = {
        "block": chosen.memory_block, "tile": chosen.memory_tile, "blocks": chosen.memory_blocks,
        "workers": chosen.memory_workers,
    }  # fmt: skip
    notes = [
        "peaks are the kernel's high-water marks; both sides keep what they have freed, which is faster and takes more"
    ]
    square = (chosen.memory_block, chosen.memory_block)
    facts = about(case, notes=notes, tiling=chosen.tiling, **sizes) | {"shape": list(square)}
    report = Report(chosen.out, "memory", facts, chosen.resume)

    def picture(side: int) -> NDArray[Any]:
        image = _image(chosen, side)[0]
        if image.shape[:2] != (side, side):
            raise SystemExit(f"an image of {side} px a side is needed, this one has {image.shape}: see --memory-block")
        return image

    memory.measure(case, picture, report, **sizes, fitted=chosen.tiling == "fitted")
    report.show(memory.tables(report))
    return report.path


def _profile(chosen: argparse.Namespace, case: Case) -> Path:
    from benchmarks.guide import profile

    plan = profile.Plan(
        modes=chosen.modes, workers=chosen.workers, worker_threads=chosen.worker_threads, block=chosen.profile_block,
        batches=chosen.batches, precisions=chosen.precisions,
        repeats=chosen.repeats, peak=chosen.peak_tflops, cpu_blocks=chosen.cpu_blocks, points=chosen.points,
    )  # fmt: skip
    notes = [
        f"tiles of {profile.TILE} px, {profile.VIEW} px with their overlap; slidesam's blocks {plan.block} px; "
        f"AMG with {plan.points} points a side",
        *(["on the CPU: no GPU was asked for"] if case.device == "cpu" else []),
    ]
    facts = about(case, notes=notes, mode=" and ".join(chosen.modes), peak_tflops=plan.peak, block=plan.block)
    report = Report(chosen.out, "profile", facts, chosen.resume)
    profile.measure(case, plan, report)
    report.show(profile.tables(report, plan))
    return report.path


_MEASURES = {"figures": _figures, "seams": _seams, "memory": _memory, "profile": _profile}


def _draw(path: Path) -> None:
    from benchmarks.guide.plots import draw

    for picture in draw(path):
        print(picture)


def _rounded(side: int) -> int:
    """The next multiple of 16, which blocks have to be."""
    return -(-side // 16) * 16


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main()
