"""Record how runs stand, in their `state.json`: `slidesam status` and `slidesam retry` read it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slidesam.tasks.errors import OutputError, in_one_line
from slidesam.tasks.run.layout import RunPaths, list_noted_runs
from slidesam.tasks.run.lock import holders
from slidesam.tasks.run.records import FileFacts, Params, Provenance, State
from slidesam.tasks.run.regions import list_region_blocks
from slidesam.tasks.run.run import Run
from slidesam.tasks.run.stage_folders import SegmentFolder

UNREADABLE = "unreadable"
"""In place of a run's status: its `state.json` is damaged, or of another version."""
UNFINISHED = "unfinished"
"""In place of `finished` where the result has no record (any more): `slidesam verify --repair` takes it away."""


@dataclass(frozen=True)
class RunState:
    """How a run stands.

    Attributes:
        slide: The slide's name.
        label: Name of the label image.
        state: What is recorded.
        blocks_done: How many blocks are segmented.
        blocks: How many there are to segment, if that is known.
    """

    slide: str
    label: str
    state: State
    blocks_done: int
    blocks: int | None


def write_state(output: Path, name: str, label: str, status: str, **facts: Any) -> None:
    """Record how a run stands: running, stopped, failed or finished.

    Args:
        output: The output folder.
        name: The slide's name.
        label: Name of the label image.
        status: How it stands.
        **facts: Further fields of `State`.
    """
    update_time = datetime.now(UTC).isoformat(timespec="seconds")
    State(status=status, updated=update_time, **facts).write(RunPaths(output, name, label).state)


def read_state(output: Path, name: str, label: str) -> State:
    """Read what is recorded of a run; a state without a status where nothing is."""
    return State.read(RunPaths(output, name, label).state) or State()


def record_finished(run: Run, record: Provenance) -> None:
    """Correct what `slidesam status` shows of a finished run: a later call may have failed early."""
    if read_state(run.output, run.name, run.label).status != "finished":
        write_state(
            run.output, run.name, run.label, "finished",
            objects=record.objects, blocks=len(run.grid), segment_folder=run.segment_folder.path.name,
            region_blocks=list_region_blocks(run), slide_path=run.slide.path, warnings=record.warnings,
        )  # fmt: skip


def read_states(output: Path) -> list[RunState]:
    """Read how all runs of an output folder stand, by name and label; count their blocks."""
    return [_read_run(paths) for paths in list_noted_runs(output)]


def count_blocks(paths: RunPaths, state: State) -> tuple[int, int | None]:
    """Count a run's segmented blocks, and those to segment; None where that isn't known."""
    folder = find_segment_folder(paths, state)
    if folder is None:
        return state.blocks_done or 0, state.blocks
    done, blocks, n_blocks = folder.list_results(), state.region_blocks, state.blocks
    with suppress(OutputError):
        params = Params.read(folder.params)
        if params is not None and params.blocks is not None:
            blocks = params.blocks if blocks is None else tuple(set(blocks).intersection(params.blocks))
    if blocks is not None:
        # Others may have been done for other regions.
        done, n_blocks = done.intersection(blocks), len(blocks)
    return len(done) if state.blocks_done is None else state.blocks_done, n_blocks


def find_segment_folder(paths: RunPaths, state: State) -> SegmentFolder | None:
    """Find the folder with a run's blocks; None if there is none.

    Others may have written the state file, so a name that leads elsewhere is none.
    """
    names = {folder.name: folder for folder in paths.stage_folders("segment")}
    folder = names.get(state.segment_folder or "")
    return None if folder is None else SegmentFolder(folder)


def _read_run(paths: RunPaths) -> RunState:
    try:
        state, reason = State.read(paths.state), f"{paths.state} is damaged"
        if state is not None:
            if state.status == "finished" and not paths.provenance.exists():
                error = f"{paths.provenance} is gone: `slidesam segment` with the same settings makes the result again"
                state = state.model_copy(update={"status": UNFINISHED, "error": error})
            return RunState(paths.name, paths.label, state, *count_blocks(paths, state))
    except OSError as error:
        # Of another version, or another user's.
        reason = in_one_line(error)
    unreadable = State(status=UNREADABLE, error=f"{reason}; `slidesam segment` with the same settings writes it again")
    return RunState(paths.name, paths.label, unreadable, 0, None)


def list_unfinished(output: Path) -> list[RunState]:
    """List the runs that failed, were stopped or were killed, or whose state is unknown; none that is running."""
    runs = [run for run in read_states(output) if run.state.status in ("failed", "stopped", "running", UNREADABLE)]
    locks = [RunPaths(output, run.slide, run.label).lock for run in runs]
    held = holders(locks)
    return [run for run, lock in zip(runs, locks, strict=True) if lock not in held]


def describe_file(path: Path) -> FileFacts | None:
    """Describe a file so that a change or replacement shows; None if there is no such file.

    A folder's times don't tell about files deeper in it, so the newest file counts.
    """
    stats = []
    with suppress(OSError):
        for file in [path, *(path.rglob("*") if path.is_dir() else ())]:
            # A dangling link, or a file that is removed meanwhile, doesn't count.
            with suppress(OSError):
                stats.append(file.stat())
    if not stats or not path.exists():
        return None
    return FileFacts(
        files=len(stats),
        size=sum(stat.st_size for stat in stats),
        modified=max(stat.st_mtime_ns for stat in stats),
        changed=max(stat.st_ctime_ns for stat in stats),
    )


def find_refusal(state: State, slide: Path) -> str | None:
    """Say why a slide need not be tried again: its file made it fail and is as it was. None if it may be tried.

    Args:
        state: What is recorded of its last run.
        slide: The slide's path.
    """
    if state.status != "failed" or state.file is None or state.file != describe_file(slide):
        return None
    return str(state.error)
