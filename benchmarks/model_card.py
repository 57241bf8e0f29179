"""The table in docs/nuclei-small.md, made again: the shipped weights and `watershed` on the test images of nuclei_cc0.

Each image is scored alone, through slidesam's own segmenters, on the CPU (some 15 s an image on two cores). nuclei-small sees
a field of 1024 px, not scaled, as training/train.py has taught it; a smaller image is continued by its mirror image, and only its
own part is scored. Scores go into training/results/nuclei-small-scores.jsonl, one line per image and method; --resume keeps those
of the same weights.

    .venv/bin/python -m benchmarks.model_card [--data ../shared/data/nuclei_cc0] [--resume]
    .venv/bin/python -m benchmarks.model_card --only-tables    # the document from the scores that there are
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from slidesam.tasks.compare.scores import THRESHOLDS, match_arrays
from slidesam.tasks.segmenters.base import Segmenter
from slidesam.tasks.segmenters.microsam.inputs import intensity_range
from slidesam.tasks.segmenters.microsam.segmenter import MicroSamSegmenter
from slidesam.tasks.segmenters.microsam.weights import identify_model
from slidesam.tasks.segmenters.watershed import WatershedSegmenter
from slidesam.tasks.settings.methods import MicroSam, Watershed
from tests.support import ROOT

SCORES = ROOT / "training" / "results" / "nuclei-small-scores.jsonl"
CARD = ROOT / "docs" / "nuclei-small.md"
MARKS = ("<!-- scores: made by `make model-card` -->", "<!-- end of scores -->")
KINDS = {"fluo": "fluorescence", "he": "H&E-like tissue", "bright": "grey brightfield"}
METHODS = ("nuclei-small", "watershed")
FIELD, HALO = 1024, 128


def read_image(data: Path, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """An image, uint8 (y, x[, 3]), and its labels, int64 (y, x)."""
    image = np.asarray(Image.open(data / f"{row['id']}.png"))
    labels = np.asarray(Image.open(data / f"{row['id']}_labels.png")).astype(np.int64)
    return (image[..., :3] if row["kind"] == "he" else image.reshape(*image.shape[:2], -1)[..., 0]), labels


def median_diameter(data: Path, rows: list[dict[str, Any]]) -> float:
    """Median diameter in px of the nuclei of training images, of circles of their area: what `watershed` is told."""
    areas = [np.bincount(read_image(data, row)[1].ravel())[1:] for row in rows]
    sizes = np.concatenate(areas)
    return float(2 * np.sqrt(np.median(sizes[sizes > 0]) / np.pi))


def count_matches(truth: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """Numbers of true objects, of found ones, and of pairs above each IoU."""
    matches = match_arrays(found, truth)
    scores = [matches.score(float(np.nextafter(threshold, 1))) for threshold in THRESHOLDS]
    return {
        "true": scores[0].matched + scores[0].only_true,
        "found": scores[0].matched + scores[0].only_found,
        "matched": [score.matched for score in scores],
    }


def by_model(segmenters: dict[str, MicroSamSegmenter], image: np.ndarray) -> np.ndarray:
    """Labels by nuclei-small of one image in its field, or of one larger than a field in tiles."""
    height, width = image.shape[:2]
    missing = [(0, max(FIELD - side, 0)) for side in (height, width)]
    field = np.pad(image, [*missing, *[(0, 0)] * (image.ndim - 2)], mode="symmetric")
    segmenter = segmenters["whole" if max(field.shape[:2]) == FIELD else "tiles"]
    return segmenter.segment(field, intensity_range(image, is_rgb=image.ndim == 3))[:height, :width]


def by_watershed(segmenter: Segmenter, image: np.ndarray) -> np.ndarray:
    """Labels by `watershed`, with the thresholds of this image."""

    class Unscaled:
        mpp = None

    return segmenter.segment(image, segmenter.prepare(image, Unscaled()))  # type: ignore[arg-type]


def score(data: Path, done: set[str], identity: str) -> Iterator[dict[str, Any]]:
    """Score each image of the test split that isn't done yet."""
    index = json.loads((data / "index.json").read_text())
    model = MicroSam(model="nuclei-small", device="cpu", tile_shape="off")
    tiled = model.model_copy(update={"tile_shape": (FIELD - 2 * HALO,) * 2, "tile_halo": (HALO,) * 2})
    segmenters = {"whole": MicroSamSegmenter(model, is_rgb=False), "tiles": MicroSamSegmenter(tiled, is_rgb=False)}
    simple = {}
    for kind in KINDS:
        diameter = median_diameter(data, [row for row in index if (row["kind"], row["split"]) == (kind, "train")])
        signal: Literal["auto", "dark"] = "dark" if kind == "bright" else "auto"
        settings = Watershed(kind="watershed", diameter=diameter, signal=signal)
        simple[kind] = WatershedSegmenter(settings, is_rgb=kind == "he")
    for row in order_test_images(index):
        if row["id"] in done:
            continue
        image, truth = read_image(data, row)
        labels = {"nuclei-small": by_model(segmenters, image), "watershed": by_watershed(simple[row["kind"]], image)}
        for method, found in labels.items():
            counts = count_matches(truth, found.astype(np.int64))
            yield {"id": row["id"], "kind": row["kind"], "method": method, **counts, "weights": identity}


