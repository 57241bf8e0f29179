"""Shows a cohort in the Prefect UI: a row per slide, the table of all, and a bar while they run."""

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
from prefect.utilities.urls import url_for

from slidesam.flows.progress.markdown import table, text
from slidesam.flows.progress.run_page import harmless
from slidesam.flows.run_log import run_log
from slidesam.tasks.errors import in_one_line
from slidesam.tasks.run.layout import RunPaths
from slidesam.tasks.run.records import Provenance
from slidesam.tasks.run.status import count_blocks, read_state
from slidesam.tasks.slides.listing import Listed

_ERROR_LENGTH = 400


@dataclass(frozen=True)
class Row:
    """How a slide of a cohort ended.

    Attributes:
        slide: The slide's name.
        state: The state's name, as in Prefect.
        objects: Number of objects.
        blocks: How many blocks were segmented, of how many.
        seconds: Duration of the run without waiting.
        error: Why the slide failed; empty if it didn't.
        link: The run's page in the UI.
        warning: What a person should know of its result; empty if there is nothing.
    """

    slide: str
    state: str
    objects: int | None = None
    blocks: str = ""
    seconds: float | None = None
    error: str = ""
    link: str | None = None
    warning: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether the slide has a result."""
        return self.state == "Completed"


def row_here(slide: Listed, output: Path, error: Exception | None, seconds: float) -> Row:
    """Make the row of a slide that ran in this process.

    Args:
        slide: The slide.
        output: Folder for the results.
        error: What the slide failed with, or None.
        seconds: Duration of the run.
    """
    state = read_state(output, slide.name, slide.settings.output.label)
    link = state.flow_run_id if slide.error is None else None
    return Row(
        slide.name,
        "Completed" if error is None else "Failed",
        **_result(slide, output, finished=error is None),
        seconds=seconds,
        error="" if error is None else in_one_line(error),
        link=url_for("flow-run", obj_id=UUID(link)) if link else None,
    )


def row_of_run(run: FlowRun, slide: Listed, output: Path) -> Row:
    """Make the row of a slide that ran as a flow run of its own.

    Args:
        run: The flow run, which has ended.
        slide: The slide.
        output: Folder for the results.
    """
    assert run.state is not None
    finished = run.state.type == StateType.COMPLETED
    state = read_state(output, slide.name, slide.settings.output.label)
    recorded = state.error if state.flow_run_id == str(run.id) else None
    error = "" if finished else str(recorded or run.state.message or run.state.name)
    return Row(
        slide.name,
        str(run.state.name),
        **_result(slide, output, finished=finished),
        seconds=run.total_run_time.total_seconds(),
        error=error,
        link=url_for("flow-run", obj_id=run.id),
    )


def _result(slide: Listed, output: Path, *, finished: bool) -> dict[str, Any]:
    """Read a slide's numbers of objects and blocks, and the warnings about them, from the output folder."""
    label = slide.settings.output.label
    paths = RunPaths(output, slide.name, label)
    if not finished:
        state = read_state(output, slide.name, label)
        n_done, n_blocks = count_blocks(paths, state)
        return {"blocks": f"{n_done} of {n_blocks}"} if n_blocks else {}
    record = Provenance.read(paths.provenance)
    if record is None:
        return {}
    n_blocks = record.blocks - len(record.blocks_without_tissue)
    return {"objects": record.objects, "blocks": str(n_blocks), "warning": "; ".join(record.warnings)}


@contextmanager
def cohort_progress(total: int) -> Iterator[Callable[[list[Row]], None]]:
    """Show a bar on the cohort's page, and log a line for each slide that ends."""
    log = run_log()
    sentence = "{} of {} slides have ended, {} failed"
    artifact: Any = None
    with harmless(log, "progress"):
        artifact = create_progress_artifact(
            0.0, key="slidesam-cohort-progress", description=sentence.format(0, total, 0)
        )
    logged: set[tuple[str, str]] = set()

    def report(rows: list[Row]) -> None:
        for row in rows:
            if (row.slide, row.state) not in logged:
                result = f"{row.objects:,} objects" if row.objects is not None else row.error
                log.info("%s: %s%s", row.slide, row.state.lower(), f", {result}" if result else "")
                if row.warning:
                    log.warning("%s: %s", row.slide, row.warning)
                logged.add((row.slide, row.state))
        if artifact is not None:
            with harmless(log, "progress"):
                failed = len(rows) - count_finished(rows)
                update_progress_artifact(
                    artifact, 100.0 * len(rows) / total, description=sentence.format(len(rows), total, failed)
                )

    yield report


def count_finished(rows: Sequence[Row]) -> int:
    """Count the finished slides."""
    return sum(row.is_finished for row in rows)


def as_markdown(rows: Sequence[Row]) -> str:
    """Make the table of a cohort's slides, failed ones first, then those with a warning.

    Args:
        rows: How the slides ended.
    """
    states = ", ".join(f"{number} {state.lower()}" for state, number in Counter(row.state for row in rows).items())
    cells = [
        (
            f"[{text(row.slide)}]({row.link})" if row.link else text(row.slide),
            row.state if row.is_finished else f"**{text(row.state)}**",
            "" if row.objects is None else f"{row.objects:,}",
            row.blocks,
            "" if row.seconds is None else f"{row.seconds:.1f}",
            text(in_one_line(row.error or row.warning, _ERROR_LENGTH)),
        )
        for row in sorted(rows, key=lambda row: (row.is_finished, not row.warning))
    ]
    head = ("slide", "state", "objects", "blocks", "seconds", "error or warning")
    return f"# {len(rows)} slides: {states}\n\n{table(head, cells, 'llrrrl')}"
