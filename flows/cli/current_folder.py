"""Keeps the current folder from running code: it may hold a stranger's files, such as results that somebody sent.

1. Servers and workers are started by `python -m`, which looks for modules in the current folder first.
2. Prefect reads settings from `.env`, `prefect.toml` and `pyproject.toml` there, and a setting can name code or a server.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from slidesam.tasks.errors import SettingsError
from slidesam.tasks.segmenters.allowed import VARIABLE, is_path_allowed

_PREFECT_LINE = re.compile(rb"^\s*(export\s+)?[\"']?PREFECT_", re.IGNORECASE | re.MULTILINE)


def distrust_current_folder() -> None:
    """Take neither modules nor settings of Prefect from the current folder.

    Raises:
        SettingsError: It has settings of Prefect that nobody allows.
    """
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    for path in _find_prefect_settings(Path.cwd()):
        if not is_path_allowed(str(path)):
            raise SettingsError(
                f"{path} has settings of Prefect, which can run any code",
                f"start slidesam in another folder, or, if you know what they do, with {VARIABLE}={path}",
            )


def _find_prefect_settings(folder: Path) -> Iterator[Path]:
    for name in (".env", "prefect.toml", "pyproject.toml"):
        path = folder / name
        if path.is_file() and _has_prefect_settings(path):
            yield path


def _has_prefect_settings(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    if path.name == ".env":
        return _PREFECT_LINE.search(content) is not None
    if b"prefect" not in content and path.name == "pyproject.toml":
        return False
    try:
        values = tomllib.loads(content.decode())
    except ValueError:
        # Prefect can't read it either.
        return False
    return bool(values if path.name == "prefect.toml" else values.get("tool", {}).get("prefect"))
