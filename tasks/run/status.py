"""How the runs of an output folder stand: their `state.json`, for `slidesam status` and for whoever tries failed ones again."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slidesam.tasks.run.files import read_json, write_json
from slidesam.tasks.run.layout import RunPaths, SegmentFolder, list_noted_runs
from slidesam.tasks.run.lock import holder
from slidesam.tasks.run.marks import Marks
from slidesam.tasks.run.run import Run


def write_state(output: Path, name: str, label: str, status: str, **facts: Any) -> None:
    """Notes how a run stands: running, stopped, failed or finished."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(RunPaths(output, name, label).state, {"status": status, "updated": now, **facts})


def read_state(output: Path, name: str, label: str) -> dict[str, Any]:
    """What is noted of a run; empty where nothing is."""
    return read_json(RunPaths(output, name, label).state) or {}


def note_finished(run: Run, facts: dict[str, Any]) -> None:
    """Sets right what `slidesam status` would show of a run that is finished: a later call may have failed early."""
    if read_state(run.output, run.name, run.label).get("status") != "finished":
        started = {
            "blocks": len(run.grid),
            "segment_folder": run.segment_folder.path.name,
            "slide_path": str(run.slide.path),
        }
        write_state(run.output, run.name, run.label, "finished", objects=facts["objects"], **started)


def read_states(output: Path) -> list[dict[str, Any]]:
    """The noted states of all runs of an output folder, by name and label; blocks done are counted anew."""
    states = []
    for paths in list_noted_runs(output):
        state = read_json(paths.state) or {"status": "unreadable"}
        segment, done = state.get("segment_folder"), 0
        if segment:
            folder = SegmentFolder(paths.work / segment)
            done, kept = len(Marks(folder).names()), (read_json(folder.params) or {}).get("blocks")
            if kept is not None:
                state["blocks"] = len(kept)
        states.append({"slide": paths.name, "label": paths.label, "blocks_done": done, **state})
    return states


def unfinished(output: Path) -> list[dict[str, Any]]:
    """The states of runs that failed, were stopped or were killed, as `read_states` returns them; none that is at work."""
    left = [state for state in read_states(output) if state["status"] in ("failed", "stopped", "running")]
    return [state for state in left if holder(RunPaths(output, state["slide"], state["label"]).lock) is None]


def file_facts(path: Path) -> dict[str, int] | None:
    """What tells whether a file has been changed or replaced since; None where there is none.

    Times of a folder say nothing of what lies deeper in it, so a folder is as changed as its newest file.
    """
    known = []
    with suppress(OSError):
        for file in [path, *(path.rglob("*") if path.is_dir() else ())]:
            # A link to nowhere, or a file that goes while one looks, is no file of it.
            with suppress(OSError):
                known.append(file.stat())
    if not known or not path.exists():
        return None
    return {
        "files": len(known),
        "size": sum(each.st_size for each in known),
        "modified": max(each.st_mtime_ns for each in known),
        # Of the inode: another owner or permission can be the cure.
        "changed": max(each.st_ctime_ns for each in known),
    }


def unchanged_since_refused(state: dict[str, Any], slide: Path) -> str | None:
    """Why a slide need not be tried again: what its file made it fail with, if the file is as it was; else None.

    Args:
        state: What is noted of its last run.
        slide: The slide's path.
    """
    if state.get("status") != "failed" or not state.get("file") or state["file"] != file_facts(slide):
        return None
    return str(state.get("error"))
