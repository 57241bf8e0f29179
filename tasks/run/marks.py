"""Own the done-marks: they tell which results of a run are whole."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run.array_files import read_array_facts
from slidesam.tasks.run.files import output_errors, read_json, sync_folders
from slidesam.tasks.run.layout import TRASH_PREFIX
from slidesam.tasks.run.records import BlockMark, Mark, Params
from slidesam.tasks.run.regions import list_region_blocks
from slidesam.tasks.run.run import Run
from slidesam.tasks.run.stage_folders import StageFolder

_READERS: dict[str, Callable[[Path], Any]] = {".json": read_json, ".arrays": read_array_facts}


class Marks:
    """Done-marks of the tiles of an image: one small JSON file each.

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
    """Find the done-mark of a segmented block, which is the header of its result; None also if the file is damaged."""
    facts = read_array_facts(run.segment_folder.block(block_id))
    try:
        mark = None if facts is None else BlockMark.model_validate(facts)
    except ValidationError:
        return None
    return mark if mark is not None and mark.block_id == block_id else None


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
    """List the ids of the blocks that are segmented, ascending: those that hold tissue and see a region of interest.

    Raises:
        OutputError: The file that says so is gone.
        SettingsError: The regions can't be read.
    """
    blocks = read_params(run).blocks
    with_tissue = range(len(run.grid)) if blocks is None else blocks
    in_regions = list_region_blocks(run)
    return with_tissue if in_regions is None else sorted(set(with_tissue).intersection(in_regions))


def is_segmented(run: Run) -> bool:
    """Whether all blocks that hold tissue are segmented."""
    if Params.read(run.segment_folder.params) is None:
        return False
    return all(find_mark(run, block_id) is not None for block_id in list_blocks(run))


def find_damaged(run: Run) -> list[Path]:
    """Find the small files of the run's stages that are damaged; blocks' results are looked at when they are needed."""
    segment = run.segment_folder
    stages = (run.image_folder, segment, run.stitch_folder, run.paint_folder)
    # Nothing depends on the causes.
    others = {segment.blocks, segment.start_mark(0).parent, *(stage.causes for stage in stages)}
    folders = [stage.path for stage in stages]
    folders += [path for folder in folders for path in folder.glob("*") if path.is_dir() and path not in others]
    files = (path for folder in folders for path in sorted({*folder.glob("*")} - others) if path.is_file())
    return [path for path in files if (reader := _READERS.get(path.suffix)) is not None and reader(path) is None]


def remove_stage(folder: Path) -> None:
    """Remove a stage's folder: it is renamed first, on the disk too, so that nothing in it is ever believed again.

    What can't be removed then (a file server keeps files that somebody reads) is left to `slidesam clean`.

    Args:
        folder: The folder.

    Raises:
        OutputError: It can't be renamed.
    """
    beside = folder.with_name(f"{TRASH_PREFIX}{uuid.uuid4().hex}")
    # Another task may have been faster.
    with output_errors(folder), suppress(FileNotFoundError):
        folder.rename(beside)
    sync_folders([folder.parent])
    shutil.rmtree(beside, ignore_errors=True)
