"""Runs slides from the command line, one after the other on one cluster, with bars and Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from rich.text import Text

from slidesam.flows.cluster.cluster import Cluster, ClusterProfile, api_host, open_cluster
from slidesam.flows.cluster.find_profile import make_profile
from slidesam.flows.cluster.known_profiles import refuse_unknown
from slidesam.flows.console import err, out, say, say_failed
from slidesam.flows.prefect_api.server import is_api_configured, prefect_api
from slidesam.flows.signals import Stops, interrupts
from slidesam.tasks.errors import CohortFailures, SegmenterError, SettingsError
from slidesam.tasks.run.layout import EXPORTS, RunPaths, jobs_folder
from slidesam.tasks.run.records import Provenance
from slidesam.tasks.run.status import UNREADABLE, RunState, find_refusal, list_unfinished
from slidesam.tasks.segmenters.allowed import permit
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.listing import Listed, list_slides


def run_or_stop(
    slides: Sequence[str], output: Path, settings: Settings, profile: ClusterProfile, allowed: tuple[str, ...] = ()
) -> int:
    """Call `run_slides`; return 130 after Ctrl-C or a signal to end."""
    return _call_until_stopped(lambda: run_slides(slides, output, settings, profile, allowed))


def retry_or_stop(output: Path, profile: ClusterProfile | None, allowed: tuple[str, ...] = ()) -> int:
    """Call `retry_slides`; return 130 after Ctrl-C or a signal to end."""
    return _call_until_stopped(lambda: retry_slides(output, profile, allowed))


def _call_until_stopped(run: Callable[[], int]) -> int:
    try:
        return run()
    except KeyboardInterrupt:
        err.print("\nstopped: run the same command again to resume")
        return 130


def run_slides(
    slides: Sequence[str], output: Path, settings: Settings, profile: ClusterProfile, allowed: tuple[str, ...] = ()
) -> int:
    """Segment slides one after the other on one cluster; one bad slide doesn't stop the rest.

    Args:
        slides: Files, folders, patterns or manifests.
        output: Folder for the results.
        settings: What to compute.
        profile: Where to compute it.
        allowed: Code that the person allows segmenters to load.

    Returns:
        Exit code: 0, or 1 if a slide failed.
    """
    listed_slides = list_slides(slides, settings)
    logs = jobs_folder(output)
    with interrupts() as stops, prefect_api(api_host(profile), _show_pages), open_cluster(profile, logs) as cluster:
        runner = _SlideRunner(output, cluster, stops, allowed)
        if len(listed_slides) == 1:
            runner.run_and_continue(listed_slides[0])
        else:
            from slidesam.flows.many.cohort import make_cohort_flow

            with suppress(CohortFailures):
                make_cohort_flow(runner.run)(list(slides), output, settings)
            out.print(f"{len(listed_slides) - runner.n_failed} of {len(listed_slides)} slides finished")
    return 1 if runner.n_failed else 0


def retry_slides(output: Path, profile: ClusterProfile | None, allowed: tuple[str, ...] = ()) -> int:
    """Run the slides of an output folder again that failed, were stopped or were killed, with their settings.

    Runs of a deployment are put back in its queue instead, if the server knows them: the deployment's worker runs them, and
    their rows turn green.

    What the folder says of code counts for nothing: whoever wrote to it could run anything as the person who retries.

    Args:
        output: The output folder.
        profile: Where to compute; None = where each slide was computed, if that profile is known here.
        allowed: Code that the person allows segmenters to load.

    Returns:
        Exit code: 0, or 1 if a slide failed again or can't be run again.
    """
    runs = list_unfinished(output)
    readable = [run for run in runs if not _is_refused(run)]
    waiting = _put_back_deployed(readable, output)
    retried = [run for run in waiting if not _is_forbidden(run, profile, allowed)]
    n_failed = len(runs) - len(readable) + len(waiting) - len(retried)
    with interrupts() as stops:
        for group_profile, group in groupby(
            retried, lambda run: profile or make_profile(run.state.cluster or {"kind": "local"})
        ):
            with (
                prefect_api(api_host(group_profile), _show_pages),
                open_cluster(group_profile, jobs_folder(output)) as cluster,
            ):
                runner = _SlideRunner(output, cluster, stops, allowed)
                for run in group:
                    if not _put_back(run, output) and run.state.slide_path is not None:
                        runner.run_and_continue(Listed(run.state.slide_path, make_settings(run.state.settings)))
                n_failed += runner.n_failed
    if not runs:
        out.print(Text(f"{output}: no slide failed"))
    return 1 if n_failed else 0


def _show_pages(message: str) -> None:
    """Print where the pages of the run are."""
    err.print("Prefect UI:", Text(message))


def _is_refused(run: RunState) -> bool:
    """Tell whether a slide can't be run again whoever allows its code, and print the reason."""
    state = run.state
    reason = find_refusal(state, state.slide_path or Path())
    if reason is not None:
        reason = f"not tried again, since its file hasn't changed: {reason}"
    elif state.status == UNREADABLE:
        reason = state.error
    elif state.settings is None or state.cluster is None:
        reason = "a version of slidesam ran it that didn't record its settings: use `slidesam segment`"
    else:
        try:
            make_settings(state.settings)
            make_profile(state.cluster)
        except SettingsError as error:
            reason = f"its settings belong to another version of slidesam, use `slidesam segment`: {error}"
    if reason is not None:
        say("[yellow]note:[/]", f"{run.slide}: {reason}")
    return reason is not None


