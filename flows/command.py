"""Segmenting slides from the command line: one after the other on one cluster, with bars, Ctrl-C and a word on each."""

from __future__ import annotations

import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
    with interrupts() as stops, prefect_api(api_host(profile)), open_cluster(profile, jobs_folder(output)):
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
                failed += not _run_slide(slide, name, output, settings, profile, stops)
            if stops.is_set():
                raise KeyboardInterrupt
    if len(slides) > 1:
        out.print(f"{len(slides) - failed} of {len(slides)} slides finished")
    return 1 if failed else 0


_ENDINGS = [signal.SIGINT, signal.SIGTERM]
# A connection that was lost; where that is to be ignored (nohup) it stays so.
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
    _ENDINGS.append(signal.SIGHUP)


class Stops:
    """Whether a signal to end has arrived, whoever handles it.

    A handler raises wherever the program is. Inside a library's callback (pydantic's serializers, for one) that comes back
    as an error of the library, and while a flow runs SIGTERM is Prefect's to handle. So the interpreter itself is asked
    (`signal.set_wakeup_fd`) to note each signal's number.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._arrived: set[int] = set()

    def is_set(self) -> bool:
        """True once one of the signals that end a run has arrived."""
        with suppress(BlockingIOError):
            self._arrived.update(self._reader.recv(4096))
        return not self._arrived.isdisjoint(_ENDINGS)

    def close(self) -> None:
        """Leaves the interpreter as it was."""
        signal.set_wakeup_fd(self._before)
        self._reader.close()
        self._writer.close()


@contextmanager
def interrupts() -> Iterator[Stops]:
    """Takes SIGTERM and a lost connection as Ctrl-C, so that jobs of a run that is itself a job don't outlive it.

    An error that is only such a signal in a library's words becomes the interrupt again.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    stops = Stops()
    before = {number: signal.signal(number, stop) for number in _ENDINGS}
    try:
        yield stops
    except Exception:
        if stops.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stops.close()


def _run_slide(slide: Path, name: str, output: Path, settings: Settings, profile: ClusterProfile, stops: Stops) -> bool:
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
        if not stops.is_set():
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
