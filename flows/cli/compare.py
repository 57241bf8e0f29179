"""`slidesam compare`: a result beside another one, a label image or outlines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from slidesam.flows.cli.finished import finished_runs
from slidesam.flows.console import out, say
from slidesam.tasks.errors import SettingsError

if TYPE_CHECKING:
    from slidesam.tasks.compare.comparison import Comparison
    from slidesam.tasks.run.run import Run


def add_compare_command(app: typer.Typer) -> None:
    """Add `slidesam compare` to the command line."""
    app.command("compare")(_compare)


def _compare(
    store: Annotated[Path, typer.Argument(metavar="RESULT", help="A result: <name>.ome.zarr in the output folder.")],
    truth: Annotated[
        Path,
        typer.Argument(
            metavar="TRUTH",
            help="Another result of the slide, a label image of the same pixels (TIFF, OME-Zarr label image, .npy), or outlines "
            "(.geojson, .geojson.gz) of slidesam or QuPath.",
        ),
    ],
    label: Annotated[
        str | None, typer.Option("--label", metavar="NAME", help="Label image of RESULT, where it has several.")
    ] = None,
    truth_label: Annotated[
        str | None, typer.Option("--truth-label", metavar="NAME", help="Label image of TRUTH, where it has several.")
    ] = None,
    regions: Annotated[
        str | None,
        typer.Option(
            "--regions", metavar="FILE",
            help="GeoJSON with polygons, or a rectangle as in blocks.region: also count the objects in each.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="PATH",
            help="Folder, or beginning of the paths, for numbers (.json), pairs of objects (.csv) and a picture (.png).",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Compare a result with a truth or another result: F1, panoptic quality, merged and split objects, where they differ."""
    from slidesam.tasks.compare.comparison import check_same_slide, choose_prefix, compare_run
    from slidesam.tasks.compare.label_sources import is_own_store, open_run_labels, open_truth

    run = _find_run(store, label)
    if is_own_store(truth):
        other = _find_run(truth, truth_label, other_than=run)
        check_same_slide(run, other)
        source = open_run_labels(other)[0]
    else:
        source = open_truth(truth, run.slide.shape)
    prefix = None if output is None else choose_prefix(output, run)
    comparison = compare_run(run, source, regions, prefix)
    _print(comparison)
    if prefix is not None:
        say(" ", f"{prefix}.png, .csv and .json")


def _find_run(store: Path, label: str | None, other_than: Run | None = None) -> Run:
    """Find the only finished label image of a store, or the one of this name.

    Raises:
        SettingsError: There is none, or more than one.
        OutputError: Its record can't be read.
    """
    from slidesam.tasks.run.run import Run

    runs = {
        name: Run.of_record(record, store.absolute().parent) for name, record in finished_runs(store, label).items()
    }
    if other_than is not None and len(runs) > 1:
        runs = {name: run for name, run in runs.items() if run.paths != other_than.paths}
    if len(runs) > 1:
        option = "--label" if other_than is None else "--truth-label"
        raise SettingsError(f"{store} has several label images, {', '.join(runs)}", f"choose one with {option}")
    return next(iter(runs.values()))


def _print(comparison: Comparison) -> None:
    matches = comparison.matches
    out.print(Text(f"result  {comparison.result}: {comparison.objects:,} objects"))
    out.print(Text(f"truth   {comparison.truth}: {comparison.true_objects:,} objects"))
    out.print()
    out.print(_score_table(comparison))
    out.print()
    out.print(Text(f"panoptic quality {_show(comparison.panoptic_quality)} = mean IoU of matches "
                   f"{_show(matches.segmentation_quality)} × F1 {_show(comparison.f1)}"))  # fmt: skip
    out.print(Text(f"mean average precision, IoU 0.5 to 0.95: {_show(matches.mean_average_precision)}"))
    out.print(Text(f"merged: {matches.merged_pairs:,} pairs in {matches.merged_objects:,} objects of the result; "
                   f"split: {matches.split_pairs:,} pairs in {matches.split_objects:,} objects of the truth"))  # fmt: skip
    if comparison.regions:
        out.print()
        out.print(_region_table(comparison))
    for note in comparison.notes:
        say("[yellow]note:[/]", note)


def _score_table(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in (
        "IoU",
        "matched",
        "only in result",
        "only in truth",
        "precision",
        "recall",
        "F1",
        "average precision",
    ):
        table.add_column(column, justify="right")
    for score in comparison.scores:
        shares = (score.precision, score.recall, score.f1, score.average_precision)
        numbers = (score.matched, score.only_found, score.only_true)
        table.add_row(f"{score.iou:.2f}", *(f"{number:,}" for number in numbers), *map(_show, shares))
    return table


def _region_table(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("region", "result", "of them matched", "truth", "of them matched", "F1"):
        table.add_column(column, justify="left" if column == "region" else "right")
    for region in comparison.regions:
        numbers = (region.objects, region.matched, region.true_objects, region.true_matched)
        table.add_row(Text(region.name), *(f"{number:,}" for number in numbers), _show(region.f1))
    return table


def _show(share: float | None) -> str:
    return "" if share is None else f"{share:.3f}"
