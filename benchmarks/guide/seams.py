"""Objects that chunks without overlap make too many: the column that the guide couldn't close.

`watershed` decides each pixel from what is within two objects of it, by one threshold for the slide. So the whole image in one
piece is the truth of what chunks should give, and all that the guide's way counts beyond that are objects cut at the chunks'
edges: the same segmenter with the same parameters on the same chunks, their labels put beside each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import slidesam
from benchmarks.guide.report import Report, Table, percent, say
from slidesam.tasks.segmenters import load_segmenter, segmenter_identity
from slidesam.tasks.settings.parse import make_settings
from tests.support.same import score

Labels = NDArray[np.integer[Any]]
# At most this many diameters: the widest that an object and what decides on it are.
_HALO_DIAMETERS = 4
_SAME = 0.9


def guides_way(image: NDArray[Any], chunk: int, segmenter: Any, params: dict[str, Any]) -> Labels:
    """Chunks without overlap, each segmented by itself, its labels numbered on from those before.

    Args:
        image: (y, x[, c]) pixels.
        chunk: Side of a chunk in pixels.
        segmenter: What turns pixels into labels.
        params: The slide-wide parameters.

    Returns:
        (y, x) int64.
    """
    height, width = image.shape[:2]
    labels = np.zeros((height, width), np.int64)
    above = 0
    for y in range(0, height, chunk):
        for x in range(0, width, chunk):
            place = np.s_[y : y + chunk, x : x + chunk]
            found = np.asarray(segmenter.segment(image[place], params)).astype(np.int64)
            labels[place] = np.where(found > 0, found + above, 0)
            above += int(found.max())
    return labels


def count(labels: Labels) -> int:
    """Objects of a label image."""
    return int(np.count_nonzero(np.unique(labels)))


def measure(slide: Path, image: NDArray[Any], chunks: Iterable[int], mpp: float, folder: Path, report: Report) -> None:
    """A row per size of chunk.

    `whole` is how many objects the segmenter finds in the image, `guide` in its chunks, `one_block` slidesam in one block and
    `ours` in blocks. `guide_same` and `ours_same` are F1 at IoU 0.9 of the chunks' objects with those of one piece and of one
    block: slidesam shows the segmenter background beyond the slide's edges, so that some objects there are others.

    Args:
        slide: The image as slidesam reads it.
        image: (y, x[, c]) the same pixels.
        chunks: Sides of chunks in pixels, multiples of 16.
        mpp: Pixel size in µm.
        folder: For the results in between.
        report: Where rows are added.
    """
    todo = [chunk for chunk in chunks if report.find(chunk=chunk) is None]
    if not todo:
        return
    settings = _settings(mpp)
    largest = settings | {"blocks.block_shape": -(-max(image.shape[:2]) // 16) * 16}
    in_one = slidesam.segment(slide, folder / "one-block", largest, progress=False)
    one_block = np.asarray(in_one.labels)
    segmenter, params = _segmenter(in_one)
    whole = np.asarray(segmenter.segment(image, params))
    for chunk in todo:
        blocks = settings | {"blocks.block_shape": chunk}
        ours = np.asarray(slidesam.segment(slide, folder / f"chunk-{chunk}", blocks, progress=False).labels)
        guide = guides_way(image, chunk, segmenter, params)
        row = {
            "chunk": chunk, "halo": settings["blocks.halo"], "whole": count(whole), "guide": count(guide),
            "one_block": count(one_block), "ours": count(ours),
            "guide_same": score(guide, whole, _SAME), "ours_same": score(ours, one_block, _SAME),
        }  # fmt: skip
        report.add(row)
        say(f"watershed, chunk {chunk}: {row['whole']} objects, the guide's way {row['guide']}, slidesam {row['ours']}")


def _settings(mpp: float) -> dict[str, Any]:
    """All blocks segmented by `watershed`, with a halo of whole multiples of 16 px."""
    settings: dict[str, Any] = {"segmenter.kind": "watershed", "blocks.tissue": "off", "slide.mpp": mpp}
    diameter = make_settings(overrides=settings).segmenter.diameter / mpp  # type: ignore[union-attr]
    return settings | {"blocks.halo": int(-(-_HALO_DIAMETERS * diameter // 16) * 16)}


def _segmenter(result: slidesam.Result) -> tuple[Any, dict[str, Any]]:
    """The segmenter of a run that is done, and its slide-wide parameters."""
    chosen, is_rgb = result.settings.segmenter, result.slide.is_rgb
    segmenter = load_segmenter(chosen.model_dump_json(), is_rgb, segmenter_identity(chosen, is_rgb))
    return segmenter, result.run["segmenter"]["params"]


def tables(report: Report) -> list[Table]:
    """The table."""
    columns = (
        "chunk", "in one piece", "the guide's way", "false objects %", "objects the same", "slidesam in one block",
        "in blocks", "false objects % ", "objects the same ",
    )  # fmt: skip
    rows: list[Sequence[Any]] = [
        [
            str(row["chunk"]), row["whole"], row["guide"], _signed(percent(row["guide"], row["whole"])),
            f"{row['guide_same']:.4f}", row["one_block"], row["ours"],
            _signed(percent(row["ours"], row["one_block"])), f"{row['ours_same']:.4f}",
        ]
        for row in sorted(report.rows, key=lambda row: row["chunk"])
    ]  # fmt: skip
    halo = report.rows[0]["halo"] if report.rows else 0
    below = (
        f"the same: F1 at IoU {_SAME} with one piece, or one block; slidesam's halo is {halo} px, and it shows the segmenter\n"
        "background beyond the image's edges, so that one block and one piece differ there"
    )
    return [Table("objects that chunks make too many, watershed", columns, rows, below)]


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"
