"""`slidesam doctor`: checks that a run would have what it needs, here and where its workers run, and says what to do if not.

First come checks on this machine (`examine_here`). Then a job of each worker pool of the profile, or a worker where there are no
jobs, takes the way that a run takes: the same job script, scheduler and Prefect API (`examine_there`).
`slidesam.tasks.folder.examine` reports what a worker sees.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.table import Table
from rich.text import Text

from slidesam.flows.cluster.cluster import api_host
from slidesam.flows.cluster.jobs import jobs_of
from slidesam.flows.cluster.profile import (
    AttachProfile,
    ClusterProfile,
    JobProfile,
    Jobs,
    LocalProfile,
    QueueProfile,
    SlurmProfile,
    Stage,
)
from slidesam.flows.console import err, out
from slidesam.flows.doctor.finding import Finding, check, failure
from slidesam.flows.doctor.queue import examine_address, examine_queue, pools_of
from slidesam.flows.doctor.trials import TRIAL_SECONDS, add_trials
from slidesam.flows.doctor.visit import NO_LOG, visit
from slidesam.flows.signals import interrupts
from slidesam.tasks.errors import ServerError
from slidesam.tasks.folder import examine
from slidesam.tasks.folder.examine import Expected
from slidesam.tasks.run.layout import jobs_folder
from slidesam.tasks.settings.sections import Settings

TIMEOUT = 120.0
_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red"), "skipped": ("–", "dim")}
_GIB, _LITTLE_ROOM = 2**30, 20 * 2**30


def doctor(
    profile: ClusterProfile,
    settings: Settings,
    output: Path | None,
    timeout: float = TIMEOUT,
    allowed: tuple[str, ...] = (),
    *,
    try_model: bool = False,
) -> int:
    """Run all checks and print their findings.

    Args:
        profile: Where a run would compute.
        settings: What it would compute.
        output: Where it would write to; None = that isn't checked.
        timeout: Seconds to wait for workers.
        allowed: Code that the person allows the segmenter to load.
        try_model: Whether workers segment a small tile.

    Returns:
        Exit code: 0, 1 if a check failed, or 130 after Ctrl-C.
    """
    if isinstance(profile, SlurmProfile | QueueProfile):
        # Its import takes Ctrl-C for itself and makes an exit without an error of it; `interrupts` takes it back.
        importlib.import_module("dask_jobqueue")
    try:
        with interrupts():
            local_findings = examine_here(profile, settings, output, allowed)
            _show(f"here, on {socket.gethostname()}", local_findings)
            with err.status(f"waiting for workers of {profile.kind}, {timeout:g} s at most"):
                options = (output, local_findings, timeout, allowed)
                worker_findings = examine_there(profile, settings, *options, try_model=try_model)
            _show("where workers run", worker_findings)
    except KeyboardInterrupt:
        err.print("\nstopped; no job is left")
        return 130
    failed, warnings = (
        sum(finding.state == state for finding in [*local_findings, *worker_findings])
        for state in ("failed", "warning")
    )
    if failed:
        out.print(Text(f"{_count(failed, 'check')} failed: a run would fail too", "red"))
    else:
        out.print(Text(f"ready, with {_count(warnings, 'warning')}" if warnings else "ready", "green"))
    return 1 if failed else 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _show(heading: str, findings: Sequence[Finding]) -> None:
    out.print(Text(heading, "bold"))
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        sign, colour = _SIGNS[finding.state]
        text = Text(finding.what, "dim" if finding.state == "skipped" else "")
        table.add_row(Text(sign, colour), Text(finding.name), text)
        if finding.cure:
            table.add_row("", "", Text(f"→ {finding.cure}", colour))
    out.print(table, soft_wrap=False)
    out.print()


def examine_here(
    profile: ClusterProfile, settings: Settings, output: Path | None, allowed: tuple[str, ...] = ()
) -> list[Finding]:
    """Check what can be seen without starting anything.

    Args:
        profile: Where a run would compute.
        settings: What it would compute.
        output: Where it would write to; None = that isn't checked.
        allowed: Code that the person allows the segmenter to load.
    """
    findings = [
        _check_versions(),
        _check_segmenter(settings, allowed),
        _check_folder(output),
        _check_dashboard(profile),
    ]
    if not isinstance(profile, SlurmProfile | QueueProfile):
        return [*findings, _check_api(api_host(profile))]
    address = examine_address(profile)
    findings.append(address)
    if address.state == "ok":
        findings.append(_check_api(api_host(profile)))
    return [*findings, *examine_queue(profile)]


def _check_versions() -> Finding:
    versions = examine.versions()
    missing = ", ".join(name for name in examine.PACKAGES if versions[name] is None)
    version_list = ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None)
    return check(
        "versions", (missing, "failed", f"{missing} missing ({version_list})", "pip install slidesam"), ok=version_list
    )


def _check_segmenter(settings: Settings, allowed: tuple[str, ...]) -> Finding:
    identity, problem, cure = examine.identity_of(settings.segmenter.model_dump_json(), allowed)
    otherwise = "correct segmenter in the settings"
    return check("segmenter", (identity is None, "failed", problem, cure or otherwise), ok=str(identity))


def _check_folder(output: Path | None) -> Finding:
    name = "output folder"
    if output is None:
        return Finding(name, "skipped", "not named", "give --output, the folder of a run, to have it checked")
    try:
        with _leave_note(output):
            free = shutil.disk_usage(output).free
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        message = f"{error.filename or output} can't be written to here ({error.strerror})"
        return Finding(
            name, "failed", message, "make room there" if is_full else "give an --output that you may write to"
        )
    message = f"{output} can be written to, {free / _GIB:,.1f} GiB free"
    cure = "make room: a large slide and its intermediate results take more"
    return check(name, (free < _LITTLE_ROOM, "warning", message, cure), ok=message)


def _check_dashboard(profile: ClusterProfile) -> Finding:
    if not getattr(profile, "dashboard", False):
        return Finding("dashboard", "skipped", "not asked for", "give --cluster-set dashboard=true, if you want one")
    message, cure = "bokeh isn't installed: there will be no Dask dashboard", 'pip install "slidesam[dashboard]"'
    return check("dashboard", (find_spec("bokeh") is None, "warning", message, cure), ok="bokeh is here")


def _check_api(host: str) -> Finding:
    """Check the configured Prefect API as a run would use it."""
    from prefect.settings import PREFECT_API_URL

    from slidesam.flows.prefect_api.server import refuse_loopback

    name, url = "Prefect API", PREFECT_API_URL.value()
    if not url:
        return Finding(name, "ok", f"none is configured: a run starts a server of its own on {host} while it lasts")
    try:
        refuse_loopback(url, host)
    except ServerError as error:
        return failure(name, error, "")
    state, detail = examine.ask_api(url, _authorization())
    return check(
        name,
        (
            state == "refused", "failed", f"{url} doesn't let us in ({detail})",
            "set PREFECT_API_AUTH_STRING to what the server was started with as PREFECT_SERVER_API_AUTH_STRING; for Prefect "
            "Cloud, PREFECT_API_KEY",
        ),
        (
            state != "ok", "failed", f"{url} doesn't answer ({detail})",
            f"start it (`prefect server start --host {urlsplit(url).hostname}`), correct PREFECT_API_URL, or unset it to run "
            "with a server of its own",
        ),
        ok=f"{url} answers{f', Prefect {detail}' if detail else ''}",
    )  # fmt: skip


def _authorization() -> str:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY

    def plain(value: Any) -> str | None:
        return None if value is None else str(getattr(value, "get_secret_value", lambda: value)())

    return examine.authorization_of(plain(PREFECT_API_AUTH_STRING.value()), plain(PREFECT_API_KEY.value()))


def examine_there(
    profile: ClusterProfile,
    settings: Settings,
    output: Path | None,
    local_findings: Sequence[Finding],
    timeout: float = TIMEOUT,
    allowed: tuple[str, ...] = (),
    *,
    try_model: bool = False,
) -> list[Finding]:
    """Ask workers: of one small job of each worker pool of the profile, or those that run already. No job is left.

    Args:
        profile: Where a run would compute.
        settings: What it would compute.
        output: Where it would write to; None = that isn't checked.
        local_findings: What `examine_here` returned; what that rules out isn't tried.
        timeout: Seconds to wait for workers.
        allowed: Code that the person allows the segmenter to load.
        try_model: Whether they segment a small tile.
    """
    from prefect.settings import PREFECT_API_URL

    failed = {finding.name.partition(":")[0] for finding in local_findings if finding.state == "failed"}
    pools = pools_of(profile)
    usable = [] if failed & {"scheduler", "container", profile.kind} else [pool for pool in pools if pool not in failed]
    findings = [Finding(f"{pool}: job", "skipped", "not tried: see above") for pool in pools if pool not in usable]
    if not usable:
        return findings
    with ExitStack() as ends:
        api, is_own = None, not PREFECT_API_URL.value()
        if "Prefect API" not in failed:
            api, served = _serve(profile, ends)
            findings += [served] if is_own or api is None else []
        expected = {pool: _expected(profile, pool, api, is_own) for pool in usable}
        # The last pool is the one that segments.
        segmenting, segmenter = pools[-1], settings.segmenter.model_dump_json()
        if segmenting in expected:
            identity = examine.identity_of(segmenter, allowed)[0]
            needs = replace(expected[segmenting], segmenter=segmenter, identity=identity, allowed=allowed)
            expected[segmenting] = needs
        if try_model:
            expected = {pool: add_trials(needs) for pool, needs in expected.items()}
        folder = None if "output folder" in failed else output
        if folder is not None:
            for pool in usable:
                notes, token = ends.enter_context(_leave_note(folder))
                expected[pool] = replace(expected[pool], folder=str(notes), token=token)
        return findings + _visit_all(_smallest(profile), expected, folder, timeout + TRIAL_SECONDS * try_model)


def _serve(profile: ClusterProfile, ends: ExitStack) -> tuple[str | None, Finding]:
    """Return the URL of a run's Prefect API; if none is configured, start a server, which ends with `ends`."""
    from slidesam.flows.prefect_api.server import prefect_api

    name, start_time = "Prefect server", time.monotonic()
    try:
        url = ends.enter_context(prefect_api(api_host(profile)))
    except ServerError as error:
        return None, failure(name, error, "see its log")
    return url, Finding(name, "ok", f"one of slidesam's own started in {time.monotonic() - start_time:.0f} s")


