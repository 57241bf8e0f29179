"""`slidesam try`: settings on three regions of a slide, on one page, before the whole slide is run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from slidesam.flows.cli.options import Allowed, Overrides, SegmenterKind, SettingsFile, load_settings
from slidesam.flows.console import err, out, say
from slidesam.tasks.errors import OutputError, SettingsError
from slidesam.tasks.settings.parse import parse_override


def add_try_command(app: typer.Typer) -> None:
    """Add `slidesam try` to the command line."""
    app.command("try")(_try)


def _try(
    slide: Annotated[Path, typer.Argument(metavar="SLIDE", help="Slide file or OME-Zarr folder.")],
    page: Annotated[
        Path | None,
        typer.Option(
            "--page",
            metavar="FILE",
            help="The page to write; the table lies beside it. By default <name>.try.html here.",
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="A.B=C,D",
            help="Values of a setting to try, e.g. segmenter.mode=ais,apg. All combinations are tried. Can be repeated. By "
            "default pixel sizes, and what matters most for the segmenter.",
        ),
    ] = None,
    regions: Annotated[
        list[str] | None,
        typer.Option(
            "--region",
            metavar="ROW,COLUMN",
            help="Upper left corner of a region, in pixels. Can be repeated. By default a dense, a sparse and a mixed one.",
        ),
    ] = None,
    side: Annotated[int, typer.Option("--side", min=64, max=4096, metavar="PIXELS", help="Side of a region.")] = 512,
    settings: SettingsFile = None,
    segmenter: SegmenterKind = None,
    overrides: Overrides = None,
    allowed: Allowed = None,
) -> None:
    """Try settings on three regions of a slide, and write a page to choose from, with the line to paste."""
    run_settings, code = load_settings(settings, segmenter, overrides, allowed)
    grid, corners = _read_grid(vary or ()), [_read_corner(text) for text in regions or ()]
    from slidesam.tasks.slides.facts import slide_name
    from slidesam.tasks.trial.page import write_trial
    from slidesam.tasks.trial.trial import run_trial

    path = page or Path(f"{slide_name(slide, run_settings.slide.name)}.try.html")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path.absolute().parent} is not a folder: give a --page in one that exists")
    with err.status("reading the slide") as status:
        trial = run_trial(
            slide, run_settings, code, corners=corners, side=side, grid=grid, report=lambda text: status.update(text)
        )
    given = _repeat_options(settings, segmenter, overrides, allowed)
    try:
        table = write_trial(trial, path, given)
    except OSError as error:
        raise OutputError(
            f"{error.filename or path} can't be written ({error.strerror}): give another --page"
        ) from error
    n_choices, n_regions = len(trial.results), len(trial.regions)
    out.print(f"{n_choices} choices on {n_regions} regions in {trial.seconds:.0f} s, on {trial.device}")
    for note in trial.notes:
        say("[yellow]![/]", note)
    say(" ", str(path))
    say(" ", str(table))


def _read_grid(vary: Sequence[str]) -> dict[str, list[Any]] | None:
    """Read the values to try by the settings' names; None if none are given.

    Raises:
        SettingsError: A text isn't A.B=C,D.
    """
    grid = {}
    for text in vary:
        name, sign, values = text.partition("=")
        if not sign or not values.strip():
            raise SettingsError(f"--vary {text}: write the setting's name and values, e.g. segmenter.mode=ais,apg")
        # A list of values may have its brackets: [1,2]; a value that is a list has two: [[512,512]].
        _, listed = parse_override(f"{name}=[{values}]", "--vary")
        grid[name.strip()] = listed[0] if len(listed) == 1 and isinstance(listed[0], list) else listed
    return grid or None


def _read_corner(text: str) -> tuple[int, int]:
    try:
        row, column = (int(number) for number in text.split(","))
    except ValueError:
        raise SettingsError(f"--region {text}: write row and column of its upper left corner, e.g. 4096,1024") from None
    return row, column


def _repeat_options(
    settings: Path | None, segmenter: str | None, overrides: Sequence[str] | None, allowed: Sequence[str] | None
) -> list[str]:
    """Write the options that a run needs as well as the trial."""
    options = [("--settings", str(settings))] if settings else []
    options += [("--segmenter", segmenter)] if segmenter else []
    options += [("--set", text) for text in overrides or ()] + [("--allow", text) for text in allowed or ()]
    return [shlex.quote(part) for option in options for part in option]
