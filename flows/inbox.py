"""A folder in which slides arrive: on a schedule, a run for each that is whole and has no result."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from slidesam.flows.deployed import SLIDE, deployment, named_cluster, start_slide
from slidesam.flows.profile import ProfileChoice
from slidesam.flows.segment_slide import run_name
from slidesam.tasks.config import Duration, Settings, seconds_of
from slidesam.tasks.errors import SettingsError
from slidesam.tasks.inbox import Arrival, has_result, look, note_started
from slidesam.tasks.lock import locked
from slidesam.tasks.plan import check_output
from slidesam.tasks.slide_list import Listed

# As a form begins; Prefect makes settings of it.
_DEFAULTS: Any = {}
_LOCAL: Any = "local"


def _run_name() -> str:
    return f"look into {flow_run.parameters['folder']}"


@flow(name="inbox", flow_run_name=_run_name, persist_result=False)
def inbox(
    folder: Path, output: Path, quiet: Duration = "2m", settings: Settings = _DEFAULTS, cluster: ProfileChoice = _LOCAL
) -> list[str]:
    """Looks into a folder, and starts a run of `slide` for each slide that is complete and has no finished result.

    A slide is complete once it hasn't changed for a while. It is started once; if its file changes later, once more.

    Args:
        folder: Where slides arrive: files and OME-Zarr folders that lie in it, not deeper.
        output: Folder for the results.
        quiet: How long a slide must not have changed, such as 90s, 2m or 1h; looks before that only take note of it.
        settings: What to compute.
        cluster: Where to compute it: the name of a cluster profile, or its file.

    Returns:
        Names of the slides whose runs were started now.

    Raises:
        SettingsError: There is no such folder.
        OutputError: The output folder can't be written.
        ServerError: The deployment `slide` isn't registered.
    """
    log = get_run_logger()
    if not folder.is_dir():
        raise SettingsError(f"inbox {folder} is no folder: make it, or name another in the deployment's parameters")
    check_output(output)
    work = output.resolve() / ".slidesam" / ".inbox"
    memory = work / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}.json"
    # Two looks at once would each forget what the other saw.
    with locked(memory.with_suffix(".lock.json"), f'flow run "{flow_run.name}"', what=f"inbox {folder}"):
        whole, growing = look(folder, memory, seconds_of(quiet), time.time())
        new = [slide for slide in whole if not slide.is_started and not has_result(slide.path, output, settings)]
        for slide in new:
            _start(slide, output, settings)
            note_started(memory, slide)
    started = [slide.path.name for slide in new]
    log.info(
        "%s: %d slides, %d still arriving, %d without a result, %d started now: %s",
        folder, len(whole) + len(growing), len(growing), len(new), len(started), ", ".join(started) or "none",
    )  # fmt: skip
    return started


def _start(slide: Arrival, output: Path, settings: Settings) -> None:
    """Starts a slide's run; where the memory of it was lost, the key finds the run that this content of the file had."""
    what = f"inbox:{slide.path.resolve()}:{slide.version}:{output.resolve()}:{settings.output.label}"
    with get_client(sync_client=True) as client:
        start_slide(
            client,
            deployment(client, SLIDE).id,
            Listed(slide.path, settings),
            output,
            named_cluster(client, flow_run.id),
            name=run_name(slide.path, settings),
            key=hashlib.sha256(what.encode()).hexdigest(),
            tags=["inbox"],
        )
