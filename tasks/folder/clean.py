"""Remove the intermediate results of finished runs; with them, a slide could be stitched again.

`tasks/run/layout.py` draws the folders. Clean removes the stage folders of a run, those of the slide's image once all runs of
the slide may be cleaned, and old logs of jobs. `state.json` stays, for `slidesam status`; results are never touched.

Clean skips runs that aren't finished and runs whose lock another process holds. It holds the lock while it removes, so that
no run starts to use results that are about to be removed.

A folder is renamed before it is removed, so that it exists whole or not at all. Later stages are removed before earlier ones:
if blocks are segmented again, maybe on another device, no older matches may be there for a later run to use.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from glob import escape
from pathlib import Path
from typing import NamedTuple

from slidesam.tasks.errors import OutputError, in_one_line
from slidesam.tasks.run.layout import (
    IMAGE,
    IMAGE_STAGES,
    RUN_STAGES,
    TRASH_PREFIX,
    RunPaths,
    list_runs,
    list_slide_folders,
    work_root,
)
from slidesam.tasks.run.links import list_job_logs
from slidesam.tasks.run.lock import LockedError, holder, locked
from slidesam.tasks.run.records import Provenance, State
from slidesam.tasks.run.status import count_blocks, find_segment_folder
from slidesam.tasks.settings.sections import RunSettings
from slidesam.tasks.settings.types import seconds_of

# Files that `write_atomic`, the lock and Zarr leave when their process is killed. No process uses files of that age any more.
_HALF_WRITTEN = re.compile(r"\..+\.[0-9a-f]{32}\.partial")
_HALF_WRITTEN_BY_ZARR = re.compile(r".+\.[0-9a-f]{32}\.partial")
_CLAIM = re.compile(r"\.+lock\.json\..+\.claim")
_LEFTOVER_AGE = 86400.0


class Size(NamedTuple):
    """Count bytes and files.

    Attributes:
        bytes: Length of all files together.
        files: Their number.
    """

    bytes: int
    files: int


class Removed(NamedTuple):
    """Tell what was removed of one run.

    Attributes:
        slide: The slide's name.
        label: The label image's name, or `.image` for the folders of the slide's image.
        bytes: Length of the removed files together.
        files: Their number.
        error: Why a part of it could not be removed; empty if all was removed.
    """

    slide: str
    label: str
    bytes: int
    files: int
    error: str = ""


def clean_folder(
    output: Path, *, keep: float | None, dry_run: bool = False, now: datetime | None = None
) -> list[Removed]:
    """Remove intermediate results of finished runs, and files that killed processes left.

    Args:
        output: An output folder.
        keep: How long after a run finished its results stay, in seconds; None = the run's `run.keep_work`.
        dry_run: Only tell what would be removed; write nothing.
        now: The current time; for tests.

    Returns:
        One entry per run of which something was removed, or could not be removed.

    Raises:
        OutputError: The output folder doesn't exist.
    """
    if not output.is_dir():
        raise OutputError(f"{output} is not a folder: give the folder that was named with --output")
    if (link := work_root(output)).is_symlink():
        raise OutputError(
            f"{link} is a link: clean removes nothing outside of {output}. Clean the folder that it leads to"
        )
    cleaning = _Cleaning(output, keep, dry_run, now or datetime.now(UTC))
    removals = [removed for slide in list_slide_folders(output) for removed in cleaning.clean_slide(slide)]
    removals.append(cleaning.clean_logs())
    return [removed for removed in removals if removed.files or removed.error]


def size_of(output: Path) -> Size:
    """Measure the intermediate results of all runs of an output folder."""
    return _measure(work_root(output))


@dataclass(frozen=True)
class _Cleaning:
    """Clean one output folder."""

    output: Path
    keep: float | None
    dry_run: bool
    now: datetime

    def clean_slide(self, folder: Path) -> Iterator[Removed]:
        """Clean the folders of one slide."""
        for run in list_runs(folder):
            yield self.clean_run(run, RUN_STAGES, partial(list, [run]))
        image = RunPaths.of_work(folder / IMAGE)
        yield self.clean_result(image)
        # Of a folder that only another user can enter, Path.is_dir would raise.
        if os.path.isdir(image.work) and not image.work.is_symlink():  # noqa: PTH112
            yield self.clean_run(image, IMAGE_STAGES, partial(_list_used_runs, folder))

    def clean_logs(self) -> Removed:
        """Remove old logs of jobs."""
        removed = Removed("logs of", "jobs", 0, 0)
        keep = seconds_of(RunSettings().keep_work) if self.keep is None else self.keep
        try:
            for path in list_job_logs(self.output):
                status = path.lstat()
                # A log that was written recently may belong to a running job.
                if self.now.timestamp() - status.st_mtime > max(keep, _LEFTOVER_AGE):
                    if not self.dry_run:
                        path.unlink(missing_ok=True)
                    removed = removed._replace(bytes=removed.bytes + status.st_size, files=removed.files + 1)
        except OSError as error:
            removed = removed._replace(error=in_one_line(error))
        return removed

    def clean_result(self, image: RunPaths) -> Removed:
        """Remove the half-written files in and beside a slide's result; of runs that finished and of others."""
        removed = Removed(image.name, "result", 0, 0)
        try:
            for path in list(self._find_half_written(image)):
                removed = self._remove(path, removed)
        except OSError as error:
            removed = removed._replace(error=in_one_line(error))
        return removed

    def clean_run(self, paths: RunPaths, stages: tuple[str, ...], runs: Callable[[], list[RunPaths]]) -> Removed:
        """Clean the folder of a run or of a slide's image.

        Args:
            paths: The paths of the run or image.
            stages: The stages to remove, in this order.
            runs: Lists the runs that use the folder. All must have finished long enough ago.
        """
        removed = Removed(paths.name, paths.label, 0, 0)
        try:
            for path in list(self._find_leftovers(paths)):
                removed = self._remove(path, removed)
            if paths.stage_folders(*stages) and self._are_expired(runs()):
                with ExitStack() as locks:
                    for user_paths in dict.fromkeys([*runs(), paths]):
                        self._lock(locks, user_paths)
                    # Check again under the locks: now only a run under a new label can start, and it waits for the image's lock.
                    if self._are_expired(runs()):
                        for stage in stages:
                            removed = self._remove_stage(paths, stage, removed)
        except LockedError:
            pass
        except OSError as error:
            removed = removed._replace(error=in_one_line(error))
        return removed

    def _are_expired(self, runs: list[RunPaths]) -> bool:
        """Tell whether there is a run, and all runs finished long enough ago."""
        return bool(runs) and all(self._is_expired(run) for run in runs)

    def _is_expired(self, run: RunPaths) -> bool:
        """Tell whether a run finished long enough ago."""
        try:
            state, record = State.read(run.state), Provenance.read(run.provenance)
            if state is None or record is None or (state.status, record.status) != ("finished", "finished"):
                return False
            finished = datetime.fromisoformat(record.finished)
        except (OutputError, ValueError):
            # The file is of another version or has no date, so it is unknown when the run finished.
            return False
        finished = finished if finished.tzinfo else finished.replace(tzinfo=UTC)
        keep = _read_keep(record) if self.keep is None else self.keep
        return (self.now - finished).total_seconds() >= keep

    def _lock(self, locks: ExitStack, paths: RunPaths) -> None:
        """Hold the lock of a run, so that it can't start."""
        path, target = paths.lock, f"{paths.name} ({paths.label}) in {self.output}"
        if self.dry_run:
            _refuse_if_held(path)
            return
        try:
            locks.enter_context(locked(path, "slidesam clean", target=target))
        except OutputError as error:
            cause = error.__cause__
            if not isinstance(cause, OSError) or cause.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # The disk is full, and clean has to make room on it. Without room for a lock no run can start either.
            _refuse_if_held(path)

    def _remove_stage(self, paths: RunPaths, stage: str, removed: Removed) -> Removed:
        if stage == "segment" and not self.dry_run:
            _save_block_counts(paths)
        for path in paths.stage_folders(stage):
            removed = self._remove(path, removed)
        return removed

    def _remove(self, path: Path, removed: Removed) -> Removed:
        """Remove a file or folder, and add its size to the sum."""
        size = _measure(path)
        if not self.dry_run:
            _remove(path)
        return removed._replace(bytes=removed.bytes + size.bytes, files=removed.files + size.files)

    def _find_leftovers(self, paths: RunPaths) -> Iterator[Path]:
        """Find the files that an earlier clean, or a process killed while writing, left in a folder."""
        for place, folders, files in os.walk(paths.work):
            folder = Path(place)
            yield from (folder / name for name in folders if name.startswith(TRASH_PREFIX))
            # Zarr has its own way of writing: nothing is removed inside its arrays.
            folders[:] = [name for name in folders if not name.startswith(TRASH_PREFIX) and not name.endswith(".zarr")]
            # Claims only matter while there is a lock.
            for name in files:
                stray = _CLAIM.fullmatch(name) and paths.lock.name not in files
                if (stray or _HALF_WRITTEN.fullmatch(name)) and self._is_old(folder / name):
                    yield folder / name

    def _find_half_written(self, image: RunPaths) -> Iterator[Path]:
        """Find the files that a process killed while writing left in a slide's result."""
        for path in self.output.glob(f".{escape(image.name)}.*.partial"):
            if _HALF_WRITTEN.fullmatch(path.name) and self._is_old(path):
                yield path
        # A store that is a link is the user's own, elsewhere.
        for place, _, files in [] if image.store.is_symlink() else os.walk(image.store):
            for name in files:
                if _HALF_WRITTEN_BY_ZARR.fullmatch(name) and self._is_old(Path(place, name)):
                    yield Path(place, name)

    def _is_old(self, path: Path) -> bool:
        try:
            return self.now.timestamp() - path.lstat().st_mtime > _LEFTOVER_AGE
        except FileNotFoundError:
            return False


