"""What is on disk as JSON, as models that alone read and write it.

Older files read: keys that a model doesn't know are ignored, and what was added later has a default. A damaged file counts as
none, so that what it vouches for is done again. One that is whole but lacks what a model needs is of another version of
slidesam, and is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run.files import read_json, write_json


class Record(BaseModel):
    """A JSON file. Its keys are the fields' names, or their aliases."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, use_attribute_docstrings=True)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Reads a file; None where there is none, or it isn't whole.

        Raises:
            OutputError: It is of another version of slidesam.
        """
        # Not pydantic's own JSON parser: it refuses paths that aren't UTF-8.
        value = read_json(path)
        if value is None:
            return None
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            keys = ", ".join(dict.fromkeys(".".join(map(str, problem["loc"])) for problem in error.errors()))
            raise OutputError(
                f"{path} was written by another version of slidesam, which this one can't read ({keys}): use that version, "
                "or move the file away"
            ) from error

    def write(self, path: Path, *, sync: bool = True) -> None:
        """Writes the fields that are set, atomically.

        Args:
            path: Where to.
            sync: Whether to wait until the file has reached the disk.

        Raises:
            OutputError: It can't be written.
        """
        write_json(path, self.model_dump(mode="json", by_alias=True, include=self.model_fields_set), sync=sync)


class Mark(Record):
    """A done-mark."""

    block_id: int | str
    """The block, or a name for the group of blocks or the tile of the image."""


class BlockMark(Mark):
    """The done-mark of a block, with what its labels may depend on."""

    count: int
    """Number of its objects."""
    seconds: float = 0.0
    """How long it took."""
    device: str | None = None
    """Device that computed it."""
    threads: str | None = None
    """Value of OMP_NUM_THREADS; None = it wasn't set."""
    precision: str | None = None
    """Of a network's numbers."""
    batch_size: int | None = None
    """Tiles that a network saw at once, as far as memory sufficed."""


class StartMark(Record):
    """Says which process is computing a block, and how many have ended before."""

    state: str = ""
    """`running`, `ready`, `failed`, `timed out` or `ended with its job`."""
    attempt: str = Field("", alias="go")
    """Identifies the attempt at the slide within which ends are counted."""
    lost: int = 0
    """How many workers the block had cost before, in this attempt."""
    timed_out: int = 0
    """How many of those took too long."""
    host: str | None = None
    """Host of the process."""
    pid: int | None = None
    """Its number there."""
    log: Path | None = None
    """File that has what its job says."""
    began: str = ""
    """When, in UTC."""


class Params(Record):
    """What all blocks of a slide share."""

    params: dict[str, Any] = {}
    """The segmenter's own parameters."""
    fill: tuple[int | float, ...] = ()
    """Colour of the background, per channel."""
    blocks: tuple[int, ...] | None = None
    """Ids of the blocks that hold tissue, ascending; None = all."""
    seconds: float = 0.0
    """How long it took to find out."""


class SeamReport(Record):
    """What happened at the seams."""

    totals: dict[str, int] = {}
    """Counts for the slide, each object counted once."""
    columns: tuple[str, ...] = ()
    """Names of the numbers in a row."""
    rows: tuple[tuple[int, ...], ...] = ()
    """A row per seam at which anything lies, the ids of its two blocks first."""
    wide: int = 0
    """How many objects are wider than the halo."""
    halo: int = 0
    """Width of the halo in pixels of level 0."""
    advised_halo: int | None = None
    """A better width, as the setting has it; None = there is nothing to advise."""
    warnings: tuple[str, ...] = ()
    """What a person should know, one sentence each."""

    def without_rows(self) -> SeamReport:
        """The report without its longest part."""
        return SeamReport(**{name: getattr(self, name) for name in SeamReport.model_fields if name != "rows"})


class Resolved(Record):
    """The numbering of a slide's objects is done."""

    objects: int
    """Number of objects."""
    seams: SeamReport
    """What happened at the seams."""
