"""Compare a finished result with a truth: counts, scores, merged and split objects, regions, and files of all that."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slidesam.tasks.compare.counts import SharedCounts, count_shared
from slidesam.tasks.compare.label_sources import LabelSource, check_same_shape, open_run_labels
from slidesam.tasks.compare.picture import OVERVIEW_SIDE, Sides, draw_differences
from slidesam.tasks.compare.scores import THRESHOLDS, MatchedObjects, Score, match_objects
from slidesam.tasks.errors import SettingsError
from slidesam.tasks.labels.parts import Objects
from slidesam.tasks.pixels.regions_of_interest import RegionsOfInterest, read_regions
from slidesam.tasks.run.files import replacing, write_atomic
from slidesam.tasks.run.run import Run

DEFINITIONS = {
    "matched": "pairs with an IoU (shared pixels / pixels of either) of at least the threshold",
    "precision": "matched / objects of the result",
    "recall": "matched / objects of the truth",
    "f1": "2 matched / (objects of the result + objects of the truth); the same as recognition quality (RQ)",
    "average_precision": "matched / (matched + only in the result + only in the truth), as StarDist and the Data Science Bowl "
    "2018 have it; not the area under a curve",
    "segmentation_quality": "mean IoU of what matches at 0.5 (SQ)",
    "panoptic_quality": "SQ × RQ",
    "merged_pairs": "pairs of true objects of both of which one object of the result holds more than half",
    "merged_objects": "objects of the result that hold such pairs",
    "split_pairs": "pairs of the result's objects of both of which one true object holds more than half",
    "split_objects": "objects of the truth that hold such pairs",
}
"""What the numbers mean, by their names in the JSON file."""


@dataclass(frozen=True)
class RegionScore:
    """Objects whose centroid lies in a region.

    Attributes:
        name: The region's name.
        objects: Of the result.
        true_objects: Of the truth.
        matched: Objects of the result that match at an IoU of at least 0.5.
        true_matched: The same of the truth; near the region's border a pair may have one centroid inside.
    """

    name: str
    objects: int
    true_objects: int
    matched: int
    true_matched: int

    @property
    def f1(self) -> float | None:
        """Harmonic mean of the shares that match on either side; None where neither side has objects."""
        if not self.objects + self.true_objects:
            return None
        if not self.matched or not self.true_matched:
            return 0.0
        weights = self.matched * self.true_objects + self.true_matched * self.objects
        return 2 * self.matched * self.true_matched / weights


@dataclass(frozen=True)
class Comparison:
    """A result beside a truth.

    Attributes:
        result: Name of the result.
        truth: Name of the truth.
        objects: How many objects the result has.
        true_objects: How many the truth has.
        scores: One per threshold of IoU, from 0.5 on.
        matches: Which objects match, and which are only in one of them.
        regions: Counts per region.
        notes: What a person should know, a sentence each.
    """

    result: str
    truth: str
    objects: int
    true_objects: int
    scores: tuple[Score, ...]
    matches: MatchedObjects
    regions: tuple[RegionScore, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        f1 = "none" if self.f1 is None else f"{self.f1:.3f}"
        return (
            f"<Comparison of {self.result} ({self.objects} objects) with {self.truth} ({self.true_objects}): F1 {f1}>"
        )

    @property
    def f1(self) -> float | None:
        """F1 at an IoU of 0.5; None where neither has objects."""
        return self.scores[0].f1

    @property
    def panoptic_quality(self) -> float | None:
        """Panoptic quality: mean IoU of the matches × F1."""
        return self.matches.panoptic_quality

    def to_json(self) -> dict[str, Any]:
        """Return all numbers but those of single objects, as JSON has them, and what they mean."""
        matches = self.matches
        scores = [
            {
                "iou": score.iou, "matched": score.matched, "only_in_result": score.only_found,
                "only_in_truth": score.only_true, "precision": score.precision, "recall": score.recall, "f1": score.f1,
                "average_precision": score.average_precision,
            }
            for score in self.scores
        ]  # fmt: skip
        return {
            "result": self.result, "truth": self.truth, "objects": self.objects, "true_objects": self.true_objects,
            "scores": scores, "mean_average_precision": matches.mean_average_precision,
            "segmentation_quality": matches.segmentation_quality, "panoptic_quality": matches.panoptic_quality,
            "merged_pairs": matches.merged_pairs, "merged_objects": matches.merged_objects,
            "split_pairs": matches.split_pairs, "split_objects": matches.split_objects,
            "regions": [vars(region) | {"f1": region.f1} for region in self.regions], "notes": list(self.notes),
            "definitions": DEFINITIONS,
        }  # fmt: skip


def compare_run(run: Run, truth: LabelSource, regions: str | None = None, prefix: Path | None = None) -> Comparison:
    """Compare the labels of a finished run with a truth.

    Args:
        run: The run.
        truth: Labels of the same pixels; closed here.
        regions: Path of GeoJSON with polygons to count objects in, or a rectangle as in `blocks.region`; None = the run's own.
        prefix: Where to write `.json`, `.csv` and `.png`; None = nowhere.

    Raises:
        SettingsError: The truth is of another size, or can't be used; the file of regions isn't GeoJSON.
        OutputError: The result is damaged, or a file can't be written.
    """
    try:
        areas = _find_regions(run, regions)
        result, tile = open_run_labels(run)
        check_same_shape(truth, result.shape)
        counts, sampled = count_shared(result, truth, tile, OVERVIEW_SIDE)
        matches = match_objects(counts)
        comparison = Comparison(
            result=result.name,
            truth=truth.name,
            objects=counts.found.ids.size,
            true_objects=counts.true.ids.size,
            scores=tuple(matches.score(iou) for iou in THRESHOLDS),
            matches=matches,
            regions=() if areas is None else tuple(_count_regions(areas, counts, matches)),
            notes=(*truth.notes, *_describe_doubts(run, counts, truth)),
        )
        if prefix is not None:
            sides = Sides(result, truth, matches.only_found, matches.only_true)
            picture = draw_differences(run, sides, sampled, _find_places(counts, matches), _caption(comparison))
            write_atomic(Path(f"{prefix}.png"), picture)
            _write_pairs(Path(f"{prefix}.csv"), counts, matches)
            write_atomic(Path(f"{prefix}.json"), (json.dumps(comparison.to_json(), indent=1) + "\n").encode())
    finally:
        truth.close()
    return comparison


def choose_prefix(output: Path, run: Run) -> Path:
    """Choose the beginning of the paths of a comparison's files: `output` itself, unless it is a folder."""
    return output / f"{run.name}.{run.label}.compare" if output.is_dir() else output


