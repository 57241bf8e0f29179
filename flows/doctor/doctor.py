"""`slidesam doctor`: whether a run would find what it needs, here and where its workers run, and what to do where it wouldn't.

What can be seen from here is seen first (`examine_here`). Then a job of each part of the profile, or a worker where there are no
jobs, takes the way that a run takes: the same job script, scheduler and Prefect API (`examine_there`).
`slidesam.tasks.folder.examine` tells what a worker sees.
"""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.table import Table
from rich.text import Text

from slidesam.flows.cluster.cluster import ClusterProfile, api_host
from slidesam.flows.cluster.jobs import jobs_of
from slidesam.flows.cluster.profile import AttachProfile, LocalProfile, QueueProfile, SlurmJobs, SlurmProfile, Stage
from slidesam.flows.console import err, out
from slidesam.flows.doctor.judge import from_words
from slidesam.flows.doctor.queue import examine_address, examine_queue, parts_of
from slidesam.flows.doctor.visit import visit
from slidesam.tasks.errors import ServerError
from slidesam.tasks.folder import examine
from slidesam.tasks.folder.examine import Expected, Finding
from slidesam.tasks.run.layout import jobs_folder
from slidesam.tasks.settings.sections import Settings

TIMEOUT = 120.0
_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red"), "skipped": ("–", "dim")}
_GIB, _LITTLE_ROOM = 2**30, 20 * 2**30


def doctor(profile: ClusterProfile, settings: Settings, output: Path | None, timeout: float = TIMEOUT) -> int:
    """Examines, and shows what was found.

    Args:
        profile: Where a run would compute.
        settings: What it would compute.
        output: Where it would write to; None = that isn't looked at.
        timeout: Seconds to wait for workers.

    Returns:
        Exit code: 0, 1 if a finding failed, or 130 after Ctrl-C.
    """
    from slidesam.flows.signals import interrupts

    if isinstance(profile, SlurmProfile | QueueProfile):
        # Its import takes Ctrl-C for itself and makes an exit without an error of it; `interrupts` takes it back.
        importlib.import_module("dask_jobqueue")
    try:
        with interrupts():
            here = examine_here(profile, settings, output)
            _show(f"here, on {socket.gethostname()}", here)
            with err.status(f"waiting for workers of {profile.kind}, {timeout:g} s at most"):
                there = examine_there(profile, settings, output, here, timeout)
            _show("where workers run", there)
    except KeyboardInterrupt:
        err.print("\nstopped; no job is left")
        return 130
    failed, warnings = (sum(each.state == state for each in [*here, *there]) for state in ("failed", "warning"))
    if failed:
        out.print(Text(f"{_number(failed, 'check')} failed: a run would fail too", "red"))
    else:
        out.print(Text(f"ready, with {_number(warnings, 'warning')}" if warnings else "ready", "green"))
    return 1 if failed else 0


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _show(heading: str, findings: Sequence[Finding]) -> None:
    out.print(Text(heading, "bold"))
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in findings:
        sign, colour = _SIGNS[each.state]
        table.add_row(Text(sign, colour), Text(each.name), Text(each.what, "dim" if each.state == "skipped" else ""))
        if each.cure:
            table.add_row("", "", Text(f"→ {each.cure}", colour))
    out.print(table, soft_wrap=False)
    out.print()


def examine_here(profile: ClusterProfile, settings: Settings, output: Path | None) -> list[Finding]:
    """What can be seen without starting anything.

    Args:
        profile: Where a run would compute.
        settings: What it would compute.
        output: Where it would write to; None = that isn't looked at.
    """
    found = [_versions(), _segmenter(settings), _folder(output), _dashboard()]
    if not isinstance(profile, SlurmProfile | QueueProfile):
        return [*found, _api(api_host(profile))]
    address = examine_address(profile)
    found.append(address)
    if address.state == "ok":
        found.append(_api(api_host(profile)))
    return [*found, *examine_queue(profile)]


def _versions() -> Finding:
    versions = examine.versions()
    missing = [name for name in examine.PACKAGES if versions[name] is None]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    if missing:
        return Finding("versions", "failed", f"{', '.join(missing)} missing ({listed})", "pip install slidesam")
    return Finding("versions", "ok", listed)