def _expected(profile: ClusterProfile, pool: Stage, api: str | None, is_own_api: bool) -> Expected:
    """Return what a run needs of the workers of a pool."""
    needs = Expected(pool, examine.versions(), api, _authorization(), is_own_api)
    if isinstance(profile, AttachProfile):
        return replace(needs, pool="worker")
    if not isinstance(profile, SlurmProfile | QueueProfile):
        return needs
    jobs = jobs_of(profile, pool)
    return replace(needs, temporary=profile.local_directory or "", cores=jobs.cores, memory=jobs.memory)


def _smallest(profile: ClusterProfile) -> ClusterProfile:
    """Return the same profile with one job, or one worker, of each pool."""
    if isinstance(profile, LocalProfile):
        return profile.model_copy(update={"workers": 1})
    if not isinstance(profile, SlurmProfile | QueueProfile):
        return profile
    return _change_jobs(profile, lambda _: {"minimum_jobs": 0, "maximum_jobs": 1})


def _change_jobs(profile: JobProfile, changes: Callable[[Jobs], dict[str, object]]) -> JobProfile:
    """Return the same profile with other jobs."""
    jobs = {pool: jobs_of(profile, pool) for pool in pools_of(profile)}
    return profile.model_copy(update={pool: of.model_copy(update=changes(of)) for pool, of in jobs.items()})


