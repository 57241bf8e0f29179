"""Done-marks: which results of a run are whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run.files import read_json, write_json
from slidesam.tasks.run.layout import StageFolder, StitchFolder
from slidesam.tasks.run.run import Run


class Marks:
    """Done-marks of a stage: one small JSON file per block, or per piece of an image.

    Args:
        folder: The stage's folder.
    """

    def __init__(self, folder: StageFolder) -> None:
        self._folder = folder

    def put(self, block_id: int | str, facts: dict[str, Any]) -> None:
        """Vouches for a block's result; call it after the result is written."""
        write_json(self._folder.mark(block_id), {"block_id": block_id, **facts})

    def remove(self, block_id: int | str) -> None:
        """Takes a mark back; call it before the result is replaced."""
        self._folder.mark(block_id).unlink(missing_ok=True)

    def get(self, block_id: int | str) -> dict[str, Any] | None:
        """A block's facts, or None while it isn't done."""
        return read_json(self._folder.mark(block_id))

    def names(self) -> set[str]:
        """Of all marks at once, without reading them: what a plan needs."""
        try:
            with os.scandir(self._folder.marks) as entries:
                return {entry.name[:-5] for entry in entries if entry.name[0] != "." and entry.name.endswith(".json")}
        except FileNotFoundError:
            return set()


def block_facts(run: Run, block_id: int) -> dict[str, Any] | None:
    """The done-mark of a segmented block, or None: also where the mark is damaged or what it vouches for is gone."""
    facts = Marks(run.segment_folder).get(block_id)
    if facts is None or not isinstance(facts.get("count"), int):
        return None
    folder = run.segment_folder
    files = (folder.shard(block_id), folder.objects(block_id), folder.frame(block_id))
    return facts if facts["count"] == 0 or all(file.exists() for file in files) else None


def prepared(run: Run) -> dict[str, Any]:
    """What `prepare_slide` found: `params`, `fill`, and `blocks`, the ids of those that hold tissue (None for all).

    Raises:
        OutputError: It is gone.
    """
    known = read_json(run.segment_folder.params)
    if known is None:
        raise OutputError(f"{run.name}: {run.segment_folder.path} lost its params.json: run the same command again")
    return known


def kept_blocks(run: Run) -> list[int]:
    """Ids of the blocks that are segmented, ascending."""
    blocks = prepared(run)["blocks"]
    return list(range(len(run.grid))) if blocks is None else blocks


def is_segmented(run: Run) -> bool:
    """Whether all blocks that hold tissue are segmented."""
    if read_json(run.segment_folder.params) is None:
        return False
    return all(block_facts(run, block_id) is not None for block_id in kept_blocks(run))


def remove_stage(folder: Path, *, ignore_errors: bool = False) -> None:
    """Removes a stage's folder, first what vouches for the rest.

    Args:
        folder: The folder.
        ignore_errors: Whether the rest may stay where it can't be removed.

    Raises:
        OSError: It can't be removed.
    """
    for vouching in (StitchFolder(folder).resolved, StageFolder(folder).started):
        vouching.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=ignore_errors)