def _segmenter(settings: Settings) -> Finding:
    identity, error = examine.identity_of(settings.segmenter.model_dump_json())
    if identity is None:
        return from_words("segmenter", error, "correct segmenter in the settings")
    return Finding("segmenter", "ok", identity)


def _folder(output: Path | None) -> Finding:
    if output is None:
        return Finding(
            "output folder", "skipped", "not named", "give --output, the folder of a run, to have it checked"
        )
    try:
        with _noted(output):
            free = shutil.disk_usage(output).free
    except OSError as error:
        what = f"{error.filename or output} can't be written to here ({error.strerror})"
        room = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return Finding(
            "output folder", "failed", what, "make room there" if room else "give an --output that you may write to"
        )
    what = f"{output} can be written to, {free / _GIB:,.1f} GiB free"
    if free < _LITTLE_ROOM:
        return Finding(
            "output folder", "warning", what, "make room: a large slide and its intermediate results take more"
        )
    return Finding("output folder", "ok", what)


def _dashboard() -> Finding:
    if find_spec("bokeh") is None:
        return Finding(
            "dashboard", "warning", "bokeh isn't installed: there will be no Dask dashboard",
            'pip install "slidesam[dashboard]", if you want one',
        )  # fmt: skip
    return Finding("dashboard", "ok", "bokeh is here")


def _api(host: str) -> Finding:
    """The configured Prefect API, as a run would use it."""
    from prefect.settings import PREFECT_API_URL

    from slidesam.flows.prefect_api.server import _refuse_loopback

    url = PREFECT_API_URL.value()
    if not url:
        return Finding(
            "Prefect API", "ok", f"none is configured: a run starts a server of its own on {host} while it lasts"
        )
    try:
        _refuse_loopback(url, host)
    except ServerError as error:
        return from_words("Prefect API", str(error), "")
    state, words = examine.ask_api(url, _authorization())
    if state == "refused":
        return Finding(
            "Prefect API", "failed", f"{url} doesn't let us in ({words})",
            "set PREFECT_API_AUTH_STRING to what the server was started with as PREFECT_SERVER_API_AUTH_STRING; for Prefect "
            "Cloud, PREFECT_API_KEY",
        )  # fmt: skip
    if state != "ok":
        return Finding(
            "Prefect API", "failed", f"{url} doesn't answer ({words})",
            f"start it (`prefect server start --host {urlsplit(url).hostname}`), correct PREFECT_API_URL, or unset it to run "
            "with a server of one's own",
        )  # fmt: skip
    return Finding("Prefect API", "ok", f"{url} answers{f', Prefect {words}' if words else ''}")


def _authorization() -> str:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY

    def plain(value: Any) -> str | None:
        return None if value is None else str(getattr(value, "get_secret_value", lambda: value)())

    return examine.authorization_of(plain(PREFECT_API_AUTH_STRING.value()), plain(PREFECT_API_KEY.value()))


def examine_there(
    profile: ClusterProfile,
    settings: Settings,
    output: Path | None,
    here: Sequence[Finding],
    timeout: float = TIMEOUT,
) -> list[Finding]:
    """What workers see: of one small job of each part of the profile, or of those that run already. No job is left.

    Args:
        profile: Where a run would compute.
        settings: What it would compute.
        output: Where it would write to; None = that isn't looked at.
        here: What `examine_here` found; what that rules out isn't tried.
        timeout: Seconds to wait for workers.
    """
    failed = {each.name.partition(":")[0] for each in here if each.state == "failed"}
    if failed & {"scheduler", "container", profile.kind}:
        failed |= {"cpu", "gpu"}
    parts = [part for part in parts_of(profile) if part not in failed]
    found = [Finding(f"{part}: job", "skipped", "not tried: see above") for part in parts_of(profile) if part in failed]
    if not parts:
        return found
    with ExitStack() as ends:
        is_own, api = False, None
        if "Prefect API" not in failed:
            is_own, api, served = _serve(profile, ends)
            found += served
        expected = {part: _expected(profile, settings, part, api, is_own) for part in parts}
        usable = None if "output folder" in failed else output
        if usable is not None:
            for part in parts:
                folder, token = ends.enter_context(_noted(usable))
                expected[part] = replace(expected[part], folder=str(folder), token=token)
        return found + _visit_all(_smallest(profile), expected, usable, timeout)