def check_same_slide(run: Run, other: Run) -> None:
    """Check that two results are of one slide.

    Raises:
        SettingsError: They are of two.
    """
    if run.slide.identity.digest != other.slide.identity.digest:
        what = f"{run.store} is of {run.slide.path}, {other.store} of {other.slide.path}"
        raise SettingsError(
            what,
            "compare results of one slide; of the same pixels in two files, give the label image itself, "
            f"{other.paths.label_image}",
        )


def _caption(comparison: Comparison) -> str:
    score = comparison.scores[0]
    f1 = "" if score.f1 is None else f" (F1 {score.f1:.3f})"
    return (
        f"{comparison.result} beside {comparison.truth}: {score.matched:,} objects match at an IoU of 0.5{f1}, "
        f"{score.only_found:,} are only in the result, {score.only_true:,} only in the truth"
    )


def _describe_doubts(run: Run, counts: SharedCounts, truth: LabelSource) -> Iterator[str]:
    if run.settings.blocks.region is not None:
        yield "the result covers regions of the slide only: true objects elsewhere count as missed, but for the counts per region"
    if counts.true.ids.size == 1 and counts.found.ids.size > 10:
        yield f"{truth.name} has one object: a mask has to be made labels first (skimage.measure.label)"
    if counts.true.ids.size and counts.found.ids.size and not counts.shared.size:
        yield f"no object of {truth.name} shares a pixel with the result: is it of the same slide?"


def _locate(objects: Objects, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (n, 2) centroids, y and x in pixels, of some objects."""
    rows = np.searchsorted(objects.ids, ids)
    return np.asarray(objects.sums[rows] / objects.area[rows, None])


def _find_places(counts: SharedCounts, matches: MatchedObjects) -> NDArray[np.float64]:
    """Return (n, 2) centroids of all objects that are only in one of both."""
    return np.concatenate([_locate(counts.found, matches.only_found), _locate(counts.true, matches.only_true)])


def _find_regions(run: Run, regions: str | None) -> RegionsOfInterest | None:
    """Read the regions to count in: those that are asked for, or those that the run computed."""
    chosen = run.settings.blocks.region if regions is None else regions
    return None if chosen is None else read_regions(chosen, run.slide.shape, run.slide.mpp)


def _count_regions(regions: RegionsOfInterest, counts: SharedCounts, matches: MatchedObjects) -> Iterator[RegionScore]:
    regional = []
    for objects, matched in ((counts.found, matches.found), (counts.true, matches.true)):
        names = regions.find_points(*_locate(objects, objects.ids).T)
        regional.append((Counter(names.tolist()), Counter(names[np.isin(objects.ids, matched)].tolist())))
    (found, found_matched), (true, true_matched) = regional
    for name in regions.names:
        yield RegionScore(name, found[name], true[name], found_matched[name], true_matched[name])


def _write_pairs(path: Path, counts: SharedCounts, matches: MatchedObjects) -> None:
    """Write a row per pair of objects that match, then those that are only in one of both."""
    with replacing(path) as file:
        file.write(b"result,truth,iou,x,y\n")
        numbers = zip(matches.found.tolist(), matches.true.tolist(), matches.iou.tolist(), strict=True)
        cells: list[tuple[Objects, NDArray[np.int64], Callable[[], Iterator[str]]]] = [
            (counts.found, matches.found, lambda: (f"{one},{other},{iou:.4f}" for one, other, iou in numbers)),
            (counts.found, matches.only_found, lambda: (f"{one},," for one in matches.only_found.tolist())),
            (counts.true, matches.only_true, lambda: (f",{one}," for one in matches.only_true.tolist())),
        ]
        for objects, ids, begin in cells:
            for text, (y, x) in zip(begin(), _locate(objects, ids).tolist(), strict=True):
                file.write(f"{text},{x:.1f},{y:.1f}\n".encode())
