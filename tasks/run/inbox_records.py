"""What is remembered of folders where slides arrive, as models that alone read and write it."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from slidesam.tasks.run.records import FileFacts, Record


class Sight(Record):
    """What was seen of a slide in a folder where slides arrive."""

    facts: FileFacts | None = None
    """Its file."""
    since: float | None = None
    """For how long it has been the same: the time when it was first seen so."""
    last: float | None = None
    """When it was last seen."""
    started: str | None = None
    """The version of its content for which a run was started."""


class InboxMemory(Record):
    """What was seen in a folder where slides arrive."""

    folder: Path | None = None
    """The folder."""
    seen: dict[str, Sight] = Field(default_factory=dict)
    """The slides, by the file's name."""
