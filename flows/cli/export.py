"""`slidesam export`: files of the objects of a finished result, without segmenting anything."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slidesam.flows.cli.cluster import ClusterChanges, ClusterName, choose_profile
from slidesam.flows.cli.options import Allowed, Scheduler, Workers


def add_export_command(app: typer.Typer) -> None:
    """Add `slidesam export` to the command line."""
    app.command("export")(_export)


def _export(
    store: Annotated[Path, typer.Argument(metavar="RESULT", help="A result: <name>.ome.zarr in the output folder.")],
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="table, outlines, report, geoparquet, anndata or spatialdata. Can be repeated; by default what the run chose.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="NAME", help="Only this label image; by default all finished ones."),
    ] = None,
    simplify: Annotated[
        float | None,
        typer.Option(
            "--simplify", metavar="PX", help="How far outlines may be from the borders of the pixels, in pixels."
        ),
    ] = None,
    allowed: Allowed = None,
    cluster: ClusterName = None,
    cluster_changes: ClusterChanges = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Write files of a finished result, such as a table of its objects, their outlines, a report; nothing is segmented."""
    profile = choose_profile(cluster, cluster_changes, workers, scheduler)
    from slidesam.flows.cli.command import run_or_stop
    from slidesam.flows.cli.finished import finished_runs
    from slidesam.tasks.settings.parse import make_settings

    chosen = {"output.formats": formats, "output.simplify": simplify}
    overrides = {name: value for name, value in chosen.items() if value is not None}
    code = 0
    for record in finished_runs(store, label).values():
        settings = make_settings(record.settings, overrides)
        slide = str(record.slide.path)
        code = max(code, run_or_stop([slide], store.absolute().parent, settings, profile, tuple(allowed or ())))
    raise typer.Exit(code)