def _refuse_if_held(path: Path) -> None:
    if (owner := holder(path)) is not None:
        raise LockedError(f"{path} is held by {owner}")


def _read_keep(record: Provenance) -> float:
    """Read how long a run keeps its intermediate results, in seconds."""
    try:
        return seconds_of(record.settings["run"]["keep_work"])
    except (KeyError, TypeError, ValueError, IndexError):
        # The run is older than the setting.
        return seconds_of(RunSettings().keep_work)


def _save_block_counts(paths: RunPaths) -> None:
    """Save how many blocks are done: without their marks, `slidesam status` can't count them."""
    # On a full disk, or if the state is of another version, `slidesam status` shows no blocks; nothing else depends on it.
    with suppress(OutputError):
        state = State.read(paths.state)
        if state is None or find_segment_folder(paths, state) is None:
            return
        n_done, n_blocks = count_blocks(paths, state.model_copy(update={"blocks_done": None}))
        state.model_copy(update={"blocks_done": n_done, "blocks": n_blocks}).write(paths.state)


def _list_used_runs(slide: Path) -> list[RunPaths]:
    """List a slide's runs of all labels; an empty folder is not a run."""
    return [run for run in list_runs(slide) if any(run.work.iterdir())]


def _measure(path: Path) -> Size:
    # A link counts as itself, wherever it leads.
    files = (
        [path]
        if path.is_symlink() or path.is_file()
        else [Path(place) / name for place, _, names in os.walk(path) for name in names]
    )
    total = 0
    for file in files:
        # Another clean, or the run itself, may have removed the file.
        with suppress(FileNotFoundError):
            total += file.lstat().st_size
    return Size(total, len(files))


def _remove(path: Path) -> None:
    """Remove a file; or rename a folder, so that no process takes it for whole, and remove it.

    Raises:
        OutputError: It can't be removed.
    """
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            return
        if not path.name.startswith(TRASH_PREFIX):
            path = path.rename(path.with_name(f"{TRASH_PREFIX}{uuid.uuid4().hex}"))
        # Another clean may be removing the same folder. If something remains, the second try raises the reason.
        shutil.rmtree(path, ignore_errors=True)
        with suppress(FileNotFoundError):
            shutil.rmtree(path)
    except OSError as error:
        raise OutputError(
            f"{path} can't be removed ({os.strerror(error.errno or 0)}): correct its permissions, then clean again"
        ) from error
