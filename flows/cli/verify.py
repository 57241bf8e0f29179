"""`slidesam verify`: whether finished results are as they were written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from slidesam.flows.console import err, out, say
from slidesam.tasks.errors import SettingsError
from slidesam.tasks.run.layout import IMAGE

if TYPE_CHECKING:
    from slidesam.tasks.store.verify import Depth, FileCheck

# So many damaged files of a result are named.
_NAMED = 10


def add_verify_command(app: typer.Typer) -> None:
    """Add `slidesam verify` to the command line."""
    app.command("verify")(_verify)


def _verify(
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder of finished runs.")],
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Take back what is damaged, so that `slidesam segment` with the same settings makes it again.",
        ),
    ] = False,
    sample: Annotated[
        bool, typer.Option("--sample", help="Read some files of each result only; sizes and metadata of all.")
    ] = False,
) -> None:
    """Compare all files of finished results with the checksums that were noted; exit with 1 if something is wrong."""
    if not output.is_dir():
        raise SettingsError(f"{output} is not a folder: give the folder that was named with --output")
    from slidesam.tasks.folder.verify import count_folder_bytes, repair_findings, verify_folder

    output = output.resolve()
    depth: Depth = "sample" if sample else "whole"
    bar = Progress(
        TextColumn("verifying"), BarColumn(bar_width=20), DownloadColumn(True), TimeRemainingColumn(), console=err,
        transient=True, disable=not err.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=count_folder_bytes(output, depth))
        findings = list(verify_folder(output, depth, lambda size: bar.advance(task, size)))
    if not findings:
        out.print(Text(f"{output}: no finished results of slidesam here"))
        raise typer.Exit(1)
    out.print(_table(findings))
    damaged = [finding for finding in findings if finding.damages]
    for line in _damage_lines(damaged):
        say("[red]✗[/]", line)
    if not damaged:
        return
    if repair:
        repair_findings(damaged)
        damages = [damage for finding in damaged for damage in finding.damages]
        if any(damage.is_certain for damage in damages):
            out.print("taken back: run `slidesam segment` on these slides, with the same settings, to make it again")
        for paths in (finding.paths for finding in damaged if finding.paths.label != IMAGE):
            if not paths.provenance.exists() and not paths.stage_folders("segment"):
                say("[yellow]note:[/]", f"{paths.name} ({paths.label}): its intermediate results are cleaned, all its blocks "
                    "are segmented again")  # fmt: skip
        if not all(damage.is_certain for damage in damages):
            out.print("what can't be read is left as it is: move it away if it is to be made again")
    else:
        out.print(
            "`slidesam verify --repair` takes back what is damaged, so that the same command makes just that again; a label "
            "image whose intermediate results are cleaned is segmented again"
        )
    raise typer.Exit(1)


def _table(findings: list[FileCheck]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("slide", "result", "files", "MiB", "state"):
        table.add_column(column, justify="right" if column in ("files", "MiB") else "left")
    for finding in findings:
        n_damages = len(finding.damages)
        state = (
            Text("sound", "green") if finding.is_listed else Text("no checksums (made by an earlier version)", "yellow")
        )
        if n_damages:
            state = Text(f"damaged: {n_damages} file{'' if n_damages == 1 else 's'}", "red")
        counted = (f"{finding.files:,}", f"{finding.size / 2**20:,.1f}") if finding.files else ("", "")
        table.add_row(Text(finding.paths.name), Text(_result(finding)), *counted, state)
    return table


def _result(finding: FileCheck) -> str:
    label = finding.paths.label
    return "image" if label == IMAGE else f"{label}, objects" if finding.is_of_objects else label


def _damage_lines(damaged: list[FileCheck]) -> Iterator[str]:
    for finding in damaged:
        name = f"{finding.paths.name} ({_result(finding)})"
        yield from (f"{name}: {damage}" for damage in finding.damages[:_NAMED])
        if len(finding.damages) > _NAMED:
            yield f"{name}: and {len(finding.damages) - _NAMED} more"
