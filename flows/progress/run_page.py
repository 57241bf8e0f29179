"""Shows a slide on its page in the Prefect UI: its progress, its result, or its failure.

A flow run of a slide has two artifacts: `progress`, and `result` or `failure`. Their keys are made from slide and label, so that
the UI's Artifacts page shows all runs of one slide together. Nothing here raises errors: a page isn't worth a run.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.context import FlowRunContext
from prefect.exceptions import MissingContextError
from prefect.runtime import deployment
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from slidesam.flows.progress.markdown import text
from slidesam.flows.progress.pace import Pace, duration_words
from slidesam.flows.progress.page_text import count, failure_markdown, picture_uri, result_markdown
from slidesam.flows.progress.reporters import Reporter
from slidesam.flows.run_log import own_log, run_log
from slidesam.tasks.errors import BlockFailures, in_one_line
from slidesam.tasks.run.records import Provenance
from slidesam.tasks.run.run import Run
from slidesam.tasks.slides.facts import slide_name

Kind = Literal["progress", "result", "failure"]
Log = logging.Logger | logging.LoggerAdapter[Any]
# Seconds between two updates of the bar; doubled after each failed update, up to the second number.
UPDATE_EVERY, _RARELY = 5.0, 320.0
# Longest wait for the server in seconds: for the bar, which is sent again soon, and for pages, which are sent once.
_PATIENCE, _MORE_PATIENCE = 3.0, 30.0
# The part of the whole bar that a stage has, in percent. Converting and rechunking are alternatives.
_SPANS = {
    "converting": (0.0, 15.0),
    "rechunking": (0.0, 15.0),
    "segmenting blocks": (15.0, 85.0),
    "matching seams": (85.0, 90.0),
    "painting labels": (90.0, 98.0),
}
_LONGEST_KEY = 80


def artifact_key(name: str, label: str, kind: Kind) -> str:
    """Return the key of a slide's artifact: equal for all its runs, different for other slides and labels.

    Two dashes separate slide, label and kind. A hash is added to names that can't be written with a-z, 0-9 and single dashes, or
    that are too long; only case is lost.

    Example:
        >>> artifact_key("CMU-1-Small-Region", "cells", "result")
        'cmu-1-small-region--cells--result'
        >>> artifact_key("Präparat 7", "cells", "result")
        'praparat-7-f71664--cells--result'
    """
    return "--".join((_slug(name), _slug(label), kind))


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_LONGEST_KEY].rstrip("-")
    if slug == name.lower():
        return slug
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:6]
    return f"{slug}-{digest}" if slug else digest


class RunPage:
    """The reporter of a slide's page: updates the bar and writes lines to the log while it is open as a context.

    There is one bar for the whole run, and each stage has a part of it: it never moves back, and segmenting, which nearly always
    takes longest, has most of it. A bar per stage would start at zero four times, and the stages' shares of the time differ too
    much between segmenters and machines for a bar of time; the text beside it has the time. A stage without a part of its own
    (the small upper levels of an image) doesn't move the bar.

    Stages are in child flows, whose logs the slide's page doesn't show. So the bar and the lines, one at the end of each stage,
    go to the flow run in which this object is made.

    Args:
        inner: Another reporter that is told the same: the bars on a terminal.
        name: The slide's name.
        label: The label image's name.
        clock: Seconds on some clock.
    """

    def __init__(self, inner: Reporter, name: str, label: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._inner, self._clock, self._log = inner, clock, _log()
        self._start = clock()
        self._pace: Pace | None = None
        self._percent = 0.0
        self._bar = _Bar(artifact_key(name, label, "progress"), _flow_run_id(), self._log)

    def __enter__(self) -> RunPage:
        self._show("starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        position = "" if self._pace is None else f" at {self._pace.counted}"
        duration = duration_words(self._clock() - self._start)
        if error is None:
            self._percent = 100.0
            self._show(f"finished in {duration}")
        else:
            self._show(f"{'failed' if isinstance(error, Exception) else 'stopped'}{position},\nafter {duration}")
        self._bar.close()

    def inform(self, message: str) -> None:
        """Log a message with the slide."""
        self._log.info("%s", message)
        self._inner.inform(message)

    def begin(self, stage: str, total: int, n_done: int) -> None:
        """Show the stage."""
        self._inner.begin(stage, total, n_done)
        self._pace = Pace(stage, total, n_done, self._clock())
        # Soon after the end of the last stage nobody would see both texts.
        self._move(force=False)

    def advance(self, count: int = 1) -> None:
        """Move the bar, every few seconds."""
        self._inner.advance(count)
        if self._pace is not None:
            self._pace.advance(count, self._clock())
            self._move(force=False)

    def end(self) -> None:
        """Show the stage's end, and log a line on it."""
        self._inner.end()
        if self._pace is not None:
            self._log.info("%s", self._pace.line(self._clock()))
            self._move(force=True)

    def _move(self, *, force: bool) -> None:
        assert self._pace is not None
        if (span := _SPANS.get(self._pace.stage)) is not None:
            self._percent = max(self._percent, span[0] + (span[1] - span[0]) * self._pace.share)
        now = self._clock()
        if force or self._bar.is_due(now):
            self._show(self._pace.describe(now))

    def _show(self, message: str) -> None:
        self._bar.put(self._percent, message, self._clock())


