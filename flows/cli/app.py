"""The `slidesam` command. Quick to import: commands import Prefect, Dask and the readers if they need them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from slidesam.flows.cli.cluster import ClusterChanges, ClusterName, add_cluster_commands, choose_profile
from slidesam.flows.cli.compare import add_compare_command
from slidesam.flows.cli.current_folder import distrust_current_folder
from slidesam.flows.cli.export import add_export_command
from slidesam.flows.cli.finished import finished_runs
from slidesam.flows.cli.models import add_models_commands
from slidesam.flows.cli.options import (
    Allowed,
    Output,
    Overrides,
    Scheduler,
    SegmenterKind,
    SettingsFile,
    Workers,
    load_settings,
)
from slidesam.flows.cli.report import add_report_command
from slidesam.flows.cli.trial import add_try_command
from slidesam.flows.cli.verify import add_verify_command
from slidesam.flows.cli.view import add_view_command
from slidesam.flows.console import out, say, say_failed
from slidesam.tasks.errors import OutputError, SettingsError
from slidesam.tasks.settings.parse import make_settings
from slidesam.tasks.settings.types import seconds_of

if TYPE_CHECKING:
    from slidesam.tasks.folder.clean import Removed, Size

# Options with which nothing runs.
_HELP = {"-h", "--help", "--version"}

app = typer.Typer(
    name="slidesam",
    help="Segment whole-slide images into instances, with micro-sam or other models, on this machine or a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

add_cluster_commands(app)
add_models_commands(app)
add_verify_command(app)
add_export_command(app)
add_report_command(app)
add_compare_command(app)
add_try_command(app)
add_view_command(app)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        out.print(f"slidesam {version('slidesam')}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and all logs.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Take the options that all commands share."""
    # `main` reads --debug, so that it can stand anywhere in the command.


@app.command("segment")
def segment_command(
    slides: Annotated[
        list[str],
        typer.Argument(
            metavar="SLIDE...",
            help="Slide files, OME-Zarr folders, folders of slides, quoted patterns, or CSV manifests (a column path, and "
            "optional columns name and settings such as blocks.halo).",
        ),
    ],
    output: Output,
    settings: SettingsFile = None,
    segmenter: SegmenterKind = None,
    overrides: Overrides = None,
    allowed: Allowed = None,
    cluster: ClusterName = None,
    cluster_changes: ClusterChanges = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Segment slides, here or on a cluster. Run the same command again to resume."""
    run_settings, code = load_settings(settings, segmenter, overrides, allowed)
    profile = choose_profile(cluster, cluster_changes, workers, scheduler)
    from slidesam.flows.cli.command import run_or_stop

    raise typer.Exit(run_or_stop(slides, output, run_settings, profile, code))


@app.command("retry")
def retry_command(
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder of earlier runs.")],
    allowed: Allowed = None,
    cluster: ClusterName = None,
    cluster_changes: ClusterChanges = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Run slides again that failed or were stopped, with their settings; only missing blocks are computed.

    A run of a deployment is put back in its queue, and the deployment's worker runs it. A slide that failed because of its file
    is skipped until the file changes.
    """
    if not output.is_dir():
        raise SettingsError(f"{output} is not a folder: give the folder that was named with --output")
    is_profile_given = any(option is not None for option in (cluster, cluster_changes, workers, scheduler))
    profile = choose_profile(cluster, cluster_changes, workers, scheduler) if is_profile_given else None
    from slidesam.flows.cli.command import retry_or_stop

    raise typer.Exit(retry_or_stop(output, profile, tuple(allowed or ())))


@app.command("inspect")
def inspect_command(
    slide: Annotated[Path, typer.Argument(metavar="SLIDE", help="Slide file or OME-Zarr folder.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output folder, to show which results exist already.")
    ] = None,
    settings: SettingsFile = None,
    segmenter: SegmenterKind = None,
    overrides: Overrides = None,
    allowed: Allowed = None,
) -> None:
    """Show what a slide contains and what `segment` would do with it; read metadata and a few pixels."""
    from slidesam.flows.cli.tables import slide_table
    from slidesam.tasks.slides.decimation import mark_decimated
    from slidesam.tasks.slides.inspect import inspect_slide

    run_settings, code = load_settings(settings, segmenter, overrides, allowed)
    facts = mark_decimated(inspect_slide(slide, run_settings.slide))
    out.print(slide_table(facts, run_settings, output, code))


@app.command("status")
def status_command(
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder of earlier runs.")],
) -> None:
    """Show the status of all slides of an output folder."""
    from slidesam.flows.cli.tables import status_table
    from slidesam.tasks.run.status import read_states

    if not output.is_dir():
        raise SettingsError(f"{output} is not a folder: give the folder that was named with --output")
    states = read_states(output)
    out.print(status_table(states, output) if states else Text(f"{output}: no results of slidesam here"))


@app.command("seams")
def seams_command(
    store: Annotated[Path, typer.Argument(metavar="RESULT", help="A result: <name>.ome.zarr in the output folder.")],
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="NAME", help="Only this label image; by default all finished ones."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="List all seams, not only the ten with most disagreements.")
    ] = False,
) -> None:
    """Show how well blocks agree on objects at their seams, and whether the halo is wide enough."""
    from slidesam.flows.cli.tables import seams_view

    runs = finished_runs(store, label)
    with_report = [record for record in runs.values() if record.seams is not None]
    for number, record in enumerate(with_report):
        out.print(*([""] if number else []), seams_view(record, everything=everything), sep="\n")
    without = [name for name, record in runs.items() if record.seams is None]
    if without:
        raise OutputError(
            f"{store}: {' and '.join(without)} was made by a version of slidesam without the report on seams: "
            "segment the slide again to get one"
        )


