"""Removing what finished runs don't need any more: their intermediate results, from which another stitching could be made.

    OUT/.slidesam/<name>/<label>/     paint-*, stitch-*, segment-* go; state.json stays, for `slidesam status`
    OUT/.slidesam/<name>/.image/      convert-*, rechunk-* go once all runs of the slide may be cleaned
    OUT/.slidesam/.jobs/              logs of jobs go when they are as old

Results lie elsewhere and are never touched. Nothing is removed of a run that isn't finished, or whose lock somebody holds;
clean holds it itself meanwhile, so that no run begins on what is about to go.

What goes is renamed first, so that it is there whole or not at all, and what is made of something goes before it: matches of
blocks that are segmented anew, maybe on another device, must not be there for a later run to take for its own.
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
from pathlib import Path
from typing import NamedTuple

from slidesam.tasks.errors import OutputError, in_one_line
from slidesam.tasks.run.layout import (
    IMAGE,
    IMAGE_STAGES,
    RUN_STAGES,
    RunPaths,
    list_job_logs,
    list_runs,
    list_slide_folders,
    work_root,
)
from slidesam.tasks.run.lock import LockedError, holder, locked
from slidesam.tasks.run.records import Provenance, State
from slidesam.tasks.run.status import count_blocks
from slidesam.tasks.settings.sections import RunSettings
from slidesam.tasks.settings.types import seconds_of

# What `write_atomic` and the lock leave where they are killed; files of that age are nobody's any more.
_HALF_WRITTEN = re.compile(r"\..+\.[0-9a-f]{32}\.partial")
_CLAIM = re.compile(r"\.+lock\.json\..+\.claim")
_LEFT_OVER_AFTER = 86400.0


class Size(NamedTuple):
    """How much there is.

    Attributes:
        bytes: Length of all files together.
        files: Their number.
    """

    bytes: int
    files: int


class Removed(NamedTuple):
    """What was removed of one run.

    Attributes:
        slide: The slide's name.
        label: The label image's name, or `.image` for what was made of the slide's image.
        bytes: Length of the removed files together.
        files: Their number.
        error: Why not all of it could be removed; empty if it was.
    """

    slide: str
    label: str
    bytes: int
    files: int
    error: str = ""


def clean_folder(
    output: Path, *, keep: float | None, dry_run: bool = False, now: datetime | None = None
) -> list[Removed]:
    """Removes intermediate results of finished runs, and what crashes left behind.

    Args:
        output: An output folder.
        keep: Seconds since a run finished for which its results stay; None = as its own `run.keep_work` says.
        dry_run: Only tell what would be removed; writes nothing.
        now: For tests.

    Returns:
        One entry per run of which something was removed, or should have been.

    Raises:
        OutputError: The output folder isn't there.
    """
    if not output.is_dir():
        raise OutputError(f"{output} is no folder: give the one that was named with --output")
    cleaning = _Cleaning(output, keep, dry_run, now or datetime.now(UTC))
    removals = [removed for slide in list_slide_folders(output) for removed in cleaning.slide(slide)]
    removals.append(cleaning.job_logs())
    return [removed for removed in removals if removed.files or removed.error]


def size_of(output: Path) -> Size:
    """How much the intermediate results of an output folder take, of all runs together."""
    return _size(work_root(output))


@dataclass(frozen=True)
class _Cleaning:
    """One call of `clean`."""

    output: Path
    keep: float | None
    dry_run: bool
    now: datetime

    def slide(self, folder: Path) -> Iterator[Removed]:
        """Cleans all that belongs to one slide."""
        for run in list_runs(folder):
            yield self.folder(run, RUN_STAGES, partial(list, [run]))
        image = RunPaths.of_work(folder / IMAGE)
        if image.work.is_dir():
            yield self.folder(image, IMAGE_STAGES, partial(_runs, folder))

    def job_logs(self) -> Removed:
        """Removes what jobs said long ago."""
        removed = Removed("logs of", "jobs", 0, 0)
        keep = seconds_of(RunSettings().keep_work) if self.keep is None else self.keep
        try:
            for path in list_job_logs(self.output):
                status = path.stat()
                # One that was just written may be of a job that runs.
                if self.now.timestamp() - status.st_mtime > max(keep, _LEFT_OVER_AFTER):
                    if not self.dry_run:
                        path.unlink(missing_ok=True)
                    removed = removed._replace(bytes=removed.bytes + status.st_size, files=removed.files + 1)
        except OSError as error:
            removed = removed._replace(error=in_one_line(error))
        return removed

    def folder(self, paths: RunPaths, stages: tuple[str, ...], runs: Callable[[], list[RunPaths]]) -> Removed:
        """Cleans one folder.

        Args:
            paths: Of a run, or of a slide's image.
            stages: What goes with it, in this order.
            runs: Finds the runs that use it, all of which have to be finished for long.
        """
        removed = Removed(paths.name, paths.label, 0, 0)
        try:
            for path in list(self._left_over(paths)):
                removed = self._remove(path, removed)
            if paths.stage_folders(*stages) and self._are_done(runs()):
                with ExitStack() as locks:
                    for user_paths in dict.fromkeys([*runs(), paths]):
                        self._lock(locks, user_paths)
                    # Once more: from now on only a run under a new label can begin, and that waits for the image's lock.
                    if self._are_done(runs()):
                        for stage in stages:
                            removed = self._remove_stage(paths, stage, removed)
        except LockedError:
            pass
        except OSError as error:
            removed = removed._replace(error=in_one_line(error))
        return removed

    def _are_done(self, runs: list[RunPaths]) -> bool:
        """Whether all these runs, and at least one, finished long enough ago."""
        return bool(runs) and all(self._is_done(run) for run in runs)

    def _is_done(self, run: RunPaths) -> bool:
        try:
            state, record = State.read(run.state), Provenance.read(run.provenance)
            if state is None or record is None or (state.status, record.status) != ("finished", "finished"):
                return False
            finished = datetime.fromisoformat(record.finished)
        except (OutputError, ValueError):
            # Of another version, or without a date: nobody can say since when it is finished.
            return False
        finished = finished if finished.tzinfo else finished.replace(tzinfo=UTC)
        keep = _keep_of(record) if self.keep is None else self.keep
        return (self.now - finished).total_seconds() >= keep

    def _lock(self, locks: ExitStack, paths: RunPaths) -> None:
        """Keeps runs from beginning."""
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
            # To make room is what clean is for. Where it finds none for a lock, no run that would begin does.
            _refuse_if_held(path)

    def _remove_stage(self, paths: RunPaths, stage: str, removed: Removed) -> Removed:
        if stage == "segment" and not self.dry_run:
            _note_blocks(paths)
        for path in paths.stage_folders(stage):
            removed = self._remove(path, removed)
        return removed

    def _remove(self, path: Path, removed: Removed) -> Removed:
        """Removes a file or folder, and adds it up."""
        size = _size(path)
        if not self.dry_run:
            _remove(path)
        return removed._replace(bytes=removed.bytes + size.bytes, files=removed.files + size.files)

    def _left_over(self, paths: RunPaths) -> Iterator[Path]:
        """What an earlier clean, or a process that was killed in the middle of writing, left in a folder."""
        for place, folders, files in os.walk(paths.work):
            folder = Path(place)
            yield from (folder / name for name in folders if name.startswith(".trash-"))
            # Zarr writes in its own ways.
            folders[:] = [name for name in folders if not name.startswith(".trash-") and not name.endswith(".zarr")]
            # While there is a lock its claims may matter; afterwards they mean nothing any more.
            for name in files:
                stray = _CLAIM.fullmatch(name) and paths.lock.name not in files
                if (stray or _HALF_WRITTEN.fullmatch(name)) and self._is_old(folder / name):
                    yield folder / name

    def _is_old(self, path: Path) -> bool:
        try:
            return self.now.timestamp() - path.lstat().st_mtime > _LEFT_OVER_AFTER
        except FileNotFoundError:
            return False


def _refuse_if_held(path: Path) -> None:
    if (owner := holder(path)) is not None:
        raise LockedError(f"{path} is held by {owner}")


def _keep_of(record: Provenance) -> float:
    """How long a run wants its intermediate results kept, in seconds."""
    try:
        return seconds_of(record.settings["run"]["keep_work"])
    except (KeyError, TypeError, ValueError, IndexError):
        # It was made before there was such a setting.
        return seconds_of(RunSettings().keep_work)


def _note_blocks(paths: RunPaths) -> None:
    """Writes down how many blocks are done, which `slidesam status` can't count any more once their marks are gone."""
    # On a full disk, or where the state is of another version, it shows none, which costs nothing but looks.
    with suppress(OutputError):
        state = State.read(paths.state)
        if state is None or not state.segment_folder or not (paths.work / state.segment_folder).is_dir():
            return
        n_done, n_blocks = count_blocks(paths, state.model_copy(update={"blocks_done": None}))
        state.model_copy(update={"blocks_done": n_done, "blocks": n_blocks}).write(paths.state)


def _runs(slide: Path) -> list[RunPaths]:
    """A slide's runs, all labels; a folder without anything is none of a run."""
    return [run for run in list_runs(slide) if any(run.work.iterdir())]


def _size(path: Path) -> Size:
    files = [path] if path.is_file() else [Path(place) / name for place, _, names in os.walk(path) for name in names]
    total = 0
    for file in files:
        # Another clean, or the run itself, may have been quicker.
        with suppress(FileNotFoundError):
            total += file.lstat().st_size
    return Size(total, len(files))


def _remove(path: Path) -> None:
    """Removes a file, or a folder under a name by which nobody takes it for whole.

    Raises:
        OutputError: It can't be removed.
    """
    try:
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        if not path.name.startswith(".trash-"):
            path = path.rename(path.with_name(f".trash-{uuid.uuid4().hex}"))
        # Another clean may be removing the same; what is there after that can't be removed, and the second try says why.
        shutil.rmtree(path, ignore_errors=True)
        with suppress(FileNotFoundError):
            shutil.rmtree(path)
    except OSError as error:
        raise OutputError(
            f"{path} can't be removed ({os.strerror(error.errno or 0)}): mend its permissions, then clean again"
        ) from error
