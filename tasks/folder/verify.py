"""Check all finished results of an output folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run.layout import STORE_SUFFIX, RunPaths, list_file_lists, list_noted_runs, list_provenance
from slidesam.tasks.run.lock import LockedError, holders
from slidesam.tasks.run.records import Provenance, State
from slidesam.tasks.store.ome_zarr import list_own_labels
from slidesam.tasks.store.verify import Depth, FileCheck, check_image, check_objects, check_result, count_bytes, repair

_OWNER = "slidesam verify"


def verify_folder(
    output: Path, depth: Depth, advance: Callable[[int], None] = lambda size: None
) -> Iterator[FileCheck]:
    """Check the image of each slide with a finished result, then its label images.

    A result that seems to have been finished and has no record is reported, too, unless a run is at work on it.

    Args:
        output: The output folder, absolute.
        depth: What is compared.
        advance: Told of bytes that have been read.
    """
    for runs in _slides(output):
        is_listed = any(_has_list(run) for run in runs)
        yield check_image(runs[0], depth, advance, is_listed=is_listed)
        for run in runs:
            yield check_result(run, depth, advance)
            if run.objects("json").exists():
                yield check_objects(run)


def count_folder_bytes(output: Path, depth: Depth) -> int:
    """Return how many bytes `verify_folder` will read."""
    return sum(count_bytes(paths, depth) for runs in _slides(output) for paths in (runs[0].image, *runs))


def repair_findings(findings: list[FileCheck], depth: Depth = "whole") -> None:
    """Take back what is damaged; what a run is at work on is left, and named when all others are done.

    Raises:
        LockedError: Runs are at work on some.
        OutputError: Something can't be written.
    """
    locked: list[str] = []
    for finding in findings:
        try:
            repair(finding, depth, _OWNER)
        except LockedError as error:
            locked.append(str(error))
    if locked:
        raise LockedError("; ".join(locked))


def _slides(output: Path) -> list[list[RunPaths]]:
    """The runs that are finished, or seem to have been, by slide."""
    finished = {RunPaths.of_provenance(path) for path in list_provenance(output)}
    unrecorded = {
        *map(RunPaths.of_provenance, list_file_lists(output)),
        *(
            RunPaths.of_store(store, label)
            for store in output.glob(f"*{STORE_SUFFIX}")
            for label in list_own_labels(store)
        ),
        *(run for run in list_noted_runs(output) if _is_noted_finished(run)),
    } - finished
    busy = holders([run.lock for run in unrecorded])
    runs = finished | {run for run in unrecorded if run.lock not in busy}
    return [list(group) for _, group in groupby(sorted(runs, key=_key), key=lambda run: run.name)]


def _is_noted_finished(run: RunPaths) -> bool:
    with suppress(OutputError):
        state = State.read(run.state)
        return state is not None and state.status == "finished"
    return False


def _key(run: RunPaths) -> tuple[str, str]:
    return run.name, run.label


def _has_list(paths: RunPaths) -> bool:
    """Whether a run was finished by a version that lists files; also where its record is damaged."""
    with suppress(OutputError):
        record = Provenance.read(paths.provenance)
        if record is None:
            return paths.provenance.exists() or paths.file_list.exists()
        return record.file_list is not None
    return False