def order_test_images(index: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The images of the test split, kinds in turns, so that scores that were interrupted are of all kinds."""
    by_kind = [[row for row in index if (row["kind"], row["split"]) == (kind, "test")] for kind in KINDS]
    return [row for turn in zip_longest(*by_kind) for row in turn if row is not None]


def read_scores() -> list[dict[str, Any]]:
    """The scores that there are."""
    return [json.loads(line) for line in SCORES.read_text().splitlines()] if SCORES.exists() else []


def summarize(scores: list[dict[str, Any]], kind: str, method: str) -> tuple[int, int, int, float, float]:
    """Images, true and found objects, F1 at IoU 0.5, mean average precision, of one kind and method.

    Average precision at an IoU is matched / (true + found - matched), the Data Science Bowl's, over all objects of the kind.
    """
    rows = [row for row in scores if (row["kind"], row["method"]) == (kind, method)]
    true, found = (sum(row[key] for row in rows) for key in ("true", "found"))
    matched = np.sum([row["matched"] for row in rows], axis=0)
    f1 = 2 * matched[0] / max(true + found, 1)
    return len(rows), true, found, float(f1), float(np.mean(matched / np.maximum(true + found - matched, 1)))


def make_table(scores: list[dict[str, Any]]) -> str:
    """The card's table, in Markdown."""
    lines = [
        "| kind of image | test images | nuclei | method | found | F1 at IoU 0.5 | mean average precision, IoU 0.5 to 0.95 |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, words in KINDS.items():
        for method in METHODS:
            images, true, found, f1, precision = summarize(scores, kind, method)
            lines.append(
                f"| {words} | {images} | {true} | `{method}` | {found} | {f1:.3f} | {precision:.3f} |"
                if images
                else f"| {words} | 0 | | `{method}` | | | |"
            )
    return "\n".join(lines)


def write_card(scores: list[dict[str, Any]]) -> str:
    """Put the table between the card's marks, and return it."""
    text, table = CARD.read_text(), make_table(scores)
    before, _, rest = text.partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    CARD.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}")
    return table


def main() -> None:
    """Scores, writes the card, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/nuclei_cc0"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--only-tables", action="store_true")
    arguments = parser.parse_args()
    if not arguments.only_tables:
        identity = identify_model(MicroSam(model="nuclei-small"), is_rgb=True).rpartition(":")[2][:16]
        kept = [row for row in read_scores() if arguments.resume and row["weights"] == identity]
        scored = {(row["id"], row["method"]) for row in kept}
        # A run that was ended between two methods left one of them.
        kept = [row for row in kept if all((row["id"], method) in scored for method in METHODS)]
        SCORES.write_text("".join(json.dumps(row) + "\n" for row in kept))
        for row in score(arguments.data, {row["id"] for row in kept}, identity):
            with SCORES.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{row['kind']} {row['id']} {row['method']}: {row['matched'][0]} of {row['true']}", flush=True)
    print(write_card(read_scores()))


if __name__ == "__main__":
    main()