def _is_forbidden(run: RunState, profile: ClusterProfile | None, allowed: tuple[str, ...]) -> bool:
    """Tell whether a run's record needs code that nobody here allows, and print which."""
    try:
        permit(make_settings(run.state.settings).segmenter, allowed)
        if profile is None:
            refuse_unknown(make_profile(run.state.cluster or {}), "it was run with")
    except (SegmenterError, SettingsError) as error:
        say("[yellow]note:[/]", f"{run.slide}: {error}")
        return True
    return False


def _put_back_deployed(runs: Sequence[RunState], output: Path) -> list[RunState]:
    """Put runs of deployments back in their queue, where a server is configured; return the others.

    Such a run loads no code here, whatever its record says: its deployment's worker decides.
    """
    if not is_api_configured():
        return list(runs)
    with prefect_api():
        return [run for run in runs if not _put_back(run, output)]


def _put_back(run: RunState, output: Path) -> bool:
    """Put the slide's run back in its queue if a deployment made it, and print that; return False if no deployment did."""
    from slidesam.flows.prefect_api.deployed import put_back_deployed

    answer = put_back_deployed(run.state.flow_run_id, output, "tried again by `slidesam retry`")
    if answer is None:
        return False
    link, is_back = answer
    if is_back:
        say("[green]↻[/]", f"{run.slide}: its run is put back in the queue, where a worker takes it: {link}")
    else:
        say(
            "[yellow]note:[/]",
            f"{run.slide}: its run isn't put back, because the server shows it as unfinished: {link}",
        )
    return True


class _SlideRunner:
    """Runs slides one at a time, with bars, and prints how each ended.

    Args:
        output: Folder for the results.
        cluster: Where to compute; it stays open for further slides.
        stops: Whether a signal to end has arrived.
        allowed: Code that the person allows segmenters to load.

    Attributes:
        n_failed: How many slides have failed.
    """

    def __init__(self, output: Path, cluster: Cluster, stops: Stops, allowed: tuple[str, ...]) -> None:
        self.output, self.cluster, self.stops, self.allowed = output, cluster, stops, allowed
        self.n_failed = 0

    def run_and_continue(self, slide: Listed) -> None:
        """Run a slide; print the error and continue if it fails."""
        # Whatever a slide fails with: `run` has printed and counted it.
        with suppress(Exception):
            self.run(slide)

    def run(self, slide: Listed) -> None:
        """Run a slide.

        Raises:
            Exception: What the slide failed with; it is printed already.
            KeyboardInterrupt: A signal to end has arrived.
        """
        from slidesam.flows.progress.reporters import BarReporter
        from slidesam.flows.slide.segment_slide import segment_listed
        from slidesam.flows.slide.session import Session

        start = time.monotonic()
        reporter = BarReporter(err, slide.name)
        try:
            session = Session(cluster=self.cluster, reporter=reporter, is_cluster_shared=True, allowed=self.allowed)
            record = segment_listed(session, slide, self.output.absolute())
            reporter.bars.stop()
            self._print_result(slide, record, time.monotonic() - start)
        except Exception as error:
            reporter.bars.stop()
            if self.stops.is_set():
                raise KeyboardInterrupt from None
            self.n_failed += 1
            say_failed(error)
            raise
        finally:
            reporter.bars.stop()

    def _print_result(self, slide: Listed, record: Provenance, seconds: float) -> None:
        name = slide.name
        for warning in (*record.slide.warnings, *record.warnings):
            say("[yellow]note:[/]", f"{name}: {warning}")
        say(
            "[green]✓[/]",
            f"{name}: {record.objects:,} {record.label} in {_describe_blocks(record)}, {seconds:.1f} s",
        )
        paths = RunPaths(self.output, name, record.label)
        exports = (path for path in map(paths.export, EXPORTS) if path.exists())
        for path in (paths.store, paths.overlay, *exports):
            say(" ", str(path))


def _describe_blocks(record: Provenance) -> str:
    n_empty = len(record.blocks_without_tissue)
    return f"{record.blocks - n_empty} blocks" + (f" ({n_empty} more {record.reason_left_out})" if n_empty else "")
