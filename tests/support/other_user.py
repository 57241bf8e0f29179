"""Another user of this host, without rights of its own: a number that no account has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

OTHER = 54321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user of this host")

# The imports are root's: the other user can't read the folder of this Python.
_PROGRAM = """
import asyncio, json, os, socket, ssl, sys
{imports}
os.setgroups([])
os.setgid({other})
os.setuid({other})
{code}
"""


@contextmanager
def as_other_user() -> Iterator[None]:
    """Let this process have the other user's rights on files while the code inside runs."""
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(OTHER)
    os.seteuid(OTHER)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


@contextmanager
def open_folder(mode: int = 0o755) -> Iterator[Path]:
    """A folder that others can enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="slidesam-test-"))
    folder.chmod(mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def run_python_as_other_user(code: str, *arguments: str, imports: str = "", prefix: Sequence[str] = ()) -> Any:
    """Run Python as the other user.

    Args:
        code: Program that prints JSON; `sys.argv[1:]` are the arguments.
        arguments: Of the program.
        imports: Imports that have to be done before the user changes.
        prefix: Command in front, such as one that enters a network namespace.

    Returns:
        What the code printed last.
    """
    program = _PROGRAM.format(imports=imports, other=OTHER, code=code)
    done = subprocess.run(
        [*prefix, sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
