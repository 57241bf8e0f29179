"""What people met elsewhere: inputs made after public bug reports, beside the pixels and nuclei that are there.

Each case is made anew in a temporary folder, read, and segmented by the watershed.

pixels     level 0, compared with the right pixels
mpp        the pixel size
nuclei     how many of the nuclei are found at an IoU of at least 0.5, how many objects there are in all, and how many of these
           lie where nothing was scanned

    .venv/bin/python -m benchmarks.public_cases [--cases ../shared/data/bug_cases] [--only t01 z0] [--convert auto never]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import slidesam
from benchmarks.same_results import SHARED
from slidesam.tasks.compare.scores import match_arrays
from slidesam.tasks.errors import SlidesamError
from slidesam.tasks.grid import Region
from slidesam.tasks.slides.facts import Slide
from slidesam.tasks.slides.reader import SlideReader

BLOCK, HALO = 512, 64


def make_case(folder: Path, work: Path) -> dict[str, Any] | None:
    """Make a case in `work`; what is right, or none if the case states nothing."""
    shutil.copy(folder.parent / "lib.py", work)
    case = work / folder.name
    shutil.copytree(folder, case)
    subprocess.run([sys.executable, "-W", "ignore", case / "make.py"], check=True, capture_output=True)
    truth = case / "truth.json"
    return {**json.loads(truth.read_text()), "folder": case} if truth.is_file() else None


def judge_pixels(slide: Slide, truth: dict[str, Any]) -> str:
    """Compare level 0 of all channels with the right pixels."""
    file = truth["folder"] / "truth.npy"
    if not file.is_file():
        return "not stated"
    right = np.load(file)
    with SlideReader(slide) as reader:
        pixels = reader.read(Region(0, 0, *slide.shape), channels=range(slide.size_c)).transpose(2, 0, 1)
    if pixels.shape != right.shape:
        return f"{pixels.shape} instead of {right.shape}"
    with np.errstate(invalid="ignore"):
        difference = np.abs(pixels.astype(np.float64) - right)
    difference[~np.isfinite(pixels) & ~np.isfinite(right)] = 0
    for y0, y1, x0, x1 in truth.get("nowhere", ()):
        difference[:, y0:y1, x0:x1] = 0
    return "right" if np.nanmax(difference) <= truth["tol"] else f"off by {np.nanmax(difference):g}"


def judge_mpp(slide: Slide, truth: dict[str, Any]) -> str:
    """Compare the pixel size."""
    right = truth["mpp"]
    sizes = (right,) * 2 if isinstance(right, (int, float)) else right
    if sizes is None:
        return "none" if slide.mpp is None else f"{slide.mpp}, nothing stated"
    if slide.mpp is None:
        return f"none instead of {sizes}"
    return "right" if np.allclose(slide.mpp, sizes, rtol=0.005) else f"{slide.mpp} instead of {sizes}"


def judge_nuclei(slide: Slide, truth: dict[str, Any], convert: str) -> str:
    """Segment the slide, and count the nuclei that are found."""
    settings: dict[str, Any] = {
        "segmenter.kind": "watershed",
        "blocks.block_shape": BLOCK,
        "blocks.halo": HALO,
        "image.convert": convert,
    }
    settings |= dict(pair.split("=") for pair in truth.get("settings", ()))
    settings = {name: int(value) if str(value).isdecimal() else value for name, value in settings.items()}
    out = truth["folder"] / f"out-{convert}"
    labels = np.asarray(slidesam.segment(slide.path, out, settings, progress=False).labels[:, :])
    objects = len(np.unique(labels[labels > 0]))
    file = truth["folder"] / "labels.npy"
    if not file.is_file():
        return f"{objects} objects"
    right = np.load(file)
    nowhere = np.zeros(labels.shape, bool)
    for y0, y1, x0, x1 in truth.get("nowhere", ()):
        nowhere[y0:y1, x0:x1] = True
    expected = len(np.unique(right[(right > 0) & ~nowhere]))
    false = len(np.unique(labels[(labels > 0) & nowhere])) - len(
        np.unique(labels[(labels > 0) & nowhere & (right > 0)])
    )
    return f"{count_hits(labels, right, nowhere)} of {expected}, {objects} objects" + (
        f", {false} where nothing is" if nowhere.any() else ""
    )


def count_hits(labels: NDArray[Any], right: NDArray[Any], nowhere: NDArray[np.bool_]) -> int:
    """Count the right nuclei that an object meets at an IoU of at least 0.5."""
    return match_arrays(*(np.where(nowhere, 0, array) for array in (labels, right))).score().matched


def judge(truth: dict[str, Any], converts: list[str]) -> list[str]:
    """Return pixels, pixel size, nuclei and warnings in words; a refusal in its own words."""
    try:
        slide = slidesam.inspect(truth["folder"] / truth["file"])
        cells = [judge_pixels(slide, truth), judge_mpp(slide, truth)]
        nuclei = "; ".join(dict.fromkeys(judge_nuclei(slide, truth, convert) for convert in converts))
    except SlidesamError as error:
        return ["refused", "", "", str(error)]
    return [*cells, nuclei, " · ".join(slide.warnings)]


def main() -> None:
    """Make, read and segment the cases, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, default=SHARED / "bug_cases")
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of the cases' names")
    parser.add_argument("--convert", nargs="*", default=["auto"], help="values of image.convert")
    arguments = parser.parse_args()
    table = Table("case", "pixels", "mpp", "nuclei", "warnings")
    for folder in sorted(arguments.cases.iterdir()):
        if not (folder / "make.py").is_file() or not folder.name.startswith(tuple(arguments.only)):
            continue
        with tempfile.TemporaryDirectory() as work:
            truth = make_case(folder, Path(work))
            if truth is not None:
                table.add_row(folder.name, *judge(truth, arguments.convert))
                print(folder.name, *table_cells(table), sep=" | ", file=sys.stderr, flush=True)
    Console(width=220).print(table)


def table_cells(table: Table) -> list[str]:
    """Return the cells of the last row, without the case's name."""
    return [str(list(column.cells)[-1]) for column in table.columns[1:]]


if __name__ == "__main__":
    main()
