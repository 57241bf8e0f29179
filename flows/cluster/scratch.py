"""A folder for temporary files of workers that other users of the machine can't enter, and haven't made.

Dask would take a folder of a fixed name in /tmp for all users, whoever made it: who owns that folder can replace what workers
import from it, and have files of its users overwritten through links.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def make_scratch_folder(base: str | Path | None = None) -> Path:
    """Return this user's folder for temporary files of workers; make it if it isn't there.

    Args:
        base: Where it lies; None = where Dask's would lie.

    Raises:
        OSError: It can't be made.
    """
    if base is None:
        import dask

        base = dask.config.get("temporary-directory", None) or tempfile.gettempdir()
    Path(base).mkdir(parents=True, exist_ok=True)
    folder = Path(base) / f"slidesam-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return folder
    # Somebody else took the name.
    return Path(tempfile.mkdtemp(prefix="slidesam-", dir=base))
