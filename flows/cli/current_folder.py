"""Keeps the current folder from running code: it may hold a stranger's files, such as results that somebody sent.

1. Servers and workers are started by `python -m`, which looks for modules in the current folder first.
2. Prefect reads settings from `.env`, `prefect.toml` and `pyproject.toml` there, and a setting can name code or a server.

Numba reads settings there, too: `slidesam.tasks.labels.kernels` makes it forget them, in every process.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from dotenv import dotenv_values

from slidesam.tasks.errors import SettingsError, in_one_line
from slidesam.tasks.segmenters.allowed import VARIABLE, is_path_allowed


def distrust_current_folder() -> None:
    """Take neither modules nor settings of Prefect from the current folder.

    Raises:
        SettingsError: It has settings of Prefect that nobody allows, or a file at which Prefect would stop.
    """
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    for name in (".env", "prefect.toml", "pyproject.toml"):
        path = Path.cwd() / name
        if path.exists() and not is_path_allowed(str(path)) and _has_prefect_settings(path):
            raise SettingsError(
                f"{path} has settings of Prefect, which can run any code",
                f"start slidesam in another folder, or, if you know what they do, with {VARIABLE}={path}",
            )


def _has_prefect_settings(path: Path) -> bool:
    """Tell whether Prefect finds settings in a file; it reads all of them by these libraries.

    Raises:
        SettingsError: The file can't be read, at which Prefect would stop.
    """
    if not path.is_file():
        # Prefect reads `.env` from a pipe, too.
        return path.is_fifo()
    try:
        if path.name == ".env":
            return any(name.upper().startswith("PREFECT_") for name in dotenv_values(path, interpolate=False))
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{path} can't be read, and Prefect would stop at it: {in_one_line(error)}",
            "start slidesam in another folder, or correct the file",
        ) from error
    return bool(values if path.name == "prefect.toml" else values.get("tool", {}).get("prefect"))
