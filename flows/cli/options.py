"""Options that several commands share, and the settings that they make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from slidesam.flows.cli.cluster import read_overrides
from slidesam.tasks.segmenters.allowed import list_own_words
from slidesam.tasks.settings.methods import SEGMENTER_KINDS
from slidesam.tasks.settings.parse import add_values, make_settings, read_settings_file, read_site_settings
from slidesam.tasks.settings.sections import Settings

SettingsFile = Annotated[
    Path | None, typer.Option("--settings", help="YAML file with settings. `slidesam settings` prints one.")
]
SegmenterKind = Annotated[
    str | None, typer.Option("--segmenter", metavar="KIND", help=f"Segmenter: one of {', '.join(SEGMENTER_KINDS)}.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="One setting, e.g. blocks.halo=64. Can be repeated.")
]
Allowed = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="CODE",
        help="Code that a settings file, manifest or earlier run may name: a segmenter.target (package.module:name or "
        "package.module), or the path of a checkpoint with segmenter.trust. Can be repeated.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, help="Worker processes on this machine; by default one per core and 8 GiB of memory."
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="Address of a Dask cluster that runs already (--cluster attach), e.g. tls://10.0.0.5:8786.",
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]


def load_settings(
    path: Path | None, segmenter: str | None, overrides: Sequence[str] | None, allowed: Sequence[str] | None = None
) -> tuple[Settings, tuple[str, ...]]:
    """Read settings from a YAML file and command-line overrides.

    Args:
        path: The file, whose values go on top of those that the site begins with (SLIDESAM_SETTINGS).
        segmenter: Kind of segmenter.
        overrides: What `--set` was given.
        allowed: What `--allow` was given.

    Returns:
        The settings, and the code that the person allows: by --allow, or by naming it with --set. The file allows none, because
        it is its writer's word.

    Raises:
        SettingsError: The file can't be read, a name is unknown or a value can't be used.
    """
    values = read_site_settings()
    if path is not None:
        values = add_values(values, read_settings_file(path))
    changes: dict[str, Any] = {} if segmenter is None else {"segmenter.kind": segmenter}
    changes |= read_overrides(overrides or (), "--set", "setting")
    settings = make_settings(values, changes)
    return settings, (*list_own_words(settings.segmenter, changes), *(allowed or ()))
