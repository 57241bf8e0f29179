"""`slidesam report`: a page that shows all slides of an output folder side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from slidesam.flows.console import out
from slidesam.tasks.errors import SettingsError
from slidesam.tasks.run.layout import list_noted_runs, list_provenance


def add_report_command(app: typer.Typer) -> None:
    """Add `slidesam report` to the command line."""
    app.command("report")(_report)


def _report(
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder of earlier runs.")],
) -> None:
    """Write a page that shows all slides of a folder side by side: report.html in the folder."""
    if not output.is_dir():
        raise SettingsError(f"{output} is not a folder: give the folder that was named with --output")
    if not list_provenance(output) and not list_noted_runs(output):
        raise SettingsError(f"{output} has no results of slidesam: give the folder that was named with --output")
    from slidesam.tasks.pages.contact_sheet import write_contact_sheet

    out.print(Text(str(write_contact_sheet(output))))
