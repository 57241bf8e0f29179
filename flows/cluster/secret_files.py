"""Files that only the user can read: keys of clusters, links of dashboards.

They may lie below a folder in which a whole group writes. There others can't look into a folder of ours, but can rename it and
put another in its place at any time. So what is opened is looked at, not its name: a file counts only in a folder
that is this user's and in which nobody else can put one.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path


def write_secret(path: Path, text: str) -> None:
    """Write a new file that only its owner can read.

    Raises:
        OSError: It exists, can't be written, or others could replace it.
    """
    with os.fdopen(_open_secret(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w") as file:
        file.write(text)


def read_secret(path: Path) -> str:
    """Read a file that only its owner can have written.

    Raises:
        OSError: It can't be read, or somebody else may have put it there.
    """
    with os.fdopen(_open_secret(path, os.O_RDONLY)) as file:
        return file.read()


def _open_secret(path: Path, flags: int) -> int:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        status = os.fstat(folder)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise PermissionError(errno.EACCES, "another user can write there", str(path.parent))
        return os.open(path.name, flags | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    except FileNotFoundError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(folder)
