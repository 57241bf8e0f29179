"""Sets up what `prefect deploy` doesn't, and keeps what it would throw away.

    site_setup.py before FILE SLIDES_AT_ONCE    makes the work pool, and notes the deployments as they are
    site_setup.py after FILE                    puts back what was set in the UI, and says what changed

Slides wait in a separate queue with a limit. Cohorts, the inbox and retries run in `default` without a limit: a cohort waits for
its slides, and would block them if it counted among them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.workers.process import ProcessWorker

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.settings.parse import make_settings, read_site_settings

POOL, QUEUE = "slidesam", "slides"
# Whose forms start with the site's settings.
_WITH_SETTINGS = ("slide", "cohort", "inbox")


def make_pool(client: SyncPrefectClient, slides_at_once: int) -> None:
    """Make the pool and its queue with this limit, or set the limit."""
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process", base_job_template=template))
    try:
        queue = client.create_work_queue(QUEUE, work_pool_name=POOL, concurrency_limit=slides_at_once)
    except ObjectAlreadyExists:
        queue = client.read_work_queue_by_name(QUEUE, work_pool_name=POOL)
    if queue.concurrency_limit != slides_at_once:
        client.update_work_queue(queue.id, concurrency_limit=slides_at_once)


def note_deployments(client: SyncPrefectClient, file: Path) -> None:
    """Note parameters and pauses as they are, beside the parameters that the last call of `keep_choices` registered."""
    noted = {
        deployment.name: {
            "parameters": deployment.parameters,
            "paused": deployment.paused,
            "off": bool(deployment.schedules) and not any(schedule.active for schedule in deployment.schedules),
        }
        for deployment in _list_deployments(client)
    }
    notes = _read(file)
    # What a call that failed in between found is what somebody chose.
    found = noted | notes.get("found", {})
    file.write_text(json.dumps({"registered": notes.get("registered", {}), "found": found}))


def keep_choices(client: SyncPrefectClient, file: Path) -> None:
    """Put back the parameters and pauses that somebody set in the UI, add the site's settings, and print what changed."""
    notes, site_settings = _read(file), _read_site_settings()
    registered: dict[str, Any] = {}
    for deployment in _list_deployments(client):
        ours = dict(deployment.parameters or {})
        if deployment.name in _WITH_SETTINGS and site_settings:
            ours["settings"] = site_settings
        registered[deployment.name] = ours
        found = notes.get("found", {}).get(deployment.name)
        chosen = ours | _find_choices(found, notes.get("registered", {}).get(deployment.name), ours)
        client.update_deployment(
            deployment.id, DeploymentUpdate(parameters=chosen, paused=bool(found and found["paused"]))
        )
        _keep_pauses(client, deployment, found)
        for change in _word_changes(found, ours, chosen):
            print(f"prefect-server: deployment {deployment.name}: {change}", flush=True)
    file.write_text(json.dumps({"registered": registered, "found": {}}))


def _find_choices(
    found: dict[str, Any] | None, registered: dict[str, Any] | None, ours: dict[str, Any]
) -> dict[str, Any]:
    """Return the parameters that aren't as they were registered: somebody set them."""
    if found is None:
        return {}
    # An earlier version noted nothing: then what the site's files name counts as theirs.
    known = {name: found["parameters"].get(name) for name in ours} if registered is None else registered
    return {name: value for name, value in found["parameters"].items() if name not in known or known[name] != value}


def _keep_pauses(client: SyncPrefectClient, deployment: DeploymentResponse, found: dict[str, Any] | None) -> None:
    """Switch schedules off that were, and the inbox's where no folder is set."""
    is_off = found is not None and found["off"]
    if deployment.name == "inbox":
        # Without a folder it was off by itself.
        had_folder = found is not None and bool(found["parameters"].get("folder"))
        is_off = not os.environ.get("SLIDESAM_INBOX") or (is_off and had_folder)
    for schedule in deployment.schedules if is_off else ():
        client.update_deployment_schedule(deployment.id, schedule.id, active=False)


def _word_changes(found: dict[str, Any] | None, ours: dict[str, Any], chosen: dict[str, Any]) -> list[str]:
    if found is None:
        return []
    before, words = found["parameters"], []
    for name in sorted({*before, *chosen}):
        if before.get(name) != chosen.get(name):
            words.append(f"{name} is {_shorten(chosen.get(name))} now; it was {_shorten(before.get(name))}")
        elif name in chosen and chosen[name] != ours.get(name):
            words.append(f"{name} stays {_shorten(chosen[name])}, as it was set in the UI")
    return words


def _shorten(value: object) -> str:
    text = "not set" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read_site_settings() -> dict[str, Any]:
    """Read the settings that all forms begin with, and check them."""
    values = read_site_settings()
    make_settings(values)
    return values


def _list_deployments(client: SyncPrefectClient) -> list[DeploymentResponse]:
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=["slidesam"]))
    return client.read_deployments(deployment_filter=ours)


def _read(file: Path) -> dict[str, Any]:
    try:
        notes = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


if __name__ == "__main__":
    command, notes_file = sys.argv[1], Path(sys.argv[2])
    try:
        with get_client(sync_client=True) as server:
            if command == "before":
                _read_site_settings()
                make_pool(server, int(sys.argv[3]))
                note_deployments(server, notes_file)
            else:
                keep_choices(server, notes_file)
    except SettingsError as error:
        sys.exit(f"prefect-server: SLIDESAM_SETTINGS: {error}")
