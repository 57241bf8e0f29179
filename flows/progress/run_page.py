"""What a person sees of a slide on its page in the Prefect UI: how far it is, what came out, or what failed.

Three artifacts per flow run of a slide: `progress`, and `result` or `failure`. The keys are made from slide and label, so that
all runs of one slide stand together on the UI's Artifacts page. Nothing here ever raises: a page is not worth a run.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterator, Mapping
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
from prefect.logging import get_logger, get_run_logger
from prefect.runtime import deployment
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from slidesam.flows.progress.markdown import text
from slidesam.flows.progress.pace import Pace, duration_words
from slidesam.flows.progress.page_text import count, failure_markdown, picture_uri, result_markdown
from slidesam.flows.progress.reporters import Reporter
from slidesam.tasks.errors import BlockFailures, in_one_line
from slidesam.tasks.run.run import Run
from slidesam.tasks.slides.facts import slide_name

Kind = Literal["progress", "result", "failure"]
Log = logging.Logger | logging.LoggerAdapter[Any]
# Seconds between two updates of the bar; after a failed one twice as many, and so on up to the second number.
UPDATE_EVERY, _RARELY = 5.0, 320.0
# Seconds for which the server may keep the run waiting: for the bar, which comes again soon, and for what comes once.
_PATIENCE, _MORE_PATIENCE = 3.0, 30.0
# Where on the whole bar a stage lies, in percent. The first is one of three ways to the same place.
_SPANS = {
    "converting": (0.0, 15.0),
    "rechunking": (0.0, 15.0),
    "segmenting blocks": (15.0, 85.0),
    "matching seams": (85.0, 90.0),
    "painting labels": (90.0, 98.0),
}
_LONGEST_KEY = 80


def artifact_key(name: str, label: str, kind: Kind) -> str:
    """The key of a slide's artifact: the same for each of its runs, another for another slide or label.

    Two dashes part slide, label and kind. What can't be written with a-z, 0-9 and single dashes, or is too long, is told apart
    by a hash; only case is lost.

    Example:
        >>> artifact_key("CMU-1-Small-Region", "cells", "result")
        'cmu-1-small-region--cells--result'
        >>> artifact_key("Präparat 7", "cells", "result")
        'praparat-7-f71664--cells--result'
    """
    return "--".join((_slug(name), _slug(label), kind))


def _slug(words: str) -> str:
    plain = unicodedata.normalize("NFKD", words.lower()).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_LONGEST_KEY].rstrip("-")
    if slug == words.lower():
        return slug
    digest = hashlib.sha256(words.encode(errors="surrogateescape")).hexdigest()[:6]
    return f"{slug}-{digest}" if slug else digest


class RunPage:
    """Keeps the bar on a slide's page and the lines in its log up to date, for the run inside it.

    One bar for the whole run, whose parts are the stages: it never runs backwards, and segmenting, which nearly always takes
    longest, has most of it. A bar per stage would begin anew four times, and where the time goes differs too much between
    segmenters and machines for a bar that tells the time; that is in the words beside it. A stage without a part of its own
    (the small upper levels of an image) leaves the bar where it is.

    Stages are in child flows, whose logs the slide's page doesn't show. So bar and lines go to the flow run in which this is
    made: a line per stage, at its end.

    Args:
        inner: Another reporter that is told the same: the bars on a terminal.
        name: The slide's name.
        label: The label image's.
        clock: Seconds on some clock.
    """

    def __init__(self, inner: Reporter, name: str, label: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._inner, self._clock, self._log = inner, clock, _log()
        self._began = clock()
        self._pace: Pace | None = None
        self._percent = 0.0
        self._bar = _Bar(artifact_key(name, label, "progress"), _flow_run_id(), self._log)

    def __enter__(self) -> RunPage:
        self._show("starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        where = "" if self._pace is None else f" at {self._pace.counted}"
        took = duration_words(self._clock() - self._began)
        if error is None:
            self._percent = 100.0
            self._show(f"finished in {took}")
        else:
            self._show(f"{'failed' if isinstance(error, Exception) else 'stopped'}{where},\nafter {took}")
        self._bar.close()

    def inform(self, message: str) -> None:
        """Log a message with the slide."""
        self._log.info("%s", message)
        self._inner.inform(message)

    def begin(self, stage: str, total: int, done: int) -> None:
        """Shows the stage."""
        self._inner.begin(stage, total, done)
        self._pace = Pace(stage, total, done, self._clock())
        # Soon after the last stage's end only the words of one of them would be seen anyway.
        self._move(force=False)

    def advance(self, count: int = 1) -> None:
        """Moves the bar, every few seconds."""
        self._inner.advance(count)
        if self._pace is not None:
            self._pace.advance(count, self._clock())
            self._move(force=False)

    def end(self) -> None:
        """Shows the stage's end, and logs a line on it."""
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
            self._show(self._pace.words(now))

    def _show(self, words: str) -> None:
        self._bar.put(self._percent, words, self._clock())


