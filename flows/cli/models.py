"""The part of the `slidesam` command that is about micro-sam's weights: `slidesam models`."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from slidesam.flows.console import err, out, say
from slidesam.tasks.settings.methods import MicroSam

if TYPE_CHECKING:
    from slidesam.tasks.segmenters.microsam.registry import State

Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache", metavar="FOLDER", help="micro-sam's cache; by default MICROSAM_CACHEDIR, else the one in your home."
    ),
]
models_app = typer.Typer(no_args_is_help=True, help="micro-sam's models: list them, fetch and check their weights.")
# By what follows the encoder in a model's name.
_PURPOSES = {
    "": "photographs",
    "_lm": "light microscopy",
    "_em_organelles": "electron microscopy",
    "_histopathology": "histopathology",
    "_medical_imaging": "medical images",
}
# MB of an encoder's file and of a decoder's, to be told before they are fetched.
_ENCODER_SIZES, _DECODER_SIZE = {"vit_b": 375, "vit_l": 1250, "vit_h": 2565}, 40
_SIGNS: dict[State, str] = {"whole": "[green]✓[/]", "wrong": "[red]✗[/]", "missing": " ", "unchecked": "[yellow]?[/]"}
_WORDS: dict[State, str] = {
    "whole": "whole",
    "wrong": "not the file of micro-sam's registry: runs refuse it, and `slidesam models fetch` replaces it",
    "missing": "missing: `slidesam models fetch` fetches it, where there is internet",
    "unchecked": "there, but slidesam finds no hash in the installed micro-sam to check it by",
}


def add_models_commands(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.add_typer(models_app, name="models")


@models_app.command("list")
def list_models(cache: Cache = None) -> None:
    """List micro-sam's models: what each is for, and whether its files are in the cache here."""
    from slidesam.tasks.segmenters.microsam.registry import MODELS, find_cache_folder
    from slidesam.tasks.segmenters.microsam.weights import choose_model

    folder = find_cache_folder(cache)
    bright, other = (choose_model(MicroSam(), is_rgb=is_rgb) for is_rgb in (True, False))
    table = Table(box=None, pad_edge=False)
    for title in ("model", "ViT", "decoder", "for", "here", "size"):
        table.add_column(title, justify="right" if title == "size" else "left", no_wrap=title != "here")
    for model, has_decoder in MODELS.items():
        name = Text(model, "bold" if model in (bright, other) else "")
        table.add_row(
            name, model[4].upper(), "yes" if has_decoder else "no", _PURPOSES[model[5:]], *_on_disk(model, folder)
        )
    out.print(table)
    out.print(Text("\nmodes: ais, apg and amg with a decoder, amg without one; ≈: size of what isn't in the cache"))
    out.print(Text(f"segmenter.model auto: {bright} for bright-field RGB slides, {other} for all others"))
    out.print(Text(f"cache: {folder} (`slidesam models verify` checks what is there)"))


def _on_disk(model: str, folder: Path) -> tuple[str, str]:
    """Which of the model's files are there, and how many megabytes all of them have, or would have."""
    from slidesam.tasks.segmenters.microsam.registry import list_files

    files = list_files(model)
    here = [file for file in files if (folder / file).is_file()]
    if len(here) == len(files):
        return "yes", f"{sum((folder / file).stat().st_size for file in files) / 1e6:,.0f} MB"
    about = _ENCODER_SIZES[model[:5]] + _DECODER_SIZE * (len(files) - 1)
    return f"no {'encoder' if files[1] in here else 'decoder'}" if here else "no", f"≈ {about:,} MB"


@models_app.command("fetch")
def fetch_models(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Models, as `slidesam models list` names them.")],
    cache: Cache = None,
) -> None:
    """Fetch models into the cache: where there is internet (a login node), into a folder that the workers see.

    A file gets its name only when all of it is there and its hash is right; what is there already isn't fetched again.
    """
    from slidesam.tasks.segmenters.microsam.registry import (
        check_file,
        fetch,
        find_cache_folder,
        list_files,
        read_registry,
    )

    files = [file for name in dict.fromkeys(names) for file in list_files(name)]
    folder, known = find_cache_folder(cache), read_registry()
    # Told to end, it takes away what is half there, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for file in files:
        state = check_file(folder / file, known.get(file))
        if state in ("whole", "unchecked"):
            say(_SIGNS[state], f"{file}: {_WORDS[state]}")
            continue
        if err.is_terminal:
            err.print(f"fetching {file}")
        fetch(file, folder, show_progress=err.is_terminal)
        say(_SIGNS["whole"], f"{file}: fetched, {(folder / file).stat().st_size / 1e6:,.1f} MB, its hash is right")
    out.print(
        Text(f"\nThe files are in {folder}. Runs find them where this is set, here and in the profile's prologue:")
    )
    out.print(Text(f"export MICROSAM_CACHEDIR={shlex.quote(str(folder.parent))}"))


@models_app.command("verify")
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Models; by default all that are there.")
    ] = None,
    cache: Cache = None,
) -> None:
    """Compare the files in the cache with the hashes of micro-sam's registry.

    The exit code is 1 if one of them is another file, or a file is missing whose model was named.
    """
    from slidesam.tasks.segmenters.microsam.registry import (
        MODELS,
        check_file,
        find_cache_folder,
        list_files,
        read_registry,
    )

    folder, known = find_cache_folder(cache), read_registry()
    found: set[State] = set()
    for name in dict.fromkeys(names or MODELS):
        states = {file: check_file(folder / file, known.get(file)) for file in list_files(name)}
        # Models that aren't there and that nobody asked for would fill the screen.
        if names or set(states.values()) != {"missing"}:
            found.update(states.values())
            for file, state in states.items():
                say(_SIGNS[state], f"{file}: {_WORDS[state]}")
    for rest in sorted(folder.glob("tmp????????")):
        say(_SIGNS["unchecked"], f"{rest.name}: of a fetch that is going on or was killed; if none is, remove it")
    out.print(Text(f"{'' if found else 'no model is in the '}cache: {folder}"))
    if "wrong" in found or (names and "missing" in found):
        raise typer.Exit(1)
