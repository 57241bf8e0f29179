"""The folders of a run's stages: where each file in them lies. `layout` draws the whole output folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_ARRAYS = ".arrays"


@dataclass(frozen=True)
class StageFolder:
    """Results of one stage under one fingerprint."""

    path: Path

    @property
    def causes(self) -> Path:
        """What went into the fingerprint."""
        return self.path / "causes.json"

    @property
    def arrays_mark(self) -> Path:
        """Says that the arrays to fill are made; as long as it is there, the marks count."""
        return self.path / "started.json"

    @property
    def marks(self) -> Path:
        """Folder of the done-marks."""
        return self.path / "marks"

    def mark(self, name: int | str) -> Path:
        """The done-mark of a block, a group of blocks or a tile of the image."""
        return self.marks / f"{name}.json"


class ImageFolder(StageFolder):
    """What converting or rechunking a slide keeps."""

    @property
    def pixels_mark(self) -> Path:
        """Vouches for rechunked pixels."""
        return self.path / "done.json"

    @property
    def pixels(self) -> Path:
        """The rechunked pixels."""
        return self.path / "pixels.zarr"


class SegmentFolder(StageFolder):
    """Results of the blocks."""

    @property
    def params(self) -> Path:
        """What all blocks share."""
        return self.path / "params.json"

    @property
    def tissue(self) -> Path:
        """The mask of the tissue."""
        return self.path / f"tissue{_ARRAYS}"

    def regions(self, identity: str) -> Path:
        """Regions of interest of this identity, and the blocks that see them."""
        return self.path / f"regions-{identity[:12]}{_ARRAYS}"

    @property
    def blocks(self) -> Path:
        """Folder of the blocks' results."""
        return self.path / "blocks"

    def block(self, block_id: int) -> Path:
        """A block's result: its labels, its table of objects, its halo strips. If it is there, the block is done."""
        return self.blocks / f"{block_id}{_ARRAYS}"

    def list_results(self) -> set[int]:
        """The ids of the blocks that have a result, by the files' names."""
        try:
            with os.scandir(self.blocks) as entries:
                names = [entry.name.removesuffix(_ARRAYS) for entry in entries if entry.name.endswith(_ARRAYS)]
        except OSError:
            return set()
        return {int(name) for name in names if name.isascii() and name.isdecimal()}

    def start_mark(self, block_id: int) -> Path:
        """Says which process is computing a block."""
        return self.path / "starts" / f"{block_id}.json"

    @staticmethod
    def trace(start_mark: Path) -> Path:
        """Where the process of a start-mark was as its block took too long."""
        return start_mark.with_suffix(".trace.txt")


class StitchFolder(StageFolder):
    """Matches and the numbering."""

    @property
    def numbering(self) -> Path:
        """The arrays of the objects' numbering."""
        return self.path / f"numbering{_ARRAYS}"

    @property
    def resolved(self) -> Path:
        """Number of objects and report on the seams; vouches for the arrays."""
        return self.path / "resolved.json"

    def overlaps(self, group: str) -> Path:
        """What a group of blocks has in common with its neighbours."""
        return self.path / "overlaps" / f"{group}{_ARRAYS}"


class PaintFolder(StageFolder):
    """What was painted into the label image."""

    @property
    def whole_mark(self) -> Path:
        """Vouches for all levels of the label image."""
        return self.path / "done.json"

    def measures(self, group: str) -> Path:
        """Measurements of the objects that a batch of blocks shows; if they are there, the batch is painted."""
        return self.path / "measures" / f"{group}{_ARRAYS}"


class ObjectFolder(StageFolder):
    """What tables and outlines of the objects are made from."""

    @property
    def index(self) -> Path:
        """Every object's area and box, and the tile that describes it."""
        return self.path / f"index{_ARRAYS}"

    def part(self, kind: str, batch: str) -> Path:
        """What a task found: `parts` of objects in a batch of blocks, or the objects that a batch of tiles `described`."""
        return self.path / kind / f"{batch}{_ARRAYS}"
