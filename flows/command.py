"""Segmenting slides from the command line: one after the other on one cluster, with bars, Ctrl-C and a word on each."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from slidesam.flows.cluster import ClusterProfile, api_host, open_cluster
from slidesam.flows.console import err, out, say, say_failed
from slidesam.flows.server import prefect_api
from slidesam.tasks.config import Settings
from slidesam.tasks.errors import SettingsError
from slidesam.tasks.slide import slide_name
from slidesam.tasks.work import jobs_folder


def run_or_stop(slides: Sequence[Path], output: Path, settings: Settings, profile: ClusterProfile) -> int:
    """`run_slides`, or 130 after Ctrl-C or a signal to end."""
    try:
        return run_slides(slides, output, settings, profile)
    except KeyboardInterrupt:
        err.print("\nstopped: the same command goes on from here")
        return 130


def run_slides(slides: Sequence[Path], output: Path, settings: Settings, profile: ClusterProfile) -> int:
    """Segments slides one after the other on one cluster; a bad one doesn't cost the others.

    Returns:
        Exit code: 0, or 1 if a slide failed.
    """
    names = Counter(slide_name(slide) for slide in slides)
    failed = 0
    with interrupts() as stopped, prefect_api(api_host(profile)), open_cluster(profile, jobs_folder(output)):
        for slide in slides:
            name = slide_name(slide)
            if names[name] > 1:
                say_failed(
                    SettingsError(
                        f"{slide}: {names[name]} slides of this command are named {name}: run them into different folders"
                    )
                )
                failed += 1
            else:
                failed += not _run_slide(slide, name, output, settings, profile, stopped)
            if stopped.is_set():
                raise KeyboardInterrupt
    if len(slides) > 1:
        out.print(f"{len(slides) - failed} of {len(slides)} slides finished")
    return 1 if failed else 0


_ENDINGS = [signal.SIGINT, signal.SIGTERM]
# A connection that was lost; where that is to be ignored (nohup) it stays so.
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
    _ENDINGS.append(signal.SIGHUP)


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """Remembers Ctrl-C and SIGTERM: raised inside a library's callback they can come back as an error of that library.

    SIGTERM ends a run as Ctrl-C does, so that jobs of a run that is itself a job don't outlive it.
    """
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in _ENDINGS}
    try:
        yield stopped
    except Exception:
        if stopped.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_slide(
    slide: Path, name: str, output: Path, settings: Settings, profile: ClusterProfile, stopped: threading.Event
) -> bool:
    """Runs one slide's flow with bars, and says how it ended."""
    from slidesam.flows.progress import BarReporter, showing
    from slidesam.flows.segment_slide import segment_slide

    started = time.monotonic()
    reporter = BarReporter(err, name)
    try:
        with showing(reporter):
            facts = segment_slide(slide, output, settings, profile)
    except Exception as error:  # noqa: BLE001
        reporter.bars.stop()
        if not stopped.is_set():
            say_failed(error)
        return False
    finally:
        reporter.bars.stop()
    seconds = time.monotonic() - started
    for warning in facts["slide"]["warnings"]:
        say("[yellow]note:[/]", f"{name}: {warning}")
    say("[green]✓[/]", f"{name}: {facts['objects']:,} {facts['label']} in {_blocks(facts)}, {seconds:.1f} s")
    say(" ", f"{output / name}.ome.zarr")
    say(" ", f"{output / name}.{facts['label']}.overlay.png")
    return True


def _blocks(facts: dict[str, Any]) -> str:
    left_out = len(facts["blocks_without_tissue"])
    return f"{facts['blocks'] - left_out} blocks" + (f" ({left_out} without tissue)" if left_out else "")
