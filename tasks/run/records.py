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
from slidesam.tasks.slides.facts import Slide


class Record(BaseModel):
    """A JSON file. Its keys are the fields' names, or their aliases."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, use_attribute_docstrings=True)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Reads a file; None where there is none, or it isn't whole.

        Raises:
            OutputError: It is of another version of slidesam, or can't be read.
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
        write_json(path, self.to_json(), sync=sync)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are set, as JSON has them."""
        return self.model_dump(mode="json", by_alias=True, include=self.model_fields_set)


class StageRecord(Record):
    """A file of a stage's folder, whose fingerprint has the version of the format: one that lacks something is damaged."""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Reads a file; None where there is none, or it isn't whole.

        Raises:
            OutputError: It can't be read.
        """
        value = read_json(path)
        try:
            return None if value is None else cls.model_validate(value)
        except ValidationError:
            return None


class Mark(StageRecord):
    """A done-mark."""

    block_id: int | str
    """The block, or a name for the group of blocks or the tile of the image."""


class TileMark(Mark):
    """The done-mark of a tile of the image."""

    files: dict[str, tuple[int, int]] = {}
    """The files that it vouches for, by path below the output folder: size in bytes, and crc32c."""


class FileList(Record):
    """The files of a finished image or label image, by which damage to them is found."""

    fingerprint: str
    """Of the stage that wrote them."""
    metadata: dict[str, str] = {}
    """What Zarr's metadata files hold, by path below the output folder."""
    units: dict[str, dict[str, tuple[int, int]]] = {}
    """Size in bytes and crc32c of the other files, by what is written at once (a tile, a batch of blocks), by path."""

    @property
    def files(self) -> dict[str, tuple[int, int]]:
        """All files but the metadata, by path."""
        return {path: facts for unit in self.units.values() for path, facts in unit.items()}


class StageMark(StageRecord):
    """Vouches for the arrays of a stage: they are there, empty (started.json) or whole (done.json)."""

    reason: str | None = None
    """Why the slide is converted or rechunked; unset for the label image."""
    objects: int | None = None
    """Number of objects of the label image; unset for the image."""
    files: dict[str, tuple[int, int]] = {}
    """The files of the upper levels, as `TileMark` has them."""


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
    failed: int = 0
    """How often it had failed before, in the same attempt at the slide."""
    lost: int = 0
    """How many workers it had cost before, in the same attempt."""


class StartMark(StageRecord):
    """Says which process is computing a block, and how many have ended before."""

    state: str = ""
    """`running`, `ready`, `failed`, `timed out`, `killed`, `out of memory` or `ended with its job`."""
    attempt: str = Field("", alias="go")
    """Identifies the attempt at the slide within which ends are counted."""
    lost: int = 0
    """How many workers the block had cost before, in this attempt."""
    failed: int = 0
    """How often it had failed before, in this attempt, without costing a worker."""
    timed_out: int = 0
    """How many of those took too long."""
    host: str | None = None
    """Host of the process."""
    pid: int | None = None
    """Its number there."""
    log: Path | None = None
    """File that has what its job says."""
    job: str | None = None
    """Number of its job in the queue."""
    watched: bool = False
    """Whether another process watches it, and will note what ended it."""
    memory: int | None = None
    """Bytes that the process used shortly before it ended, if it was ended for them."""
    memory_limit: int | None = None
    """Bytes that it was allowed; null = as many as there are."""
    began: str = ""
    """When, in UTC."""


class Params(StageRecord):
    """What all blocks of a slide share."""

    params: dict[str, Any] = {}
    """The segmenter's own parameters."""
    fill: tuple[int | float, ...] = ()
    """Colour of the background, per channel."""
    blocks: tuple[int, ...] | None = None
    """Ids of the blocks that hold tissue, ascending; None = all."""
    has_tissue: bool | None = None
    """Whether any tissue is on the slide, also where all blocks are segmented; None = that isn't known."""
    warnings: tuple[str, ...] = ()
    """What a person should know of the pixels, one sentence each."""
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


class Resolved(StageRecord):
    """The numbering of a slide's objects is done."""

    objects: int
    """Number of objects."""
    seams: SeamReport
    """What happened at the seams."""


