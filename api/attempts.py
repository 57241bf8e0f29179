"""One attempt at a slide from Python: its lock, its `state.json`, its stages in order."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from slidesam.executors import StepExecutor
from slidesam.flows.prefect_api.leftovers import end_leftovers
from slidesam.flows.progress.reporters import Reporter
from slidesam.flows.slide import order
from slidesam.tasks import steps
from slidesam.tasks.errors import SlideAwayError, SlideError, SlideGoneError, SlidesamError, in_one_line
from slidesam.tasks.export.files import missing_formats
from slidesam.tasks.grid import Block
from slidesam.tasks.labels.results import BlockResults
from slidesam.tasks.plan import explain, plan_run
from slidesam.tasks.report.provenance import read_finished
from slidesam.tasks.run.lock import locked
from slidesam.tasks.run.marks import list_blocks, read_params
from slidesam.tasks.run.records import Provenance
from slidesam.tasks.run.run import Run
from slidesam.tasks.run.status import describe_file, read_state, record_finished, write_state
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.facts import slide_name
from slidesam.tasks.slides.reader import SlideReader
from slidesam.tasks.store import convert
from slidesam.tasks.store.verify import heal_image, heal_labels

_OWNER = "slidesam.segment"
_WAIT_FOR_IMAGE = 7 * 86400.0
_KEY_FILES = {"ca": "tls_ca_file", "cert": "tls_client_cert", "key": "tls_client_key"}


class SegmentedBlock(NamedTuple):
    """One block of a slide that was segmented by itself.

    Attributes:
        block: Its number, place, inner and outer region.
        n_blocks: How many blocks the slide has.
        image: (y, x, c) pixels of its outer region.
        labels: (y, x) labels of its outer region, ids 1..n.
        params: What the segmenter found once for the whole slide.
    """

    block: Block
    n_blocks: int
    image: NDArray[Any]
    labels: NDArray[np.uint32]
    params: dict[str, Any]


class Attempt:
    """One attempt at a slide, and what `slidesam status` is told of it.

    Args:
        slide: See `segment`.
        output: See `segment`.
        settings: See `segment`.
        client: See `segment`.
        reporter: Shows progress.
        allowed: Code that the caller allows the segmenter to load.
    """

    def __init__(
        self,
        slide: Path,
        output: Path,
        settings: Settings,
        client: Any,
        reporter: Reporter,
        allowed: tuple[str, ...] = (),
    ) -> None:
        self.allowed = allowed
        self.slide, self.output, self.settings, self.client, self.reporter = slide, output, settings, client, reporter
        self.name, self.label = slide_name(slide, settings.slide.name), settings.output.label
        cluster = {"kind": "local"} if client is None else _describe(client)
        self.is_ours = False
        # So that `slidesam retry` knows what was asked for, from whichever folder.
        self._known: dict[str, Any] = {
            "slide_path": str(slide.absolute()),
            "settings": settings.model_dump(mode="json"),
            "cluster": cluster,
        }

    def finish(self) -> Run:
        """Compute what is missing of the result, and note how that ends.

        Raises:
            SlidesamError: See `segment`.
        """
        try:
            run = plan_run(self.slide, self.output, self.settings, self.allowed)
            record = read_finished(run)
            if record is None or missing_formats(run):
                self._compute(run, record)
            else:
                self.reporter.inform(f"{run.name}: finished before with these settings, nothing to do")
                record_finished(run, record)
        except BaseException as error:
            self._note_end(error)
            raise
        return run

    def segment_block(self, block_id: int | None) -> SegmentedBlock:
        """Compute one block of the result.

        Args:
            block_id: The block; None = one in the middle of those that hold tissue.
        """
        run = plan_run(self.slide, self.output, self.settings, self.allowed)
        target = f"{run.name} ({run.label}) in {run.output}"
        with locked(run.paths.lock, _OWNER, target=target, on_wait=self.reporter.inform) as lock:
            executor = StepExecutor(self.reporter, check=lock.check)
            prepare_image(run, executor)
            executor.run_one(steps.prepare_slide, run)
            with_tissue = list_blocks(run)
            block = run.grid[with_tissue[len(with_tissue) // 2] if block_id is None else block_id]
            executor.run_one(steps.segment_blocks, run, (block.block_id,))
            labels = BlockResults(run).read(block, block.outer)
        with SlideReader(run.slide) as reader:
            return SegmentedBlock(block, len(run.grid), reader.read(block.outer), labels, read_params(run).params)

    def _compute(self, run: Run, finished: Provenance | None) -> None:
        target = f"{run.name} ({run.label}) in {run.output}"
        with locked(run.paths.lock, _OWNER, target=target, on_wait=self.reporter.inform) as lock:
            # Before this attempt is noted: where it can't be made, the next has to know what there was.
            end_leftovers(read_state(run.output, run.name, run.label), run.output, self.reporter.inform)
            self.is_ours = True
            self._known |= {"blocks": len(run.grid), "segment_folder": run.segment_folder.path.name}
            self._note("running")
            for line in [*run.slide.warnings, *explain(run)] if finished is None else []:
                self.reporter.inform(f"{run.name}: {line}")
            executor = StepExecutor(self.reporter, self.client, lock.check)
            record = finished or run_stages(run, executor, lock.check)
            lock.check()
            order.export_objects(run, executor)
            lock.check()
            self._note("finished", objects=record.objects, warnings=record.warnings)

    def _note(self, status: str, **facts: Any) -> None:
        write_state(self.output, self.name, self.label, status, **self._known, **facts)

    def _note_end(self, error: BaseException) -> None:
        """Note for `slidesam status` how the attempt ended, unless another run is at work on the result."""
        with suppress(SlidesamError, OSError):
            if not self.is_ours and read_state(self.output, self.name, self.label).status == "running":
                return
            if not isinstance(error, Exception):
                self._note("stopped")
                return
            is_at_fault = isinstance(error, SlideError) and not isinstance(error, SlideGoneError | SlideAwayError)
            self._note("failed", error=in_one_line(error), file=describe_file(self.slide) if is_at_fault else None)


def run_stages(run: Run, executor: StepExecutor, check: Callable[[], None]) -> Provenance:
    """Run the three stages, one after the other.

    Args:
        run: The run, whose lock is held.
        executor: Executes the steps.
        check: Raises where the lock is lost.

    Returns:
        The provenance.
    """
    seconds: dict[str, float] = {}

    def compute() -> Provenance:
        was_finished = read_finished(run) is not None
        seconds.update(prepare_image(run, executor))
        check()
        for line in heal_labels(run):
            executor.inform(f"{run.name}: {line}")
        if not was_finished and (finished := read_finished(run)) is not None:
            # Only the image, or metadata, was damaged.
            return finished
        block_seconds = order.segment_missing_blocks(run, executor)
        check()
        return order.stitch_and_export(run, executor, seconds | block_seconds)

    return order.repeat_if_damaged(compute, executor.inform)


def prepare_image(run: Run, executor: StepExecutor) -> dict[str, float]:
    """Write the store's image, unless it is there; return the seconds of that stage."""
    target = f"the image of {run.name} in {run.output}"
    with locked(run.paths.image.lock, _OWNER, target=target, wait=_WAIT_FOR_IMAGE, on_wait=executor.inform):
        for line in heal_image(run):
            executor.inform(f"{run.name}: {line}")
        # Asked here, and not before: the run of another label may write it, or `clean` remove it.
        return {} if convert.is_ready(run) else {"image": order.write_image(run, executor)}


def _describe(client: Any) -> dict[str, Any]:
    """Return the profile of a client's cluster; keys are named if they are files, and never written."""
    files = {f"{part}_file": getattr(client.security, name) for part, name in _KEY_FILES.items()}
    are_files = all(isinstance(file, str) and "\n" not in file for file in files.values())
    return {"kind": "attach", "address": client.scheduler.address, **(files if are_files else {})}
