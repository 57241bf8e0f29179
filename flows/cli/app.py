"""The `slidesam` command. Light at import: Prefect, Dask and the readers load in the commands that need them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from slidesam.flows.cli.cluster import ClusterChanges, ClusterName, add_cluster_commands, choose_profile, read_overrides
from slidesam.flows.cli.models import add_models_commands
from slidesam.flows.console import out, say, say_failed
from slidesam.tasks.errors import OutputError, SettingsError
from slidesam.tasks.settings.methods import SEGMENTER_KINDS
from slidesam.tasks.settings.parse import make_settings, read_settings_file
from slidesam.tasks.settings.sections import Settings
from slidesam.tasks.settings.types import seconds_of

if TYPE_CHECKING:
    from slidesam.tasks.folder.clean import Removed, Size

app = typer.Typer(
    name="slidesam",
    help="Instance segmentation of whole-slide images with micro-sam, on Dask, run and watched through Prefect.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SettingsFile = Annotated[
    Path | None, typer.Option("--settings", help="YAML file with settings; `slidesam settings` prints one.")
]
SegmenterKind = Annotated[
    str | None, typer.Option("--segmenter", metavar="KIND", help=f"One of {', '.join(SEGMENTER_KINDS)}.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="One setting, e.g. blocks.halo=64; may be repeated.")
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Worker processes on this machine; by default one per core and 8 GiB."),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="Use a Dask cluster that runs already (--cluster attach), e.g. tcp://10.0.0.5:8786.",
    ),
]
add_cluster_commands(app)
add_models_commands(app)
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]
# What the names of a store and of the file on its making end with, after the slide's name and the label.


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
    """Options that all commands share."""
    # Read by `main`, so that it may stand anywhere.


@app.command()
def segment(
    slides: Annotated[
        list[str],
        typer.Argument(
            metavar="SLIDE...",
            help="Slide files, OME-Zarr folders, folders of slides, quoted patterns, or CSV manifests with a column path "
            "and, where wanted, name and settings such as blocks.halo.",
        ),
    ],
    output: Output,
    settings: SettingsFile = None,
    segmenter: SegmenterKind = None,
    overrides: Overrides = None,
    cluster: ClusterName = None,
    cluster_changes: ClusterChanges = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Segment slides, here or on a cluster. The same command again goes on where an earlier one stopped."""
    chosen = load_settings(settings, segmenter, overrides)
    profile = choose_profile(cluster, cluster_changes, workers, scheduler)
    from slidesam.flows.cli.command import run_or_stop

    raise typer.Exit(run_or_stop(slides, output, chosen, profile))


