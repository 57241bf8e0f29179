"""Segmenting slides from the command line: one after the other on one cluster, with bars, Ctrl-C and a word on each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from slidesam.flows.cluster.cluster import Cluster, ClusterProfile, api_host, open_cluster
from slidesam.flows.cluster.find_profile import make_profile
from slidesam.flows.console import err, out, say, say_failed
from slidesam.flows.prefect_api.server import prefect_api
from slidesam.flows.signals import Stops, interrupts
from slidesam.tasks.errors import CohortFailures, SettingsError
from slidesam.tasks.run.layout import RunPaths, jobs_folder
from slidesam.tasks.run.status import unchanged_since_refused, unfinished
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.listing import Listed, list_slides


def run_or_stop(slides: Sequence[str], output: Path, settings: Settings, profile: ClusterProfile) -> int:
    """`run_slides`, or 130 after Ctrl-C or a signal to end."""
    return _or_stopped(lambda: run_slides(slides, output, settings, profile))


def retry_or_stop(output: Path, profile: ClusterProfile | None) -> int:
    """`retry_slides`, or 130 after Ctrl-C or a signal to end."""
    return _or_stopped(lambda: retry_slides(output, profile))


def _or_stopped(run: Callable[[], int]) -> int:
    try:
        return run()
    except KeyboardInterrupt:
        err.print("\nstopped: the same command goes on from here")
        return 130


def run_slides(slides: Sequence[str], output: Path, settings: Settings, profile: ClusterProfile) -> int:
    """Segments slides one after the other on one cluster; a bad one doesn't cost the others.

    Args:
        slides: Files, folders, patterns or manifests.
        output: Folder for the results.
        settings: What to compute.
        profile: Where to compute it.

    Returns:
        Exit code: 0, or 1 if a slide failed.
    """
    listed = list_slides(slides, settings)
    logs = jobs_folder(output)
    with interrupts() as stops, prefect_api(api_host(profile)), open_cluster(profile, logs) as cluster:
        runner = _SlideRunner(output, cluster, stops)
        if len(listed) == 1:
            runner.run_and_continue(listed[0])
        else:
            from slidesam.flows.many.cohort import make_cohort_flow

            with suppress(CohortFailures):
                make_cohort_flow(runner.run)(list(slides), output, settings)
            out.print(f"{len(listed) - runner.n_failed} of {len(listed)} slides finished")
    return 1 if runner.n_failed else 0


def retry_slides(output: Path, profile: ClusterProfile | None) -> int:
    """Runs the slides of an output folder that failed, were stopped or were killed, with the settings that they had.

    Runs that a deployment made are put back instead, if the server has them: whoever takes its runs does them, and their rows
    turn green.

    Args:
        output: The output folder.
        profile: Where to compute; None = where each was computed.

    Returns:
        Exit code: 0, or 1 if a slide failed once more or can't be tried.
    """
    left = unfinished(output)
    here = [state for state in left if not _is_refused(state)]
    failed = len(left) - len(here)
    with interrupts() as stops:
        for key, states in groupby(
            here, lambda state: profile or make_profile(state.get("cluster") or {"kind": "local"})
        ):
            with prefect_api(api_host(key)), open_cluster(key, jobs_folder(output)) as cluster:
                runner = _SlideRunner(output, cluster, stops)
                for state in states:
                    if not _is_deployed(state):
                        runner.run_and_continue(Listed(Path(state["slide_path"]), make_settings(state["settings"])))
                failed += runner.n_failed
    if not left:
        out.print(f"{output}: no slide failed")
    return 1 if failed else 0


def _is_refused(state: dict[str, Any]) -> bool:
    """Whether a slide isn't tried again, and says why."""
    why = unchanged_since_refused(state, Path(state.get("slide_path", "")))
    if why is None:
        try:
            make_settings(state["settings"])
            make_profile(state["cluster"])
        except KeyError:
            why = "it was made by a version of slidesam that didn't note its settings: use `slidesam segment`"
        except SettingsError as error:
            why = f"its settings are of another version of slidesam, use `slidesam segment`: {error}"
    elif why is not None:
        why = f"not tried again, since its file hasn't changed: {why}"
    if why is not None:
        say("[yellow]note:[/]", f"{state['slide']}: {why}")
    return why is not None


def _is_deployed(state: dict[str, Any]) -> bool:
    """Puts the slide's run back if a deployment made it, and says so; False if it is one's own to do."""
    from slidesam.flows.prefect_api.deployed import put_back_deployed

    found = put_back_deployed(state.get("flow_run_id"), "tried again by `slidesam retry`")
    if found is None:
        return False
    link, is_back = found
    if is_back:
        say("[green]↻[/]", f"{state['slide']}: its run is put back, a worker takes it: {link}")
    else:
        say("[yellow]note:[/]", f"{state['slide']}: the server takes its run for unfinished, see there: {link}")
    return True


class _SlideRunner:
    """Runs slides one at a time, with bars, and prints how each ended.

    Args:
        output: Folder for the results.
        cluster: Where to compute; it stays open for further slides.
        stops: Whether a signal to end has arrived.

    Attributes:
        n_failed: How many slides have failed.
    """

    def __init__(self, output: Path, cluster: Cluster, stops: Stops) -> None:
        self.output, self.cluster, self.stops = output, cluster, stops
        self.n_failed = 0

    def run_and_continue(self, slide: Listed) -> None:
        """Run a slide; print the error and continue if it fails."""
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
            session = Session(cluster=self.cluster, reporter=reporter, is_cluster_shared=True)
            facts = segment_listed(session, slide, self.output)
        except Exception as error:
            reporter.bars.stop()
            if self.stops.is_set():
                raise KeyboardInterrupt from None
            self.n_failed += 1
            say_failed(error)
            raise
        finally:
            reporter.bars.stop()
        self._say_finished(slide, facts, time.monotonic() - start)

    def _say_finished(self, slide: Listed, facts: dict[str, Any], seconds: float) -> None:
        name = slide.name
        for warning in facts["slide"]["warnings"]:
            say("[yellow]note:[/]", f"{name}: {warning}")
        say("[green]✓[/]", f"{name}: {facts['objects']:,} {facts['label']} in {_blocks(facts)}, {seconds:.1f} s")
        paths = RunPaths(self.output, name, facts["label"])
        say(" ", str(paths.store))
        say(" ", str(paths.overlay))


def _blocks(facts: dict[str, Any]) -> str:
    left_out = len(facts["blocks_without_tissue"])
    return f"{facts['blocks'] - left_out} blocks" + (f" ({left_out} without tissue)" if left_out else "")
