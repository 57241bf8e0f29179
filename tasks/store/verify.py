"""Check finished results by the lists of their files, and take back what is damaged: the same command then makes just that again.

Zarr's metadata files are written again from the list, at once. Of other damaged files nothing is kept, since a file that is gone
counts as not written: a tile of the image is converted again, a batch of blocks painted again. What vouches for them goes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import zarr

from slidesam.tasks.errors import OutputError
from slidesam.tasks.run.files import remove_synced
from slidesam.tasks.run.layout import IMAGE, RunPaths
from slidesam.tasks.run.lock import locked
from slidesam.tasks.run.records import FileList, Provenance
from slidesam.tasks.run.run import Run
from slidesam.tasks.store.file_list import (
    Damage,
    find_damage,
    find_metadata_damage,
    find_size_damage,
    restore_metadata,
)
from slidesam.tasks.store.groups import read_group
from slidesam.tasks.store.ome_zarr import is_damaged_root, is_finished, recreate_root, repair_list, unlist_label

Depth = Literal["sizes", "sample", "whole"]
"""What is compared: sizes, and what metadata files hold; also the content of some files; of all."""
# How many files a sample reads, of the image and of the label image each.
_SAMPLED = 32


@dataclass(frozen=True)
class FileCheck:
    """What was found of an image or label image.

    Attributes:
        paths: Its paths; those of the image have the label `IMAGE`.
        files: How many files are listed.
        size: Their bytes.
        damages: What is wrong.
        is_listed: Whether there is a list; results of version 0.1.0 have none.
        is_of_objects: Whether it is the table and the outlines of a label image's objects that were looked at.
    """

    paths: RunPaths
    files: int = 0
    size: int = 0
    damages: tuple[Damage, ...] = ()
    is_listed: bool = True
    is_of_objects: bool = False


def count_bytes(paths: RunPaths, depth: Depth = "whole") -> int:
    """Return how many bytes `check_files` will read of an image or label image."""
    with suppress(OutputError):
        listed = FileList.read(paths.file_list)
        return 0 if listed is None else sum(size for size, _ in _choose(listed, depth).values())
    return 0


def check_result(paths: RunPaths, depth: Depth, advance: Callable[[int], None] = lambda size: None) -> FileCheck:
    """Check a finished label image, and its record.

    Args:
        paths: Its paths.
        depth: What is compared.
        advance: Told of bytes that have been read.
    """
    try:
        record = Provenance.read(paths.provenance)
    except OutputError as error:
        return _unjudged(paths, paths.provenance, error)
    if record is None:
        what = "is damaged" if paths.provenance.exists() else "is gone: the result isn't finished"
        return FileCheck(paths, damages=(Damage(paths.provenance, what),))
    try:
        listed = FileList.read(paths.file_list)
    except OutputError as error:
        return _unjudged(paths, paths.file_list, error)
    damages = [] if is_finished(paths.store, paths.label) else [Damage(paths.store, f"doesn't list {paths.label}")]
    labels = paths.label_image.parent
    if labels.is_dir() and read_group(labels) is None:
        damages.append(Damage(labels, "has damaged metadata"))
    if record.file_list is None:
        return FileCheck(paths, damages=tuple(damages), is_listed=False)
    damage = find_damage(paths.file_list, record.file_list)
    if damage is not None or listed is None:
        return FileCheck(paths, damages=(*damages, damage or Damage(paths.file_list, "is damaged")))
    return _check(paths, listed, depth, advance, damages)


def check_objects(paths: RunPaths) -> FileCheck:
    """Check the files of a label image's objects, all of their content."""
    path = paths.objects("json")
    try:
        listed = FileList.read(path)
    except OutputError as error:
        return replace(_unjudged(paths, path, error), is_of_objects=True)
    if listed is None:
        return FileCheck(
            paths, damages=tuple(Damage(each, "is damaged") for each in [path] if each.exists()), is_of_objects=True
        )
    found = (find_damage(paths.output / name, expected) for name, expected in listed.files.items())
    damages = tuple(damage for damage in found if damage is not None)
    return FileCheck(
        paths, len(listed.files), sum(size for size, _ in listed.files.values()), damages, is_of_objects=True
    )


def check_image(
    paths: RunPaths, depth: Depth, advance: Callable[[int], None] = lambda size: None, *, is_listed: bool = True
) -> FileCheck:
    """Check the image of a store.

    Args:
        paths: Paths of any of the slide's runs.
        depth: What is compared.
        advance: Told of bytes that have been read.
        is_listed: Whether a list is expected.
    """
    paths = paths.image
    try:
        listed = FileList.read(paths.file_list)
    except OutputError as error:
        return _unjudged(paths, paths.file_list, error)
    if listed is not None:
        return _check(paths, listed, depth, advance, [])
    if not is_listed:
        damages = () if read_group(paths.store) else (Damage(paths.store, "has damaged metadata"),)
        return FileCheck(paths, damages=damages, is_listed=False)
    return FileCheck(paths, damages=(Damage(paths.file_list, "is gone or damaged"),))


def _unjudged(paths: RunPaths, path: Path, error: OutputError) -> FileCheck:
    """Describe a result whose record or list is of another version, or can't be read."""
    what = str(error).removeprefix(f"{path} ")
    return FileCheck(paths, damages=(Damage(path, what, is_certain=False),))