@app.command()
def retry(
    output: Annotated[Path, typer.Argument(help="A folder that slidesam writes to.")],
    cluster: ClusterName = None,
    cluster_changes: ClusterChanges = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Try slides again that failed or were stopped, with the settings that they had; only missing blocks are computed.

    Runs that a deployment made are put back, for its worker to do. A slide whose file was at fault waits until that changes.
    """
    if not output.is_dir():
        raise SettingsError(f"{output} is no folder: give the one that was named with --output")
    named = any(option is not None for option in (cluster, cluster_changes, workers, scheduler))
    profile = choose_profile(cluster, cluster_changes, workers, scheduler) if named else None
    from slidesam.flows.cli.command import retry_or_stop

    raise typer.Exit(retry_or_stop(output, profile))


@app.command()
def inspect(
    slide: Annotated[Path, typer.Argument(help="Slide file or OME-Zarr folder.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to look into for earlier results.")
    ] = None,
    settings: SettingsFile = None,
    segmenter: SegmenterKind = None,
    overrides: Overrides = None,
) -> None:
    """Show what a slide is, and what would be done with it. Reads metadata only."""
    from slidesam.flows.cli.tables import slide_table
    from slidesam.tasks.slides.inspect import inspect_slide

    chosen = load_settings(settings, segmenter, overrides)
    out.print(slide_table(inspect_slide(slide, chosen.slide), chosen, output))


@app.command()
def status(
    output: Annotated[Path, typer.Argument(help="A folder that slidesam writes to.")],
) -> None:
    """Show how the slides of an output folder stand."""
    from slidesam.flows.cli.tables import status_table
    from slidesam.tasks.run.status import read_states

    if not output.is_dir():
        raise SettingsError(f"{output} is no folder: give the one that was named with --output")
    states = read_states(output)
    out.print(status_table(states) if states else Text(f"{output}: nothing of slidesam's here"))


@app.command()
def seams(
    store: Annotated[Path, typer.Argument(help="A result, <name>.ome.zarr in the output folder.")],
    label: Annotated[
        str | None,
        typer.Option("--label", metavar="NAME", help="Only this label image; by default all that are finished."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="List all seams, not only the ten where blocks disagree most.")
    ] = False,
) -> None:
    """Show how well blocks agree on the objects at their seams, and whether the halo is wide enough."""
    from slidesam.flows.cli.tables import seams_view

    runs = finished_runs(store, label)
    with_report = [facts for facts in runs.values() if isinstance(facts.get("seams"), dict)]
    for number, facts in enumerate(with_report):
        out.print(*([""] if number else []), seams_view(facts, everything=everything), sep="\n")
    without = [name for name, facts in runs.items() if facts not in with_report]
    if without:
        raise OutputError(
            f"{store} holds {' and '.join(without)} from before there was a report on seams: "
            "segment the slide again to have one"
        )


@app.command()
def doctor(
    cluster: ClusterName = None,
    cluster_changes: ClusterChanges = None,
    scheduler: Scheduler = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder that results would go to, to be checked on the nodes too."),
    ] = None,
    settings: SettingsFile = None,
    segmenter: SegmenterKind = None,
    overrides: Overrides = None,
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="How long to wait for workers.")] = 120.0,
) -> None:
    """Check what a run needs, here and on the nodes, by one small job of each kind; say what to do where it isn't there."""
    chosen = load_settings(settings, segmenter, overrides)
    profile = choose_profile(cluster, cluster_changes, scheduler=scheduler)
    from slidesam.flows.doctor.doctor import doctor as examine

    raise typer.Exit(examine(profile, chosen, output, timeout))


@app.command()
def clean(
    output: Annotated[Path, typer.Argument(help="A folder that slidesam writes to.")],
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Keep the work of runs that finished less long ago, e.g. 2d; by default run.keep_work of each run.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="However short ago they finished.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove intermediate results of finished runs, and jobs that killed runs left; what unfinished runs need stays."""
    from slidesam.flows.prefect_api.leftovers import end_all_leftovers
    from slidesam.tasks.folder.clean import clean as remove
    from slidesam.tasks.folder.clean import size_of

    if not output.is_dir():
        raise SettingsError(f"{output} is no folder: give the one that was named with --output")
    if not dry_run:
        end_all_leftovers(output, out.print)
    removed = remove(output, keep=0.0 if everything else None if keep is None else _seconds(keep), dry_run=dry_run)
    for each in removed:
        say("[red]✗[/]" if each.error else " ", f"{each.slide} {each.label}: {_amount(each)} {each.error}")
    done, left = ("would be removed", "there are") if dry_run else ("removed", "left")
    total = sum(each.bytes for each in removed if not each.error) / 2**20
    out.print(f"{total:,.1f} MiB of intermediate results {done}; {left}: {_amount(size_of(output))}")
    if any(each.error for each in removed):
        raise typer.Exit(1)


def _amount(each: Removed | Size) -> str:
    return f"{each.bytes / 2**20:,.1f} MiB in {each.files:,} files"


def _seconds(duration: str) -> float:
    """A duration in words.

    Raises:
        SettingsError: It is none.
    """
    return seconds_of(make_settings(overrides={"run.keep_work": duration}).run.keep_work)


@app.command("settings")
def show_settings(settings: SettingsFile = None, segmenter: SegmenterKind = None, overrides: Overrides = None) -> None:
    """Print all settings with their values and explanations, as YAML to save, edit and give to --settings."""
    from slidesam.flows.cli.tables import settings_yaml

    sys.stdout.write(settings_yaml(load_settings(settings, segmenter, overrides)))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the made slide and the results.")] = Path(
        "demo-output"
    ),
    workers: Workers = None,
) -> None:
    """Make a 4096 × 4096 px slide from a histology picture and segment its nuclei; needs neither data nor weights."""
    from slidesam.flows.cli.command import run_or_stop
    from slidesam.flows.cluster.cluster import LocalProfile
    from slidesam.tasks.folder.demo import demo_settings, make_demo_slide

    slide = output / "demo.ome.tif"
    if not slide.exists():
        say("making", str(slide))
        make_demo_slide(slide)
    raise typer.Exit(run_or_stop([str(slide)], output, demo_settings(), LocalProfile(workers=workers)))


def load_settings(path: Path | None, segmenter: str | None, overrides: Sequence[str] | None) -> Settings:
    """Settings from a YAML file and command-line overrides.

    Raises:
        SettingsError: The file can't be read, a name is unknown or a value can't be used.
    """
    values = {} if path is None else read_settings_file(path)
    changed: dict[str, Any] = {} if segmenter is None else {"segmenter.kind": segmenter}
    changed |= read_overrides(overrides or (), "--set", "setting")
    return make_settings(values, changed)


def finished_runs(store: Path, label: str | None = None) -> dict[str, dict[str, Any]]:
    """The provenance of the finished label images of a store, by label; read from beside it, so it outlives `clean`.

    Args:
        store: `<name>.ome.zarr` in an output folder.
        label: Only this one.

    Raises:
        SettingsError: It is no store, none of its label images is finished, or not this one.
    """
    from slidesam.tasks.run.files import read_json
    from slidesam.tasks.run.layout import STORE_SUFFIX, find_provenance

    folder, name = store.absolute().parent, store.absolute().name.removesuffix(STORE_SUFFIX)
    if not store.is_dir() or not store.absolute().name.endswith(STORE_SUFFIX):
        stores = sorted(path.name for path in store.glob(f"*{STORE_SUFFIX}")) if store.is_dir() else []
        there = f", such as {store / stores[0]}" if stores else ""
        raise SettingsError(
            f"{store} is no result: give <name>{STORE_SUFFIX} in the folder that was named with --output{there}"
        )
    found = {}
    for found_label, path in find_provenance(folder, name).items():
        with suppress(ValueError):
            if (facts := read_json(path)) is not None:
                found[found_label] = facts
    if not found:
        raise SettingsError(
            f"{store}: no label image of it is finished; `slidesam status {folder}` shows how it stands"
        )
    if label is not None and label not in found:
        raise SettingsError(f"{store} has no finished label image {label!r}, only {' and '.join(found)}")
    return found if label is None else {label: found[label]}


def main() -> None:
    """Entry point: an error becomes one line and exit code 1, wrong usage is 2, Ctrl-C 130."""
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ["SLIDESAM_DEBUG"] = "1"
    else:
        # The console is for people, the whole log is in the Prefect UI. Workers inherit this.
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    try:
        app()
    except Exception as error:  # noqa: BLE001
        say_failed(error)
        sys.exit(1)
