"""Own the done-marks: they tell which results of a run are whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run.layout import StageFolder, StitchFolder
from slidesam.tasks.run.records import BlockMark, Mark, Params
from slidesam.tasks.run.run import Run


class Marks:
    """Done-marks of a stage: one small JSON file per block, group of blocks, or tile of an image.

    Args:
        folder: The stage's folder.
    """

    def __init__(self, folder: StageFolder) -> None:
        self._folder = folder

    def put(self, mark: Mark) -> None:
        """Vouch for a result; to be called after the result is written."""
        mark.write(self._folder.mark(mark.block_id))

    def remove(self, block_id: int | str) -> None:
        """Remove a mark; to be called before the result is replaced."""
        self._folder.mark(block_id).unlink(missing_ok=True)

    def has(self, block_id: int | str) -> bool:
        """Whether there is a mark that is whole."""
        return Mark.read(self._folder.mark(block_id)) is not None

    def names(self) -> set[str]:
        """List the names of all marks, without reading them."""
        try:
            with os.scandir(self._folder.marks) as entries:
                return {entry.name[:-5] for entry in entries if entry.name[0] != "." and entry.name.endswith(".json")}
        except FileNotFoundError:
            return set()


def find_mark(run: Run, block_id: int) -> BlockMark | None:
    """Find the done-mark of a segmented block; None also if the mark is damaged or the result is gone."""
    folder = run.segment_folder
    try:
        mark = BlockMark.read(folder.mark(block_id))
    except OutputError:
        return None
    if mark is None or mark.count == 0:
        return mark
    files = (folder.shard(block_id), folder.objects(block_id), folder.frame(block_id))
    return mark if all(file.exists() for file in files) else None


def read_params(run: Run) -> Params:
    """Read what all blocks share.

    Raises:
        OutputError: The file is gone.
    """
    params = Params.read(run.segment_folder.params)
    if params is None:
        raise OutputError(f"{run.name}: {run.segment_folder.path} lost its params.json: run the same command again")
    return params


def list_blocks(run: Run) -> Sequence[int]:
    """List the ids of the blocks that are segmented, ascending.

    Raises:
        OutputError: The file that says so is gone.
    """
    blocks = read_params(run).blocks
    return range(len(run.grid)) if blocks is None else blocks


def is_segmented(run: Run) -> bool:
    """Whether all blocks that hold tissue are segmented."""
    if Params.read(run.segment_folder.params) is None:
        return False
    return all(find_mark(run, block_id) is not None for block_id in list_blocks(run))


def remove_stage(folder: Path, *, ignore_errors: bool = False) -> None:
    """Remove a stage's folder, beginning with the file that vouches for the rest.

    Args:
        folder: The folder.
        ignore_errors: Whether to leave what can't be removed.

    Raises:
        OSError: It can't be removed.
    """
    for vouching in (StitchFolder(folder).resolved, StageFolder(folder).arrays_mark):
        vouching.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=ignore_errors)