class FileFacts(Record):
    """What tells whether a file, or a folder with all that is in it, has been changed or replaced."""

    files: int
    """How many files."""
    size: int
    """Their length together, in bytes."""
    modified: int
    """Time of the last change of content, in nanoseconds."""
    changed: int
    """Time of the last change of an inode, in nanoseconds: another owner or permission can be the cure."""


class State(Record):
    """How a run stands, and what was asked for."""

    # Kept, so that an update by `slidesam clean` loses nothing.
    model_config = ConfigDict(extra="allow")

    status: str = ""
    """`running`, `stopped`, `failed` or `finished`; empty = nothing is recorded."""
    updated: str = ""
    """When this was written, in UTC."""
    slide_path: Path | None = None
    """The slide, absolute."""
    flow_run_id: str | None = None
    """The Prefect flow run."""
    settings: dict[str, Any] | None = None
    """The settings, as JSON: another version may have had others."""
    cluster: dict[str, Any] | None = None
    """The cluster profile, as JSON."""
    blocks: int | None = None
    """How many blocks there are."""
    segment_folder: str | None = None
    """Name of the folder with the blocks' results."""
    region_blocks: tuple[int, ...] | None = None
    """Ids of the blocks that see a region of interest; None = the whole slide is computed."""
    jobs: tuple[str, ...] = ()
    """Names of the jobs in the queue that work for the run."""
    dashboards: dict[str, str] = {}
    """URLs of the Dask dashboards, by worker pool."""
    objects: int | None = None
    """How many objects a finished run has."""
    warnings: tuple[str, ...] = ()
    """What a person should know of a finished run's result, one sentence each."""
    error: str | None = None
    """Why a failed run failed."""
    file: FileFacts | None = None
    """The slide's file, if it was at fault."""
    blocks_done: int | None = None
    """How many blocks were done when `slidesam clean` removed their marks."""


class ImageFacts(Record):
    """How the pixels reached the blocks."""

    mode: str
    """`convert`, `rechunk` or `in place`."""
    reason: str = ""
    """Why, in words."""
    read_amplification_in_place: float | None = None
    """Bytes decoded per byte used, when all blocks are read in place."""


class SegmenterFacts(Record):
    """What segmented, and on what. More than one device or number of threads: the run was resumed elsewhere."""

    identity: str
    """Model, hash of weights or source, versions."""
    params: dict[str, Any] | None = None
    """Its parameters for this slide."""
    fill: tuple[int | float, ...] | None = None
    """Colour of the background, per channel."""
    devices: tuple[str, ...] = ()
    """Devices that computed blocks."""
    threads: tuple[str, ...] = ()
    """Their values of OMP_NUM_THREADS."""
    precision: tuple[str, ...] = ()
    """Of the network's numbers."""
    batch_size: tuple[str, ...] = ()
    """Tiles that the network saw at once."""


class Provenance(Record):
    """How a result was made: enough to make it again, or to say why another differs."""

    status: str = "finished"
    """Always `finished`."""
    finished: str = ""
    """When, in UTC."""
    slide: Slide
    """The slide, and which of its planes was segmented."""
    label: str
    """Name of the label image."""
    objects: int
    """Number of objects."""
    blocks: int
    """Number of blocks."""
    blocks_without_tissue: tuple[int, ...] = ()
    """Ids of the blocks that were left out."""
    image: ImageFacts
    """How the pixels reached the blocks."""
    settings: dict[str, Any]
    """The settings, as JSON: another version may have had others."""
    segmenter: SegmenterFacts
    """What segmented."""
    fingerprints: dict[str, str] = {}
    """Hash of what each stage depends on."""
    task_seconds: dict[str, float] = {}
    """Per stage, the wall time of its tasks added up."""
    versions: dict[str, str] = {}
    """Versions of packages that can change a pixel."""
    warnings: tuple[str, ...] = ()
    """What a person should know of the result beside the slide's own warnings and those of the seams, one sentence each."""
    file_list: tuple[int, int] | None = None
    """Size in bytes and crc32c of the list of the label image's files; None = it was made by a version without such lists."""
    seams: SeamReport | None = None
    """What happened at the seams."""

    @property
    def reason_left_out(self) -> str:
        """Why blocks were left out, in words that follow their number."""
        has_regions = (self.settings.get("blocks") or {}).get("region") is not None
        return "outside of the regions or without tissue" if has_regions else "without tissue"
