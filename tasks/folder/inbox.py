"""Find the slides of a folder that have arrived: those that no longer grow.

Nobody tells when a copy is finished, so a file counts as whole once it has been the same (its size and its times) for a while,
by looks of one's own: clocks of scanners and file servers aren't to be trusted. What was seen is kept in a file between looks.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from slidesam.tasks.errors import OutputError, SlidesamError
from slidesam.tasks.run.inbox_records import InboxMemory, Sight
from slidesam.tasks.run.layout import RunPaths
from slidesam.tasks.run.records import Provenance
from slidesam.tasks.run.status import describe_file
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.slides.facts import slide_name
from slidesam.tasks.slides.inspect import inspect_slide
from slidesam.tasks.slides.listing import slides_in

# Seconds for which a slide that is gone is remembered.
_REMEMBERED = 30 * 86400.0


class Arrival(NamedTuple):
    """A slide that has arrived.

    Attributes:
        path: Where it lies.
        version: What tells this content of the file from another that may come later under its name.
        is_started: Whether `record_started` was told of it.
    """

    path: Path
    version: str
    is_started: bool


def look(folder: Path, memory: Path, quiet: float, clock_time: float) -> tuple[list[Arrival], list[Path]]:
    """Look into a folder once.

    Args:
        folder: Where slides arrive.
        memory: File that keeps what was seen.
        quiet: Seconds for which a slide must have been the same.
        clock_time: Seconds of a clock that goes on between looks.

    Returns:
        Slides that are whole, and those that still have to prove it.

    Raises:
        OutputError: The memory can't be written.
    """
    last_sights = _read_memory(memory).seen
    # A folder that is away for a while, such as one that isn't mounted, comes back as it was.
    sights = {
        name: sight for name, sight in last_sights.items() if clock_time - (sight.last or clock_time) < _REMEMBERED
    }
    arrivals, growing = [], []
    for path in slides_in(folder):
        facts = describe_file(path)
        # It was removed meanwhile.
        if facts is None:
            continue
        last_sight = last_sights.get(path.name, Sight())
        since = last_sight.since if last_sight.facts == facts and last_sight.since is not None else clock_time
        version = f"{facts.files}-{facts.size}-{facts.modified}"
        sights[path.name] = Sight(facts=facts, since=since, last=clock_time, started=last_sight.started)
        if facts.size > 0 and clock_time - since >= quiet:
            arrivals.append(Arrival(path, version, last_sight.started == version))
        else:
            growing.append(path)
    InboxMemory(folder=folder, seen=sights).write(memory)
    return arrivals, growing


def record_started(memory: Path, arrival: Arrival) -> None:
    """Record that a slide's run was started, so that no other is started for this content of its file."""
    record = _read_memory(memory)
    sight = record.seen.get(arrival.path.name, Sight()).model_copy(update={"started": arrival.version})
    record.model_copy(update={"seen": {**record.seen, arrival.path.name: sight}}).write(memory)


def _read_memory(memory: Path) -> InboxMemory:
    """Read what was seen; nothing where the file is damaged or of another version.

    Slides then have to prove again that they are whole, and the key of a slide's run keeps it from being started twice.
    """
    try:
        return InboxMemory.read(memory) or InboxMemory()
    except OutputError:
        return InboxMemory()


def has_result(path: Path, output: Path, settings: Settings) -> bool:
    """Whether this very file was segmented before, with any settings: newer ones are no reason to do all again.

    Args:
        path: The slide.
        output: Where results lie.
        settings: Which of its images is meant, and under which name and label.
    """
    name = slide_name(path, settings.slide.name)
    try:
        record = Provenance.read(RunPaths(output, name, settings.output.label).provenance)
    except OutputError:
        # Damaged, or of another version: the run says so, and makes it again.
        return False
    if record is None or record.status != "finished":
        return False
    try:
        identity = inspect_slide(path, settings.slide).identity
    except SlidesamError:
        return False
    return record.slide.identity == identity
