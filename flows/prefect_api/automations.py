"""Registers automations of a Prefect server from a file: `python -m slidesam.flows.prefect_api.automations FILE --notify BLOCK`.

Prefect's own command creates a new automation each time. Here a name stands for one automation, which the file replaces. An
automation that is the same already is left alone, because a replaced one forgets what it waits for.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from pydantic import ValidationError

from slidesam.flows.console import say, say_failed
from slidesam.tasks.errors import ServerError, SettingsError, SlidesamError

WEBHOOK = "slidesam"
_NOTIFIES = "send-notification"


def apply_automations(file: Path, notify: str = "") -> dict[str, str]:
    """Register the automations of a file; those with other names are left alone.

    Args:
        file: YAML with a list `automations`.
        notify: A webhook's URL, or an existing notification block as `type/name`; without it nothing notifies.

    Returns:
        What was done, by name: created, replaced, unchanged, "removed", or "left out".

    Raises:
        SettingsError: The file, or something that it names, can't be used.
        ServerError: The server doesn't answer, or refuses.
    """
    entries = _read(file)
    with _readably(), get_client(sync_client=True) as client:
        block = _block(client, notify) if notify else None
        return {entry["name"]: _apply(client, file, entry, block) for entry in entries}


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{file} can't be read: {error}") from error
    entries = content.get("automations") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "name" in entry for entry in entries):
        raise SettingsError(f"{file}: expected a list `automations`, each with a name")
    names = [entry["name"] for entry in entries]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SettingsError(f"{file}: these names are there twice: {', '.join(sorted(twice))}")
    return entries


def _apply(client: SyncPrefectClient, file: Path, entry: dict[str, Any], block: UUID | None) -> str:
    existing = client.read_automations_by_name(entry["name"])
    if block is None and _notifies(entry):
        for automation in existing:
            client.delete_automation(automation.id)
        return "removed: nobody to notify" if existing else "left out: nobody to notify"
    new_automation = _automation(client, file, entry, block)
    # Someone may have created a second one by hand: both would act.
    for surplus in existing[1:]:
        client.delete_automation(surplus.id)
    if not existing:
        client.create_automation(new_automation)
        return "created"
    new_automation.enabled = existing[0].enabled
    if _is_same(existing[0], new_automation):
        return "unchanged"
    client.update_automation(existing[0].id, new_automation)
    return "replaced"


def _notifies(entry: dict[str, Any]) -> bool:
    actions = entry.get("actions")
    return isinstance(actions, list) and any(isinstance(a, dict) and a.get("type") == _NOTIFIES for a in actions)


def _automation(client: SyncPrefectClient, file: Path, entry: dict[str, Any], block: UUID | None) -> AutomationCore:
    entry = dict(entry)
    names = entry.pop("deployments", None)
    if names is not None and isinstance(entry.get("trigger"), dict):
        entry["trigger"] = _narrowed(entry["trigger"], _deployments(client, file, entry["name"], names))
    if block is not None and _notifies(entry):
        entry["actions"] = [
            {**action, "block_document_id": str(block)} if action.get("type") == _NOTIFIES else action
            for action in entry["actions"]
        ]
    try:
        return AutomationCore.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise SettingsError(f"{file}: automation {entry['name']!r}: {field}: {first['msg']}") from error


def _narrowed(trigger: dict[str, Any], deployments: list[str]) -> dict[str, Any]:
    """Limit a trigger to runs of these deployments. By id, because a heartbeat names its deployment only so."""
    match = {"prefect.resource.id": "prefect.flow-run.*", **trigger.get("match", {})}
    related = {"prefect.resource.role": "deployment", "prefect.resource.id": deployments}
    return {**trigger, "match": match, "match_related": related}


def _deployments(client: SyncPrefectClient, file: Path, automation: str, names: list[str]) -> list[str]:
    deployments = client.read_deployments(deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=names)))
    if missing := set(names) - {deployment.name for deployment in deployments}:
        raise SettingsError(
            f"{file}: automation {automation!r}: the server has no deployment named {', '.join(sorted(missing))}: "
            "deploy first (`prefect deploy --all --prefect-file deployments/prefect.yaml`)"
        )
    return sorted(f"prefect.deployment.{deployment.id}" for deployment in deployments)


def _block(client: SyncPrefectClient, notify: str) -> UUID:
    """Return the id of the block that notifies: an existing one, or a new one for a URL."""
    if urlsplit(notify).scheme in ("http", "https"):
        return _webhook(notify)
    kind, _, name = notify.partition("/")
    try:
        return client.read_block_document_by_name(name, kind).id
    except ObjectNotFound as error:
        raise SettingsError(
            f"{notify!r} is neither a URL nor a notification block of this server, as type/name: `prefect block ls` lists them"
        ) from error


def _webhook(url: str) -> UUID:
    """Make a block that posts JSON. Slack, Mattermost and Teams show `text`; other services read `subject` and `body`."""
    data = {"text": "{{subject}}\n{{body}}", "subject": "{{subject}}", "body": "{{body}}"}
    block = CustomWebhookNotificationBlock(name="slidesam", url=url, json_data=data)
    saved = block.save(WEBHOOK, overwrite=True)
    if not isinstance(saved, UUID):
        raise ServerError(f"the block for {url} could not be saved")
    return saved


def _is_same(existing: Automation, new: AutomationCore) -> bool:
    return _plain(AutomationCore.model_validate(existing.model_dump())) == _plain(new)


def _plain(automation: AutomationCore) -> dict[str, Any]:
    """Return its content without what a server adds, and with unordered lists sorted."""
    content = automation.model_dump(mode="json")
    trigger = content["trigger"]
    for key in ("after", "expect", "for_each"):
        if key in trigger:
            trigger[key] = sorted(trigger[key])
    trigger.pop("id", None)
    for label in ("match", "match_related"):
        if isinstance(trigger.get(label), dict):
            trigger[label] = {
                key: [value] if isinstance(value, str) else value for key, value in trigger[label].items()
            }
    return content


@contextmanager
def _readably() -> Iterator[None]:
    """Turn errors of Prefect's client into readable ones.

    Raises:
        ServerError: It doesn't answer, or refuses.
    """
    import httpx
    from prefect.settings import PREFECT_API_URL

    try:
        yield
    except PrefectHTTPStatusError as error:
        code = error.response.status_code
        reason = "it wants PREFECT_API_AUTH_STRING" if code == 401 else f"it answered {code}: {error.response.text}"
        raise ServerError(f"the Prefect API at {PREFECT_API_URL.value()} refused: {reason}") from error
    except httpx.HTTPError as error:
        raise ServerError(f"the Prefect API at {PREFECT_API_URL.value()} doesn't answer: {error}") from error


def apply_from_command_line(arguments: Sequence[str] | None = None) -> int:
    """Register a file's automations and print what was done.

    Args:
        arguments: Those of the command line.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m slidesam.flows.prefect_api.automations", description=apply_automations.__doc__
    )
    parser.add_argument("file", type=Path, help="YAML with a list `automations`")
    parser.add_argument(
        "--notify",
        default=os.environ.get("SLIDESAM_NOTIFY", ""),
        help="a webhook's URL, or a notification block as type/name; by default SLIDESAM_NOTIFY's",
    )
    options = parser.parse_args(arguments)
    try:
        _need_server()
        for name, outcome in apply_automations(options.file, options.notify).items():
            say("automation", f"{name}: {outcome}")
    except SlidesamError as error:
        say_failed(error)
        return 1
    return 0


def _need_server() -> None:
    """Require the address of a server: without one Prefect's client would start its own, and give it the automations.

    Raises:
        SettingsError: There is none.
    """
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise SettingsError("which server? Set PREFECT_API_URL")


if __name__ == "__main__":
    raise SystemExit(apply_from_command_line())
