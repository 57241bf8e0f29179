"""What a person sees of a cohort in the Prefect UI: a row per slide, the table of all, and a bar while they run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.logging import get_run_logger
from prefect.utilities.urls import url_for

from slidesam.flows.progress.markdown import table, text
from slidesam.flows.progress.run_page import harmless
from slidesam.tasks.errors import in_one_line
from slidesam.tasks.run.files import read_json
from slidesam.tasks.run.layout import RunPaths, SegmentFolder
from slidesam.tasks.run.marks import Marks
from slidesam.tasks.run.status import read_state
from slidesam.tasks.slides.listing import Listed

_ERROR_LENGTH = 400


@dataclass(frozen=True)
class Row:
    """How one slide of a cohort ended.

    Attributes:
        slide: Its name.
        state: In a word, as Prefect has it.
        objects: How many were found.
        blocks: How many were segmented, of how many.
        seconds: How long its run took, waiting not counted.
        error: Why it failed; empty if it didn't.
        link: Its page in the UI.
    """

    slide: str
    state: str
    objects: int | None = None
    blocks: str = ""
    seconds: float | None = None
    error: str = ""
    link: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether its result is there."""
        return self.state == "Completed"


def row_here(slide: Listed, output: Path, error: Exception | None, seconds: float) -> Row:
    """The row of a slide that ran in this process.

    Args:
        slide: The slide.
        output: Folder for the results.
        error: What it failed with, if it did.
        seconds: How long it took.
    """
    state = read_state(output, slide.name, slide.settings.output.label)
    link = state.get("flow_run_id") if slide.error is None else None
    return Row(
        slide.name,
        "Completed" if error is None else "Failed",
        **_result(slide, output, finished=error is None),
        seconds=seconds,
        error="" if error is None else in_one_line(error),
        link=url_for("flow-run", obj_id=UUID(link)) if link else None,
    )


def row_of_run(run: FlowRun, slide: Listed, output: Path) -> Row:
    """The row of a slide that was a run of its own.

    Args:
        run: Its flow run, which has ended.
        slide: The slide.
        output: Folder for the results.
    """
    assert run.state is not None
    finished = run.state.type == StateType.COMPLETED
    state = read_state(output, slide.name, slide.settings.output.label)
    noted = state.get("error") if state.get("flow_run_id") == str(run.id) else None
    error = "" if finished else str(noted or run.state.message or run.state.name)
    return Row(
        slide.name,
        str(run.state.name),
        **_result(slide, output, finished=finished),
        seconds=run.total_run_time.total_seconds(),
        error=error,
        link=url_for("flow-run", obj_id=run.id),
    )


def _result(slide: Listed, output: Path, *, finished: bool) -> dict[str, Any]:
    """Objects and blocks of a slide, from what lies in the output folder."""
    label = slide.settings.output.label
    paths = RunPaths(output, slide.name, label)
    if not finished:
        state = read_state(output, slide.name, label)
        folder = SegmentFolder(paths.work / str(state.get("segment_folder")))
        blocks = state.get("blocks")
        return {"blocks": f"{len(Marks(folder).names())} of {blocks}"} if blocks else {}
    facts = read_json(paths.provenance) or {}
    left_out = len(facts.get("blocks_without_tissue", []))
    return {"objects": facts.get("objects"), "blocks": str(facts.get("blocks", 0) - left_out)}


@contextmanager
def cohort_progress(total: int) -> Iterator[Callable[[list[Row]], None]]:
    """A bar on the cohort's page, and a line in its log per slide that ends."""
    log = get_run_logger()
    words = "{} of {} slides have ended, {} failed"
    artifact: Any = None
    with harmless(log, "progress"):
        artifact = create_progress_artifact(0.0, key="slidesam-cohort-progress", description=words.format(0, total, 0))
    said: set[tuple[str, str]] = set()

    def ended(rows: list[Row]) -> None:
        for row in rows:
            if (row.slide, row.state) not in said:
                what = f"{row.objects:,} objects" if row.objects is not None else row.error
                log.info("%s: %s%s", row.slide, row.state.lower(), f", {what}" if what else "")
                said.add((row.slide, row.state))
        if artifact is not None:
            with harmless(log, "progress"):
                failed = len(rows) - count_finished(rows)
                update_progress_artifact(
                    artifact, 100.0 * len(rows) / total, description=words.format(len(rows), total, failed)
                )

    yield ended


def count_finished(rows: Sequence[Row]) -> int:
    """How many slides are finished."""
    return sum(row.is_finished for row in rows)


def as_markdown(rows: Sequence[Row]) -> str:
    """The table of a cohort's slides, those that failed first.

    Args:
        rows: How each ended.
    """
    states = ", ".join(f"{number} {state.lower()}" for state, number in Counter(row.state for row in rows).items())
    cells = [
        (
            f"[{text(row.slide)}]({row.link})" if row.link else text(row.slide),
            row.state if row.is_finished else f"**{text(row.state)}**",
            "" if row.objects is None else f"{row.objects:,}",
            row.blocks,
            "" if row.seconds is None else f"{row.seconds:.1f}",
            text(in_one_line(row.error, _ERROR_LENGTH)),
        )
        for row in sorted(rows, key=lambda row: row.is_finished)
    ]
    head = ("slide", "state", "objects", "blocks", "seconds", "error")
    return f"# {len(rows)} slides: {states}\n\n{table(head, cells, 'llrrrl')}"
