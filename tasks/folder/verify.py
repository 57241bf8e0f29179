"""Check all finished results of an output folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run.layout import RunPaths, list_provenance
from slidesam.tasks.run.records import Provenance
from slidesam.tasks.store.verify import Depth, FileCheck, check_image, check_result, count_bytes, repair

_OWNER = "slidesam verify"


def verify_folder(
    output: Path, depth: Depth, advance: Callable[[int], None] = lambda size: None
) -> Iterator[FileCheck]:
    """Check the image of each slide with a finished result, then its label images.

    Args:
        output: The output folder, absolute.
        depth: What is compared.
        advance: Told of bytes that have been read.
    """
    for runs in _slides(output):
        is_listed = any(_has_list(run) for run in runs)
        yield check_image(runs[0], depth, advance, is_listed=is_listed)
        yield from (check_result(run, depth, advance) for run in runs)


def count_folder_bytes(output: Path, depth: Depth) -> int:
    """Return how many bytes `verify_folder` will read."""
    return sum(count_bytes(paths, depth) for runs in _slides(output) for paths in (runs[0].image, *runs))


def repair_findings(findings: list[FileCheck], depth: Depth = "whole") -> None:
    """Take back what is damaged.

    Raises:
        OutputError: Another run is at work on it, or it can't be written.
    """
    for finding in findings:
        repair(finding, depth, _OWNER)


def _slides(output: Path) -> list[list[RunPaths]]:
    """The finished runs, by slide."""
    runs = [RunPaths.of_provenance(path) for path in list_provenance(output)]
    return [list(group) for _, group in groupby(sorted(runs, key=_key), key=lambda run: run.name)]


def _key(run: RunPaths) -> tuple[str, str]:
    return run.name, run.label


def _has_list(paths: RunPaths) -> bool:
    """Whether a run was finished by a version that lists files; also where its record is damaged."""
    with suppress(OutputError):
        record = Provenance.read(paths.provenance)
        return record is None or record.file_list is not None
    return False