class _Bar:
    """A progress artifact of one flow run; while the server is away it is left alone, longer and longer.

    Args:
        key: The artifact's.
        flow_run_id: Whose page it stands on; None = there is none, and nothing is shown.
        log: Where to say that it can't be shown.
    """

    def __init__(self, key: str, flow_run_id: uuid.UUID | None, log: Log) -> None:
        self._key, self._flow_run_id, self._log = key, flow_run_id, log
        self._artifact_id: uuid.UUID | None = None
        self._next, self._pause = 0.0, UPDATE_EVERY
        self._client: SyncPrefectClient | None = None
        # Making a client and changing a setting take a tenth of a second each: done once, in a context of their own.
        self._open, self._context = ExitStack(), copy_context()

    def is_due(self, now: float) -> bool:
        """Whether it is time for another update."""
        return now >= self._next

    def put(self, percent: float, words: str, now: float) -> None:
        """Shows how far the run is, unless the server was away just now."""
        is_away = self._pause > UPDATE_EVERY
        if self._flow_run_id is None or (is_away and not self.is_due(now)):
            return
        try:
            self._context.run(self._send, round(percent, 1), words)
        except Exception as error:  # noqa: BLE001
            if not is_away:
                self._log.warning("progress can't be shown on this page now: %s", in_one_line(error))
            self._pause = min(2 * self._pause, _RARELY)
        else:
            self._pause = UPDATE_EVERY
        self._next = now + self._pause

    def _send(self, percent: float, words: str) -> None:
        if self._client is None:
            # The client would go on trying for minutes; this one is asked again soon.
            self._open.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
            self._client = self._open.enter_context(_client(_PATIENCE))
        # The UI cuts long lines off, and takes a description for markdown.
        shown = "\n\n".join(map(text, words.splitlines()))
        if self._artifact_id is None:
            self._artifact_id = self._earlier(self._client)
        if self._artifact_id is None:
            artifact = ArtifactCreate(
                key=self._key, type="progress", description=shown, data=percent, flow_run_id=self._flow_run_id
            )
            self._artifact_id = self._client.create_artifact(artifact).id
        else:
            self._client.update_artifact(self._artifact_id, ArtifactUpdate(description=shown, data=percent))

    def _earlier(self, client: SyncPrefectClient) -> uuid.UUID | None:
        """The bar that this flow run has from before it was tried again."""
        assert self._flow_run_id is not None
        own = ArtifactFilter(
            key=ArtifactFilterKey(any_=[self._key]), flow_run_id=ArtifactFilterFlowRunId(any_=[self._flow_run_id])
        )
        found = client.read_artifacts(artifact_filter=own, limit=1)
        return found[0].id if found else None

    def close(self) -> None:
        """Shows nothing any more."""
        with harmless(self._log, "progress"):
            self._context.run(self._open.close)


def show_result(run: Run, facts: Mapping[str, Any]) -> None:
    """Puts what came out of a finished run on its page.

    Args:
        run: The run.
        facts: Its provenance.
    """
    log = _log()
    with harmless(log, "the result"):
        picture = None
        with harmless(log, "the picture"):
            picture = picture_uri(run.paths.overlay)
        words = text(f"{facts['objects']:,} {run.label} in {run.name}")
        _put(artifact_key(run.name, run.label, "result"), result_markdown(run, facts, picture), words)


def show_failure(
    run: Run | None,
    slide: Path,
    error: BaseException,
    *,
    output: Path | None = None,
    name: str | None = None,
    label: str = "cells",
) -> None:
    """Puts what failed on the run's page; what was only stopped has none.

    Args:
        run: The run; None where it couldn't even be planned.
        slide: The slide.
        error: What ended it.
        output: Output folder, slide's name and label, where there is no run that knows them.
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
        words = count(error) if isinstance(error, BlockFailures) else text(in_one_line(error, 200))
        _put(artifact_key(name or slide_name(slide), label, "failure"), markdown, words)


def _put(key: str, markdown: str, description: str) -> None:
    """Sends a page to the server, if there is a flow run that it could stand with."""
    flow_run_id = _flow_run_id()
    if flow_run_id is None:
        return
    artifact = ArtifactCreate(key=key, type="markdown", description=description, data=markdown, flow_run_id=flow_run_id)
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}), _client(_MORE_PATIENCE) as client:
        client.create_artifact(artifact)


def _client(patience: float) -> SyncPrefectClient:
    """A client that doesn't wait for the server as long as Prefect's own."""
    return get_client(httpx_settings={"timeout": patience}, sync_client=True)


def _flow_run_id() -> uuid.UUID | None:
    context = FlowRunContext.get()
    return context.flow_run.id if context is not None and context.flow_run is not None else None


def _log() -> Log:
    """The log of the flow run that this is called in."""
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("slidesam")


@contextmanager
def harmless(log: Log, what: str) -> Iterator[None]:
    """Whatever fails inside is only logged."""
    try:
        yield
    except Exception as error:  # noqa: BLE001
        log.warning("%s can't be shown on this page: %s", what, in_one_line(error))