@app.command("doctor")
def doctor_command(
    cluster: ClusterName = None,
    cluster_changes: ClusterChanges = None,
    scheduler: Scheduler = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the results, to check it here and on the nodes."),
    ] = None,
    settings: SettingsFile = None,
    segmenter: SegmenterKind = None,
    overrides: Overrides = None,
    allowed: Allowed = None,
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Longest time to wait for workers.")] = 120.0,
    try_model: Annotated[
        bool,
        typer.Option(
            "--try-model",
            help="Segment a small tile on each kind of worker, with nuclei-small and with the settings' model; this takes up to "
            "some minutes without a GPU.",
        ),
    ] = False,
) -> None:
    """Check what a run needs, here and on the nodes (by one small job of each kind), and show how to repair it."""
    run_settings, code = load_settings(settings, segmenter, overrides, allowed)
    profile = choose_profile(cluster, cluster_changes, scheduler=scheduler)
    from slidesam.flows.doctor.doctor import doctor as examine

    raise typer.Exit(examine(profile, run_settings, output, timeout, code, try_model=try_model))


@app.command("clean")
def clean_command(
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="Output folder of earlier runs.")],
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Keep intermediate results for this time after a run has finished, e.g. 2d; by default run.keep_work.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove them however recently the runs finished.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")] = False,
) -> None:
    """Remove intermediate results of finished runs, and jobs that killed runs left in the queue; unfinished runs keep theirs."""
    from slidesam.flows.prefect_api.leftovers import end_all_leftovers
    from slidesam.tasks.folder.clean import clean_folder, size_of

    if not output.is_dir():
        raise SettingsError(f"{output} is not a folder: give the folder that was named with --output")
    if not dry_run:
        end_all_leftovers(output, lambda note: out.print(Text(note)))
    removed = clean_folder(
        output, keep=0.0 if everything else None if keep is None else _seconds(keep), dry_run=dry_run
    )
    for run in removed:
        say("[red]✗[/]" if run.error else " ", f"{run.slide} {run.label}: {_amount(run)} {run.error}")
    verb, remainder = ("would be removed", "there are") if dry_run else ("removed", "left")
    total = sum(run.bytes for run in removed if not run.error) / 2**20
    out.print(f"{total:,.1f} MiB of intermediate results {verb}; {remainder}: {_amount(size_of(output))}")
    if any(run.error for run in removed):
        raise typer.Exit(1)


def _amount(size: Removed | Size) -> str:
    return f"{size.bytes / 2**20:,.1f} MiB in {size.files:,} files"


def _seconds(duration: str) -> float:
    """Return the seconds of a duration such as 2d.

    Raises:
        SettingsError: It isn't a duration.
    """
    return seconds_of(make_settings(overrides={"run.keep_work": duration}).run.keep_work)


@app.command("settings")
def show_settings(settings: SettingsFile = None, segmenter: SegmenterKind = None, overrides: Overrides = None) -> None:
    """Print all settings with their values and explanations, as YAML for --settings."""
    from slidesam.flows.cli.tables import settings_yaml

    sys.stdout.write(settings_yaml(load_settings(settings, segmenter, overrides)[0]))


@app.command("demo")
def demo_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the demo slide and the results.")] = Path(
        "demo-output"
    ),
    segmenter: Annotated[
        str,
        typer.Option(
            "--segmenter", help="micro-sam with the model that slidesam ships, or watershed on a larger slide."
        ),
    ] = "micro-sam",
    workers: Workers = None,
) -> None:
    """Make a slide from a histology picture and segment its nuclei. Needs neither data nor weights."""
    from slidesam.flows.cli.command import run_or_stop
    from slidesam.flows.cluster.cluster import LocalProfile
    from slidesam.tasks.folder.demo import choose_demo_slide, demo_settings, make_demo_slide

    settings, demo = demo_settings(segmenter), choose_demo_slide(segmenter)
    slide = output / demo.name
    if not slide.exists():
        say("making", str(slide))
        make_demo_slide(slide, demo.side, demo.zoom)
    raise typer.Exit(run_or_stop([str(slide)], output, settings, LocalProfile(workers=workers)))


def main() -> None:
    """Run the command: an error becomes one line and exit code 1, wrong usage is 2, Ctrl-C 130."""
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ["SLIDESAM_DEBUG"] = "1"
    else:
        # People read the console; the whole log is in the Prefect UI. Workers inherit this.
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        # What can't be sent to a server that is gone would be printed, item by item.
        os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    try:
        if not _HELP.intersection(sys.argv):
            distrust_current_folder()
        app()
    except Exception as error:  # noqa: BLE001 (whatever it is, in a sentence; --debug shows the traceback)
        say_failed(error)
        sys.exit(1)
