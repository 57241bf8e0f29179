"""What `slidesam status` and the Prefect UI are told of a slide's run: that it runs, what it uses, and how it ended.

This is the flow's writer of state.json (`tasks.run.records.State`); the Python interface's is `slidesam.attempts`.
"""

from __future__ import annotations

import contextlib
import re
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL

from slidesam.flows.cluster.profile import ClusterProfile
from slidesam.flows.prefect_api.endings import end_children
from slidesam.flows.progress.run_page import show_failure
from slidesam.tasks.errors import (
    ServerError,
    SlideAwayError,
    SlideError,
    SlideGoneError,
    SlidesamError,
    SlideUnchangedError,
    in_one_line,
)
from slidesam.tasks.run.layout import RunPaths
from slidesam.tasks.run.lock import holder
from slidesam.tasks.run.records import Provenance
from slidesam.tasks.run.regions import list_region_blocks
from slidesam.tasks.run.run import Run
from slidesam.tasks.run.status import describe_file, read_state, write_state
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.facts import slide_name

# The last words of an error of a library in whose callback a signal was raised: Ctrl-C, or SIGTERM as Prefect has it.
_INTERRUPTION = re.compile(r"\b(KeyboardInterrupt|TerminationSignal)(: )?$")


class RunStatus:
    """The status of one run of a slide, in the state file and in the UI.

    Args:
        slide: The slide.
        output: Folder for the results.
        settings: What to compute.
        profile: Where to compute it.

    Attributes:
        name: The slide's name.
        label: The label image's name.
        flow_run_id: The flow run in which this is made.
        run: The run, once it is planned.
        notes: What a person should know of how the run went, one sentence each.
    """

    def __init__(self, slide: Path, output: Path, settings: Settings, profile: ClusterProfile) -> None:
        self.slide, self.output = slide, output
        self.name, self.label = slide_name(slide, settings.slide.name), settings.output.label
        self.flow_run_id = uuid.UUID(flow_run.id)
        self.run: Run | None = None
        self.notes: list[str] = []
        self._has_lock = False
        # `slidesam retry` reads the request from here, in whichever folder it is called.
        self._facts: dict[str, Any] = {
            "slide_path": str(slide.absolute()),
            "flow_run_id": str(self.flow_run_id),
            "settings": settings.model_dump(mode="json"),
            "cluster": profile.model_dump(mode="json"),
        }

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record how the run inside ends if it doesn't finish.

        Raises:
            KeyboardInterrupt: Ctrl-C ended it, also where a library made an error of that.
            TerminationSignal: SIGTERM ended it, likewise.
            ServerError: The Prefect API doesn't answer any more.
        """
        try:
            yield
        except httpx.TransportError as error:
            lost = ServerError(
                f"the Prefect API at {PREFECT_API_URL.value()} doesn't answer any more ({in_one_line(error)})",
                "start it again; what is finished stays, so run the same command again to resume",
            )
            self._record_end(lost)
            raise lost from error
        except BaseException as error:
            self._record_end(error)
            match = _find_interruption(error)
            if match is not None:
                raise (
                    KeyboardInterrupt if match == "KeyboardInterrupt" else TerminationSignal(signal.SIGTERM)
                ) from error
            raise

    def start(self, run: Run) -> None:
        """Write that the run has the result's lock and computes."""
        self._has_lock = True
        self.update(
            blocks=len(run.grid),
            segment_folder=run.segment_folder.path.name,
            region_blocks=list_region_blocks(run),
        )

    def update(self, **facts: Any) -> None:
        """Add facts, and write that the run is running."""
        self._facts |= facts
        self._write("running")

    def note(self, message: str) -> None:
        """Keep a sentence for the page of the result, and for `slidesam status`."""
        self.notes.append(message)

    def finish(self, record: Provenance) -> None:
        """Write that the run is finished."""
        self._write("finished", objects=record.objects, warnings=(*record.warnings, *self.notes))

    def _write(self, status: str, **facts: Any) -> None:
        write_state(self.output, self.name, self.label, status, **self._facts, **facts)

    def _record_end(self, error: BaseException) -> None:
        is_interruption = _find_interruption(error) is not None
        # If another run computes this result, or a killed one left jobs, the state file is that run's.
        if self._has_lock or not self._is_running_elsewhere():
            self._write_end(error, is_stopped=is_interruption or not isinstance(error, Exception))
        if not is_interruption:
            show_failure(self.run, self.slide, error, output=self.output, name=self.name, label=self.label)
        # If another process executes this very flow run, the children are that process's.
        if self._has_lock or not self._is_locked():
            end_children(self.flow_run_id, f'flow run "{flow_run.name}" ended: {in_one_line(error)}')

    def _is_running_elsewhere(self) -> bool:
        """Tell whether the state file says that this result is being computed."""
        with contextlib.suppress(OSError):
            return read_state(self.output, self.name, self.label).status == "running" or self._is_locked()
        return False

    def _is_locked(self) -> bool:
        """Tell whether a process computes this result."""
        with contextlib.suppress(OSError):
            return holder(RunPaths(self.output, self.name, self.label).lock) is not None
        return False

    def _write_end(self, error: BaseException, *, is_stopped: bool) -> None:
        """Write how the run ended; if even that fails, the error itself tells enough."""
        is_file_at_fault = isinstance(error, SlideError) and not isinstance(error, SlideGoneError | SlideAwayError)
        message = error.reason if isinstance(error, SlideUnchangedError) else in_one_line(error)
        with contextlib.suppress(SlidesamError, OSError):
            if is_stopped:
                self._write("stopped")
            else:
                self._write("failed", error=message, file=describe_file(self.slide) if is_file_at_fault else None)


def _find_interruption(error: BaseException) -> str | None:
    """Return the signal's exception if an error is one in a library's words."""
    match = _INTERRUPTION.search(str(error)) if isinstance(error, Exception) else None
    return None if match is None else match[1]
