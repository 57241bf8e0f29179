"""What block borders change with a trained network: mosaics of real images as one block, in blocks, and the guide's way.

The guide's way are blocks without overlap, whose labels are put beside each other. All three ways are slidesam's runs with the
same settings and slide-wide intensities, and SAM sees objects at one scale; only the blocks differ, and `blocks.halo: 0` is the
guide's way. So what is counted is what borders change. Blocks of whole tiles (768 px for the model in the package) show SAM the
same tiles as the one block does; others show it the image in other pieces, and their objects differ inside, too. Of each way,
beside the one block:

IoU 0.9    share of the one block's objects that come back at an IoU of at least 0.9
count      objects more or less than in one block
merged     pairs that one block tells apart, of both of which one object holds more than half
split      pairs of objects more than half of each of which lies in one object of the one block

and beside the true outlines, objects that match none at an IoU above 0.5 (false), and true ones that none matches (missed).

    .venv/bin/python -m benchmarks.seams [--side 1536] [--blocks 768 1024 512 256] [--fields 512 1024] [--resume]

The fluorescence images are test images of the model in the package. The mosaic of tissue is made of its training and test images:
there false and missed objects say nothing about the model's accuracy, but they can be compared between the ways.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from skimage.io import imread

import slidesam
from benchmarks.guide import plots
from benchmarks.guide.about import about, cores
from benchmarks.guide.case import ROOT
from benchmarks.guide.report import Report, Row, Table, percent, say
from benchmarks.mosaics import NUCLEI, TILE, TISSUE, compare
from slidesam.tasks.compare.scores import match_arrays

WHOLE, GUIDE, OURS = "one block", "the guide's way", "slidesam"
_ROWS_OF_TILES = 3
_COLOURS = {GUIDE: "#e08a3c", OURS: "#2f74b5"}


class Mosaic(NamedTuple):
    """An image with known outlines.

    Attributes:
        name: What it is, in words.
        image: (y, x[, c]) uint8.
        truth: (y, x) labels, 0 = background.
    """

    name: str
    image: NDArray[np.uint8]
    truth: NDArray[np.integer]


def make_mosaics(side: int) -> Iterator[Mosaic]:
    """Make the two images, each cut to a side in pixels if it is larger."""
    cut = np.s_[:side, :side]
    rows = json.loads((NUCLEI / "index.json").read_text())
    names = sorted(
        row["id"]
        for row in rows
        if row["kind"] == "fluo" and row["split"] == "test" and (row["height"], row["width"]) == TILE
    )
    images = [imread(NUCLEI / f"{name}.png") for name in names]
    grey = [image if image.ndim == 2 else image[..., :3].mean(axis=2).astype(np.uint8) for image in images]
    outlines, above = [], 0
    for name in names:
        labels = imread(NUCLEI / f"{name}_labels.png").astype(np.int64)
        outlines.append(np.where(labels > 0, labels + above, 0))
        above += int(labels.max())
    yield Mosaic("fluorescence, test images", _tile(grey)[cut], _tile(outlines)[cut])
    truth = tifffile.imread(TISSUE.with_name("dsb_he_mosaic_labels.tif"))
    yield Mosaic("tissue, training and test images", tifffile.imread(TISSUE)[cut], truth[cut])


def _tile(images: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Put images of one shape side by side, so many in a row, as far as rows are full."""
    n = _ROWS_OF_TILES
    return np.block([list(images[row * n : (row + 1) * n]) for row in range(len(images) // n)])


def compare_with_truth(found: NDArray[np.integer], truth: NDArray[np.integer]) -> tuple[int, int]:
    """Count false objects, which match no true one at an IoU above 0.5, and true ones that are missed.

    Example:
        >>> compare_with_truth(np.array([[1, 1, 0, 2]]), np.array([[5, 5, 6, 0]]))
        (1, 1)
    """
    score = match_arrays(found, truth).score(float(np.nextafter(0.5, 1)))
    return score.only_found, score.only_true


def measure(mosaic: Mosaic, blocks: Sequence[int], field: int | None, settings: dict[str, Any], report: Report) -> None:
    """Add a row per way and size of blocks.

    Args:
        mosaic: The image.
        blocks: Sides of blocks in pixels, multiples of 16.
        field: Side of the square that fills SAM's encoder; None = the model's own.
        settings: Of slidesam, by dotted name.
        report: Where rows are added; those that it has aren't measured again.
    """
    shown = settings if field is None else settings | {"segmenter.field": field}
    largest = -(-max(mosaic.truth.shape) // 16) * 16
    ways = [(WHOLE, largest)] + [(way, block) for block in blocks if block < largest for way in (GUIDE, OURS)]
    key = {"mosaic": mosaic.name, "field": field}
    todo = [(way, block) for way, block in ways if report.find(**key, way=way, block=block) is None]
    if not todo:
        return
    kept = Path(tempfile.gettempdir()) / "slidesam-benchmark" / "seams"
    kept.mkdir(parents=True, exist_ok=True)
    whole_path = kept / f"{mosaic.name.partition(',')[0]}-{max(mosaic.truth.shape)}-{field or 'auto'}.npy"
    if todo[0][0] != WHOLE and not whole_path.exists():
        raise SystemExit(f"{whole_path}, the labels of the one block, is gone: leave out --resume")
    with tempfile.TemporaryDirectory() as scratch:
        slide = Path(scratch) / "mosaic.tif"
        photometric = "minisblack" if mosaic.image.ndim == 2 else "rgb"
        tifffile.imwrite(slide, mosaic.image, photometric=photometric, tile=(256, 256))
        for way, block in todo:
            cut = {"blocks.block_shape": block} | ({"blocks.halo": 0} if way == GUIDE else {})
            result = slidesam.segment(slide, Path(scratch) / f"{way}-{block}", shown | cut, progress=False)
            labels = np.asarray(result.labels)
            if way == WHOLE:
                np.save(whole_path, labels)
            false, missed = compare_with_truth(labels, mosaic.truth)
            beside = compare(labels, np.load(whole_path))
            true = int(np.count_nonzero(np.unique(mosaic.truth)))
            report.add(
                key | {"way": way, "block": block, "true": true, "false": false, "missed": missed} | beside._asdict()
            )
            say(f"{mosaic.name}, field {field or 'auto'}, {way}, {block} px: {beside}, {false} false")


def tables(rows: Sequence[Row]) -> list[Table]:
    """A table per image and field."""
    columns = (
        "block px", "way", "objects", "count %", "IoU 0.9 %", "merged", "split", "false", "missed", "false beyond one block's",
    )  # fmt: skip
    groups = dict.fromkeys((row["mosaic"], row["field"]) for row in rows)
    return [
        Table(_title(name, field, found), columns, [_cells(row, found[0]) for row in found])
        for name, field in groups
        if (found := [row for row in rows if (row["mosaic"], row["field"]) == (name, field)])
    ]


def _title(name: str, field: int | None, rows: Sequence[Row]) -> str:
    return f"{name}: {rows[0]['true']} true objects, field " + (f"{field} px" if field else "as the model's")


def _cells(row: Row, whole: Row) -> list[Any]:
    is_whole = row["way"] == WHOLE
    more = percent(row["objects"], whole["objects"]) or 0.0
    beside = ["", "", "", ""] if is_whole else [f"{more:+.2f}", f"{100 * row['same']:.2f}", row["merged"], row["split"]]
    beyond = "" if is_whole else f"{row['false'] - whole['false']:+d}"
    return [str(row["block"]), row["way"], row["objects"], *beside, row["false"], row["missed"], beyond]


def draw(rows: Sequence[Row], facts: dict[str, Any], folder: Path) -> None:
    """Draw the guide's figure 4, objects by size of blocks, for each image and field; several fields are its figure 2."""
    groups = list(dict.fromkeys((row["mosaic"], row["field"]) for row in rows))
    figure, panels = plots._sheet(1, len(groups), facts)
    for axes, (name, field) in zip(panels, groups, strict=True):
        found = [row for row in rows if (row["mosaic"], row["field"]) == (name, field)]
        blocks = sorted({row["block"] for row in found if row["way"] != WHOLE})
        bars = {
            way: ([plots._value(found, "objects", way=way, block=block) for block in blocks], colour)
            for way, colour in _COLOURS.items()
        }
        plots.grouped(axes, [f"{block}" for block in blocks], bars, "{:,.0f}".format)
        for key, label, style in (("objects", WHOLE, "--"), ("true", "true outlines", ":")):
            axes.axhline(found[0][key], color="#333333", linestyle=style, linewidth=1.1, label=label)
        # Numbers above bars of the tallest line's height need room, too.
        axes.set_ylim(0, 1.1 * max(found[0]["true"], *(row["objects"] for row in found)))
        axes.set_title(f"{name}, field {field or 'auto'}", fontsize=9)
        axes.set_xlabel("block size, px a side")
    panels[0].set_ylabel("objects")
    plots._legend(panels[0], figure)
    plots._save(figure, facts, folder / "objects.png", "Objects by size of blocks")


def main() -> None:
    """Print the tables and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--side", type=int, default=1536, help="of the images in pixels, at most (default: %(default)s)"
    )
    parser.add_argument("--blocks", type=int, nargs="+", default=[768, 1024, 512, 256], help="sides in pixels")
    parser.add_argument("--fields", type=int, nargs="+", default=[None], help="default: that of the model")
    parser.add_argument("--only", default="", help="images whose name has this")
    parser.add_argument("--model", default="nuclei-small", help="of micro-sam (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="weights; --model then names their architecture")
    parser.add_argument("--segmenter", default="micro-sam", help="or watershed, with a diameter of 18 px")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "seams")
    parser.add_argument("--resume", action="store_true", help="keep the rows that --out has of the same case")
    chosen = parser.parse_args()
    settings: dict[str, Any] = {"blocks.tissue": "off", "segmenter.kind": chosen.segmenter}
    if chosen.segmenter == "watershed":
        settings["segmenter.diameter"] = 18
    else:
        settings |= {"segmenter.model": chosen.model, "segmenter.mode": "ais", "segmenter.device": "cpu"}
        settings |= {"segmenter.checkpoint": str(chosen.checkpoint)} if chosen.checkpoint else {}
    names = {"name": "Mosaics of nuclei_cc0 and mosaic_he", "shape": (chosen.side, chosen.side)}
    weights = chosen.model if chosen.segmenter == "micro-sam" else "no weights"
    case = SimpleNamespace(
        **names, device="cpu", threads=cores(), mode=chosen.segmenter, weights=weights, scaling="slide", options={},
        settings=settings, small=False,
    )  # fmt: skip
    facts = about(case, command=f"python -m benchmarks.seams --side {chosen.side}")  # type: ignore[arg-type]
    report = Report(chosen.out, "objects", facts, chosen.resume)
    for mosaic in make_mosaics(chosen.side):
        if chosen.only in mosaic.name:
            for field in chosen.fields:
                measure(mosaic, chosen.blocks, field, settings, report)
    report.show(tables(report.rows))
    draw(report.rows, report.about, chosen.out)


if __name__ == "__main__":
    main()