@contextmanager
def _leave_note(output: Path) -> Iterator[tuple[Path, str]]:
    """Leave a note for the other side; yield its folder and its text. Afterwards nothing is there that wasn't before.

    Raises:
        OSError: It can't be written.
    """
    folder, token = jobs_folder(output).parent, uuid.uuid4().hex
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        examine.note(str(folder), token, "here").write_text(token)
        yield folder, token
    finally:
        with suppress(OSError):
            for note in folder.glob(f"doctor-{token}.*"):
                note.unlink()
            for path in new_folders:
                path.rmdir()


def _visit_all(
    profile: ClusterProfile, expected: Mapping[Stage, Expected], output: Path | None, timeout: float
) -> list[Finding]:
    """Ask a worker of each pool; if a job can't even write its log, once more without one to see why."""
    with ExitStack() as ends:
        logs = _scratch(ends) if output is None else jobs_folder(output)
        results: dict[str, list[Finding]] = visit(profile, expected, logs, timeout)
    mute = {
        pool: needs for pool, needs in expected.items() if any(f.name.endswith(NO_LOG) for f in results.get(pool, ()))
    }
    if mute and isinstance(profile, SlurmProfile):
        no_log = _change_jobs(profile, lambda jobs: {"directives": (*jobs.directives, "--output=/dev/null")})
        second_results = visit(no_log, mute, None, timeout)
        results |= {f"{pool}, again": findings for pool, findings in second_results.items()}
    return [finding for name in sorted(results) for finding in results[name]]


def _scratch(ends: ExitStack) -> Path:
    """Make a folder for logs where no output folder is named: usually the nodes have the current folder too."""
    folder = Path.cwd() if os.access(Path.cwd(), os.W_OK) else Path.home()
    return Path(ends.enter_context(tempfile.TemporaryDirectory(prefix=".slidesam-doctor-", dir=folder)))