def _serve(profile: ClusterProfile, ends: ExitStack) -> tuple[bool, str | None, list[Finding]]:
    """The Prefect API of a run; a server of one's own is started, and ends with `ends`."""
    from prefect.settings import PREFECT_API_URL

    from slidesam.flows.prefect_api.server import prefect_api

    is_own, started = not PREFECT_API_URL.value(), time.monotonic()
    try:
        url = ends.enter_context(prefect_api(api_host(profile)))
    except ServerError as error:
        return is_own, None, [from_words("Prefect server", str(error), "see its log")]
    if not is_own:
        return False, url, []
    return (
        True,
        url,
        [Finding("Prefect server", "ok", f"one of slidesam's own started in {time.monotonic() - started:.0f} s")],
    )


def _expected(profile: ClusterProfile, settings: Settings, part: Stage, api: str | None, is_own_api: bool) -> Expected:
    """What a run needs of the workers of a part."""
    segmenter = settings.segmenter.model_dump_json()
    wanted = Expected(part, examine.versions(), api, _authorization(), is_own_api)
    if part == parts_of(profile)[-1]:
        wanted = replace(wanted, segmenter=segmenter, identity=examine.identity_of(segmenter)[0])
    if isinstance(profile, AttachProfile):
        return replace(wanted, part="worker")
    if not isinstance(profile, SlurmProfile | QueueProfile):
        return wanted
    jobs = jobs_of(profile, part)
    return replace(wanted, temporary=profile.local_directory or "", cores=jobs.cores, memory=jobs.memory)


def _smallest(profile: ClusterProfile) -> ClusterProfile:
    """The same with a job, or a worker, of each part."""
    if isinstance(profile, LocalProfile):
        return profile.model_copy(update={"workers": 1})
    if not isinstance(profile, SlurmProfile | QueueProfile):
        return profile
    one = {"minimum_jobs": 0, "maximum_jobs": 1}
    parts: dict[str, Any] = {part: jobs_of(profile, part).model_copy(update=one) for part in parts_of(profile)}
    return profile.model_copy(update=parts)


@contextmanager
def _noted(output: Path) -> Iterator[tuple[Path, str]]:
    """A folder in which a note lies for the other side, and what it says; leaves nothing that wasn't there before.

    Raises:
        OSError: It can't be written.
    """
    folder, token = jobs_folder(output).parent, uuid.uuid4().hex
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        examine.note(str(folder), token, "here").write_text(token)
        yield folder, token
    finally:
        for each in folder.glob(f"doctor-{token}.*"):
            with suppress(OSError):
                each.unlink()
        for each in made:
            with suppress(OSError):
                each.rmdir()


def _visit_all(
    profile: ClusterProfile, expected: Mapping[Stage, Expected], output: Path | None, timeout: float
) -> list[Finding]:
    """Visits a worker of each part; where a job can't even write its log, once more without one to see why."""
    with ExitStack() as ends:
        logs = _scratch(ends) if output is None else jobs_folder(output)
        found = visit(profile, expected, logs, timeout)
    mute = {part: wanted for part, wanted in expected.items() if part in found and found[part].is_mute}
    if mute and isinstance(profile, SlurmProfile):
        found |= {f"{part}, again": each for part, each in visit(_without_logs(profile), mute, None, timeout).items()}
    return [each for name in sorted(found) for each in found[name].findings]


def _scratch(ends: ExitStack) -> Path:
    """A folder for logs where nobody said which: the one at hand is on the nodes too, as a rule."""
    folder = Path.cwd() if os.access(Path.cwd(), os.W_OK) else Path.home()
    return Path(ends.enter_context(tempfile.TemporaryDirectory(prefix=".slidesam-doctor-", dir=folder)))


def _without_logs(profile: SlurmProfile) -> SlurmProfile:
    """The same with jobs that write no log."""
    parts: dict[str, SlurmJobs] = {}
    for part in parts_of(profile):
        jobs = jobs_of(profile, part)
        assert isinstance(jobs, SlurmJobs)
        parts[part] = jobs.model_copy(update={"directives": (*jobs.directives, "--output=/dev/null")})
    return profile.model_copy(update=parts)
