"""Write a folder of results: whole or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slidesam.tasks.errors import SlidesamError
from slidesam.tasks.run.files import make_folder, make_output_error, sync_files, sync_folders
from slidesam.tasks.run.marks import remove_stage


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Write a folder under another name; when all of it has reached the disk, it gets its own. An earlier one is removed then.

    Args:
        path: The folder.

    Raises:
        OutputError: It can't be written.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        make_folder(path.parent)
        beside.mkdir()
        yield beside
        written = [*beside.rglob("*")]
        sync_files(each for each in written if each.is_file())
        sync_folders([*(each for each in written if each.is_dir()), beside])
        if path.is_dir():
            remove_stage(path)
        beside.replace(path)
        sync_folders([path.parent])
    except BaseException as error:
        # Whatever ended it: nothing half-written stays.
        shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, SlidesamError):
            raise make_output_error(path, error) from error
        raise