class _Bar:
    """A progress artifact of one flow run; while the server doesn't answer, updates become rare.

    Args:
        key: The artifact's key.
        flow_run_id: The flow run on whose page it is; None = there is no page, and nothing is sent.
        log: Where to log that it can't be shown.
    """

    def __init__(self, key: str, flow_run_id: uuid.UUID | None, log: Log) -> None:
        self._key, self._flow_run_id, self._log = key, flow_run_id, log
        self._artifact_id: uuid.UUID | None = None
        self._next, self._pause = 0.0, UPDATE_EVERY
        self._client: SyncPrefectClient | None = None
        # To make a client and to change a setting take a tenth of a second each: done once, in a context of their own.
        self._open, self._context = ExitStack(), copy_context()

    def is_due(self, now: float) -> bool:
        """Tell whether it is time for another update."""
        return now >= self._next

    def put(self, percent: float, message: str, now: float) -> None:
        """Show how far the run is, unless the server didn't answer just now."""
        is_away = self._pause > UPDATE_EVERY
        if self._flow_run_id is None or (is_away and not self.is_due(now)):
            return
        try:
            self._context.run(self._send, round(percent, 1), message)
        except Exception as error:  # noqa: BLE001 (a bar is worth no run; it is logged)
            if not is_away:
                self._log.warning("progress can't be shown on this page now: %s", in_one_line(error))
            self._pause = min(2 * self._pause, _RARELY)
        else:
            self._pause = UPDATE_EVERY
        self._next = now + self._pause

    def _send(self, percent: float, message: str) -> None:
        if self._client is None:
            # Prefect's own client would try for minutes; the next update comes soon.
            self._open.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
            self._client = self._open.enter_context(_client(_PATIENCE))
        # The UI cuts long lines, and takes a description for markdown.
        description = "\n\n".join(map(text, message.splitlines()))
        if self._artifact_id is None:
            self._artifact_id = self._find_earlier(self._client)
        if self._artifact_id is None:
            artifact = ArtifactCreate(
                key=self._key, type="progress", description=description, data=percent, flow_run_id=self._flow_run_id
            )
            self._artifact_id = self._client.create_artifact(artifact).id
        else:
            self._client.update_artifact(self._artifact_id, ArtifactUpdate(description=description, data=percent))

    def _find_earlier(self, client: SyncPrefectClient) -> uuid.UUID | None:
        """Return the bar that this flow run has from an earlier attempt."""
        assert self._flow_run_id is not None
        own_bar = ArtifactFilter(
            key=ArtifactFilterKey(any_=[self._key]), flow_run_id=ArtifactFilterFlowRunId(any_=[self._flow_run_id])
        )
        artifacts = client.read_artifacts(artifact_filter=own_bar, limit=1)
        return artifacts[0].id if artifacts else None

    def close(self) -> None:
        """Close the connection; the bar stays as it is."""
        with harmless(self._log, "progress"):
            self._context.run(self._open.close)


def show_result(run: Run, provenance: Provenance, notes: Sequence[str] = ()) -> None:
    """Show the result of a finished run on its page.

    Args:
        run: The run.
        provenance: The run's provenance.
        notes: What a person should know of how it went, one sentence each.
    """
    log = _log()
    with harmless(log, "the result"):
        picture = None
        with harmless(log, "the picture"):
            picture = picture_uri(run.paths.overlay)
        title = text(f"{provenance.objects:,} {run.label} in {run.name}")
        _send_page(artifact_key(run.name, run.label, "result"), result_markdown(run, provenance, picture, notes), title)


def show_failure(
    run: Run | None,
    slide: Path,
    error: BaseException,
    *,
    output: Path | None = None,
    name: str | None = None,
    label: str = "cells",
) -> None:
    """Show on the run's page why it failed; runs that were only stopped have no such page.

    Args:
        run: The run; None if it couldn't be planned.
        slide: The slide.
        error: What ended the run.
        output: Output folder, slide's name and label, if `run` is None.
        name: See `output`.
        label: See `output`.
    """
    if not isinstance(error, Exception):
        return
    with harmless(_log(), "what failed"):
        if run is not None:
            name, label = run.name, run.label
        can_retry = deployment.id is not None
        markdown = failure_markdown(run, slide, error, output=output, name=name, can_retry=can_retry)
        title = count(error) if isinstance(error, BlockFailures) else text(in_one_line(error, 200))
        _send_page(artifact_key(name or slide_name(slide), label, "failure"), markdown, title)


def _send_page(key: str, markdown: str, description: str) -> None:
    """Send a page to the server, if there is a flow run."""
    flow_run_id = _flow_run_id()
    if flow_run_id is None:
        return
    artifact = ArtifactCreate(key=key, type="markdown", description=description, data=markdown, flow_run_id=flow_run_id)
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}), _client(_MORE_PATIENCE) as client:
        client.create_artifact(artifact)


def _client(patience: float) -> SyncPrefectClient:
    """Make a client that waits for the server less long than Prefect's own."""
    return get_client(httpx_settings={"timeout": patience}, sync_client=True)


def _flow_run_id() -> uuid.UUID | None:
    context = FlowRunContext.get()
    return context.flow_run.id if context is not None and context.flow_run is not None else None


def _log() -> Log:
    """Return the log of the current flow run."""
    try:
        return run_log()
    except MissingContextError:
        return own_log()


@contextmanager
def harmless(log: Log, subject: str) -> Iterator[None]:
    """Log errors inside instead of raising them."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 (a page is worth no run)
        log.warning("%s can't be shown on this page: %s", subject, in_one_line(error))
