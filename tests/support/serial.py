"""A slide through the product's own order of steps in this process, without its lock and its look for a finished result."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from slidesam.attempts import run_stages
from slidesam.executors import StepExecutor
from slidesam.flows.slide import order
from slidesam.flows.slide.order import Batch, Facts, Step
from slidesam.progress import StageReporter
from slidesam.tasks.plan import plan_run
from slidesam.tasks.run.run import Run
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.store import convert


class Serial(StepExecutor):
    """Raises what a step raises, at once."""

    def run_many(
        self, step: Step, run: Run, jobs: Iterable[Batch], arguments: Callable[[Batch], tuple[Any, ...]]
    ) -> Generator[tuple[Batch, Facts, Exception | None], None, None]:
        for job in jobs:
            yield job, step.fn(run, *arguments(job)), None


class Backwards(Serial):
    """Does a step's jobs in the opposite order."""

    def run_many(
        self, step: Step, run: Run, jobs: Iterable[Batch], arguments: Callable[[Batch], tuple[Any, ...]]
    ) -> Generator[tuple[Batch, Facts, Exception | None], None, None]:
        return super().run_many(step, run, list(jobs)[::-1], arguments)


EXECUTOR = Serial(StageReporter())
BACKWARDS = Backwards(StageReporter())


def write_image_serially(run: Run) -> None:
    """The image stage: converted, rechunked, or an overview."""
    if not convert.is_ready(run):
        order.write_image(run, EXECUTOR)


def stitch_serially(run: Run, executor: StepExecutor = EXECUTOR) -> int:
    """Matching, numbering, painting and export of a run whose blocks are segmented; how many objects."""
    return order.stitch_and_export(run, executor, {}).objects


def segment_serially(slide: Path, output: Path, overrides: dict) -> np.ndarray:
    """The slide's (y, x) labels."""
    run = plan_run(slide, output, make_settings(overrides=overrides))
    run_stages(run, EXECUTOR, check=lambda: None)
    return np.asarray(zarr.open_array(run.paths.label_image / "0", mode="r")[0, 0, 0])
