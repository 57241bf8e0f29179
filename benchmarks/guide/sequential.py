"""micro-sam alone, as its users call it, and the guide's way on it: chunks by themselves, their labels beside each other.

The child imports micro_sam and NumPy only. Both ways share a model that is loaded once; the guide loads it for each chunk.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.guide.case import KEPT, OF_INIT, Case
from benchmarks.guide.children import answer, ask, peak_mib


@dataclasses.dataclass(frozen=True)
class Job:
    """One way through the image.

    Attributes:
        tile: Side of micro-sam's tiles in pixels.
        halo: Their overlap per side in pixels.
        chunk: Side of the guide's chunks in pixels; None = the whole image at once.
    """

    tile: int
    halo: int
    chunk: int | None = None

    def passes(self, shape: tuple[int, int]) -> int:
        """Encoder passes that it takes on an image."""
        return sum(-(-height // self.tile) * -(-width // self.tile) for height, width in map(_size, self.chunks(shape)))

    def chunks(self, shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
        """Where the pieces are that are segmented by themselves, in C order."""
        step = self.chunk or max(shape)
        for y in range(0, shape[0], step):
            for x in range(0, shape[1], step):
                yield slice(y, min(y + step, shape[0])), slice(x, min(x + step, shape[1]))


def _size(place: tuple[slice, slice]) -> tuple[int, int]:
    return place[0].stop - place[0].start, place[1].stop - place[1].start


def run_sequential(
    case: Case, jobs: Sequence[Job], answered: Callable[[Job, dict[str, Any]], None] | None = None
) -> list[dict[str, Any]]:
    """Times micro-sam on some jobs, one after the other in one process.

    Args:
        case: What is measured.
        jobs: The ways through the image.
        answered: Called as each is done.

    Returns:
        Per job `import` and `load` (seconds until the model is there, the same for all), `segment` (seconds), `objects`,
        `passes`, `peak` (MiB of the process until then).
    """
    question = {
        "image": case.image, "model": case.model, "checkpoint": case.checkpoint, "mode": case.mode,
        "device": case.device, "small": case.small, "jobs": [dataclasses.asdict(job) for job in jobs],
        "init": {key: value for key, value in case.options.items() if key in OF_INIT},
        "generate": {key: value for key, value in case.options.items() if key not in OF_INIT},
    }  # fmt: skip
    done: list[dict[str, Any]] = []

    def take(facts: dict[str, Any]) -> None:
        job = jobs[len(done)]
        done.append(facts | {"passes": job.passes(case.shape)})
        if answered is not None:
            answered(job, done[-1])

    ask("benchmarks.guide.sequential", question, {**KEPT, "OMP_NUM_THREADS": str(case.threads)}, take)
    return done


def main() -> None:
    """The child: answers with the facts of each job."""
    began = time.perf_counter()
    case = json.load(sys.stdin)
    from micro_sam.automatic_segmentation import get_predictor_and_segmenter

    if case["small"]:
        from tests.support.microsam_small import use_small_networks

        use_small_networks()
    imported = time.perf_counter()
    predictor, segmenter = get_predictor_and_segmenter(
        case["model"], checkpoint=case["checkpoint"], device=case["device"], segmentation_mode=case["mode"],
        is_tiled=True, **case["init"],
    )  # fmt: skip
    loaded = time.perf_counter()
    image = np.load(case["image"])
    for job in (Job(**each) for each in case["jobs"]):
        started = time.perf_counter()
        objects = _objects(predictor, segmenter, image, job, case["generate"])
        seconds = time.perf_counter() - started
        facts = {"import": imported - began, "load": loaded - imported, "segment": seconds, "objects": objects}
        answer(**facts, peak=peak_mib())


def _objects(predictor: Any, segmenter: Any, image: np.ndarray, job: Job, options: dict[str, Any]) -> int:
    """Segments the image and counts its labels; those of each chunk are objects of their own."""
    from micro_sam.automatic_segmentation import automatic_instance_segmentation

    objects = 0
    for place in job.chunks(image.shape[:2]):
        labels = automatic_instance_segmentation(
            predictor, segmenter, np.ascontiguousarray(image[place]), ndim=2, tile_shape=(job.tile, job.tile),
            halo=(job.halo, job.halo), verbose=False, **options,
        )  # fmt: skip
        objects += int(np.count_nonzero(np.unique(labels)))
    return objects


if __name__ == "__main__":
    main()