def _check(
    paths: RunPaths, listed: FileList, depth: Depth, advance: Callable[[int], None], damages: list[Damage]
) -> FileCheck:
    files, output = listed.files, paths.output
    damages = [*damages, *find_metadata_damage(listed, output), *find_size_damage(files, output)]
    known = {damage.path for damage in damages}
    for path, expected in _choose(listed, depth).items():
        if output / path not in known and (damage := find_damage(output / path, expected)) is not None:
            damages.append(damage)
        advance(expected[0])
    size = sum(size for size, _ in files.values()) + sum(len(text) for text in listed.metadata.values())
    return FileCheck(paths, len(files) + len(listed.metadata), size, tuple(damages))


def _choose(listed: FileList, depth: Depth) -> dict[str, tuple[int, int]]:
    """Choose the files to read."""
    files = listed.files
    if depth != "sample":
        return files if depth == "whole" else {}
    names = sorted(files)[:: max(1, len(files) // _SAMPLED)]
    return {name: files[name] for name in names}


def take_back(finding: FileCheck, *, even_unreadable: bool = False) -> None:
    """Write damaged metadata again, and remove what else is damaged, beginning with what vouches for it.

    Args:
        finding: What was found; the caller holds the lock of the image or label image.
        even_unreadable: Whether to remove what can't be read, too; what another version wrote can't, and may be sound.

    Raises:
        OutputError: Something can't be written or removed.
    """
    paths = finding.paths
    damages = [damage for damage in finding.damages if damage.is_certain or even_unreadable]
    if not damages:
        return
    if finding.is_of_objects:
        # The labels stay finished: the same command sees that files of their objects are missing.
        remove_synced(*(damage.path for damage in damages))
        return
    listed = FileList.read(paths.file_list)
    restored = set() if listed is None else {damage.path for damage in restore_metadata(listed, paths.output)}
    if paths.label != IMAGE and read_group(paths.store) is not None:
        repair_list(zarr.open_group(paths.store, mode="r+"), paths.label)
    damaged = [damage.path for damage in damages if damage.path not in restored]
    damaged = [path for path in damaged if not path.is_dir() or read_group(path) is None]
    if paths.label != IMAGE and (damaged or not is_finished(paths.store, paths.label)):
        remove_synced(paths.provenance)
        if read_group(paths.store) is not None:
            unlist_label(zarr.open_group(paths.store, mode="r+"), paths.label)
    remove_synced(*(path for path in damaged if not path.is_dir()))


def find_result_damage(run: Run) -> list[FileCheck]:
    """Find what a look at sizes and metadata shows of a run's image and label image; nothing of what isn't finished."""
    return [finding for finding in (*_find_image_damage(run), *_find_label_damage(run)) if finding.damages]


def heal_image(run: Run) -> Iterator[str]:
    """Take back what a look at sizes and metadata shows of the store's image, whose lock the caller holds; say what.

    Raises:
        OutputError: Something can't be written or removed.
    """
    if is_damaged_root(run.store, run.slide.path) and not run.paths.image.file_list.exists():
        # What its metadata was is noted once the image is finished.
        recreate_root(run.store, run.settings.image, run.slide.path)
        yield f"{run.store} had damaged metadata: its image is made again"
    yield from _heal(_find_image_damage(run))


def heal_labels(run: Run) -> Iterator[str]:
    """Take back what a look at sizes and metadata shows of a finished label image, whose lock the caller holds; say what.

    Raises:
        OutputError: Something can't be written or removed.
    """
    yield from _heal(_find_label_damage(run))


def _find_image_damage(run: Run) -> list[FileCheck]:
    is_listed = run.paths.image.file_list.exists() or _has_list(run.paths)
    return [check_image(run.paths, "sizes")] if is_listed else []


def _has_list(paths: RunPaths) -> bool:
    """Whether a finished run's record vouches for a list; then the image has one as well."""
    with suppress(OutputError):
        record = Provenance.read(paths.provenance)
        return record is not None and record.file_list is not None
    return False


def _find_label_damage(run: Run) -> list[FileCheck]:
    return [check_result(run.paths, "sizes")] if run.paths.provenance.exists() else []


def _heal(findings: list[FileCheck]) -> Iterator[str]:
    for finding in findings:
        if finding.damages:
            take_back(finding)
            yield f"{word_damages(finding)}: made again"


def repair(finding: FileCheck, depth: Depth, owner: str, *, wait: float = 0, even_unreadable: bool = False) -> None:
    """Take back what is damaged, under the lock of whoever could be writing it; it is looked at once more under that.

    Args:
        finding: What was found.
        depth: What is compared.
        owner: Who asks, for others that wait.
        wait: Seconds to wait for a run that is at work on it.
        even_unreadable: See `take_back`.

    Raises:
        LockedError: Another run is at work on it.
        OutputError: It can't be written.
    """
    paths = finding.paths
    with locked(paths.lock, owner, target=f"{paths.name} ({paths.label}) in {paths.output}", wait=wait):
        if finding.is_of_objects:
            found = check_objects(paths)
        else:
            found = check_image(paths, depth) if paths.label == IMAGE else check_result(paths, depth)
        take_back(found, even_unreadable=even_unreadable)


def word_damages(finding: FileCheck) -> str:
    """Name the first of what is wrong, and how many more there are."""
    more = len(finding.damages) - 1
    return f"{finding.damages[0]}" + (f" (and {more} more)" if more else "")
