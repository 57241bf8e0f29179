"""Watches a folder in which slides arrive, and starts a run for each complete slide without a result."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from slidesam.flows.cluster.find_profile import ProfileChoice
from slidesam.flows.prefect_api.deployed import (
    SLIDE,
    deployment,
    read_cluster_name,
    refuse_foreign,
    refuse_relative,
    start_slide,
)
from slidesam.flows.run_log import run_log
from slidesam.flows.slide.segment_slide import run_name
from slidesam.tasks.errors import SettingsError, in_one_line
from slidesam.tasks.folder.inbox import Arrival, has_result, look, record_started
from slidesam.tasks.plan import prepare_output
from slidesam.tasks.run.layout import RunPaths
from slidesam.tasks.run.lock import LockedError, holder, locked
from slidesam.tasks.run.service_folders import inbox_lock, inbox_memory
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.settings.types import Duration, PastedPath, seconds_of
from slidesam.tasks.slides.facts import slide_name
from slidesam.tasks.slides.listing import Listed

# What a form shows at first; Prefect makes settings and a profile of it.
_DEFAULTS: Any = {}
_LOCAL: Any = "local"


def _run_name() -> str:
    return f"look into {flow_run.parameters['folder']}"


@flow(name="inbox", flow_run_name=_run_name, persist_result=False)
def inbox(
    folder: PastedPath,
    output: PastedPath,
    quiet: Duration = "2m",
    settings: Settings = _DEFAULTS,
    cluster: ProfileChoice = _LOCAL,
) -> State[list[str]]:
    """Start a run of `slide` for each slide of a folder that is complete and has no finished result.

    A slide is complete once it hasn't changed for a while. It is started once, and again if its file changes later.

    Args:
        folder: Where slides arrive: files and OME-Zarr folders directly in it, not in its sub-folders.
        output: Folder for the results.
        quiet: How long a slide must not have changed, such as 90s, 2m or 1h; until then it is only remembered.
        settings: What to compute.
        cluster: Where to compute it: the name of a cluster profile, or the file of one that the site keeps.

    Returns:
        A completed state that says what was found, with the names of the slides whose runs were started.

    Raises:
        SettingsError: The folder doesn't exist, or some of its slides can't be started; all others are started.
        OutputError: The output folder can't be written.
        ServerError: The deployment `slide` isn't registered.
    """
    refuse_foreign(cluster)
    refuse_relative(settings, folder=folder, output=output)
    if not folder.is_dir():
        raise SettingsError(
            f"inbox {folder} is not a folder: create it, or name another one in the deployment's parameters"
        )
    prepare_output(output)
    memory = inbox_memory(output, folder)
    with ExitStack() as stack:
        # Two flow runs at once would overwrite each other's memory.
        try:
            stack.enter_context(locked(inbox_lock(memory), f'flow run "{flow_run.name}"', target=f"inbox {folder}"))
        except LockedError as error:
            return Completed(message=f"another look is at work: {in_one_line(error)}", data=[])
        complete, growing = look(folder, memory, seconds_of(quiet), time.time())
        started_slides, failed = _start_wanted(complete, output, settings, memory)
    n_slides = len(complete) + len(growing)
    finding = (
        f"{n_slides} slide{'' if n_slides == 1 else 's'}, {len(growing)} of them still arriving; started now: "
        f"{in_one_line(', '.join(started_slides)) or 'none'}"
    )
    run_log().info("%s: %s", folder, finding)
    if failed:
        raise SettingsError(f"{len(failed)} slides can't be started: {'; '.join(failed[:5])}")
    return Completed(message=finding, data=started_slides)


def _start_wanted(
    arrived: Sequence[Arrival], output: Path, settings: Settings, memory: Path
) -> tuple[list[str], list[str]]:
    """Start the slides that are wanted.

    Returns:
        Names of those that were started, and what was wrong with others.
    """
    started_slides: list[str] = []
    failed: list[str] = []
    for slide in arrived:
        try:
            if _is_wanted(slide, arrived, output, settings):
                _start(slide, output, settings)
                record_started(memory, slide)
                started_slides.append(slide.path.name)
        except Exception as error:  # noqa: BLE001 (one bad slide doesn't stop the others)
            failed.append(f"{slide.path.name}: {in_one_line(error)}")
    return started_slides, failed


def _is_wanted(slide: Arrival, arrived: Sequence[Arrival], output: Path, settings: Settings) -> bool:
    """Tell whether to start a slide now: once, if it has no result and no run computes it.

    Raises:
        SettingsError: Its results would have the same name as another slide's.
    """
    if slide.is_started or has_result(slide.path, output, settings):
        return False
    name, label = slide_name(slide.path), settings.output.label
    same_name = [arrival.path.name for arrival in arrived if slide_name(arrival.path) == name]
    if len(same_name) > 1:
        raise SettingsError(f"{' and '.join(same_name)} would write the same results: rename all but one")
    # If a run computes the file's earlier content, the next flow run starts the new one.
    return holder(RunPaths(output, name, label).lock) is None


def _start(slide: Arrival, output: Path, settings: Settings) -> None:
    """Start a slide's run; if the memory was lost, the key finds the run that this content of the file had."""
    request = f"inbox:{slide.path.resolve()}:{slide.version}:{output.resolve()}:{settings.output.label}"
    with get_client(sync_client=True) as client:
        start_slide(
            client,
            deployment(client, SLIDE).id,
            Listed(slide.path, settings),
            output,
            read_cluster_name(client, flow_run.id),
            name=run_name(slide.path, settings),
            key=hashlib.sha256(request.encode()).hexdigest(),
            tags=["inbox"],
        )
