"""Lists, fetches and checks micro-sam's weights: `slidesam models`."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterable
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
        "--cache",
        metavar="FOLDER",
        help="micro-sam's cache; by default MICROSAM_CACHEDIR, or the cache in your home folder.",
    ),
]
models_app = typer.Typer(no_args_is_help=True, help="List micro-sam's models, and fetch or check their weights.")
# Key: the end of a model's name, after the encoder.
_PURPOSES = {
    "": "photographs",
    "_lm": "light microscopy",
    "_em_organelles": "electron microscopy",
    "_histopathology": "histopathology",
    "_medical_imaging": "medical images",
}
# MB of an encoder's file and of a decoder's, to show before they are fetched.
_ENCODER_SIZES, _DECODER_SIZE = {"vit_t": 40, "vit_b": 375, "vit_l": 1250, "vit_h": 2565}, 40
_SIGNS: dict[State, str] = {"whole": "[green]✓[/]", "wrong": "[red]✗[/]", "missing": " ", "unchecked": "[yellow]?[/]"}
_WORDS: dict[State, str] = {
    "whole": "whole",
    "wrong": "not the file of micro-sam's registry: runs refuse it, and `slidesam models fetch` replaces it",
    "missing": "missing: `slidesam models fetch` fetches it, on a machine with internet",
    "unchecked": "exists, but the installed micro-sam has no hash to check it",
}


def add_models_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(models_app, name="models")


@models_app.command("list")
def list_models(cache: Cache = None) -> None:
    """List micro-sam's models, what each is for, and whether its files are in the cache."""
    from slidesam.tasks.segmenters.microsam.registry import CLASS_DECODERS, MODELS, find_cache_folder
    from slidesam.tasks.segmenters.microsam.shipped import ARCHITECTURE, FOLDER, NUCLEI_SMALL
    from slidesam.tasks.segmenters.microsam.weights import choose_model

    folder = find_cache_folder(cache)
    bright_field_model, other_model = (choose_model(MicroSam(), is_rgb=is_rgb) for is_rgb in (True, False))
    table = Table(box=None, pad_edge=False)
    for title in ("model", "ViT", "decoder", "for", "here", "size"):
        table.add_column(title, justify="right" if title == "size" else "left", no_wrap=title != "here")
    for model, has_decoder in MODELS.items():
        name = Text(model, "bold" if model in (bright_field_model, other_model) else "")
        table.add_row(
            name, model[4].upper(), "yes" if has_decoder else "no", _PURPOSES[model[5:]], *_on_disk(model, folder)
        )
    table.add_row(
        NUCLEI_SMALL, ARCHITECTURE[4].upper(), "yes", "nuclei", "comes with slidesam", _megabytes(FOLDER.glob("*.pt"))
    )
    out.print(table)
    out.print(
        Text("\nmodes: ais, apg and amg with a decoder, amg without one; ≈: size of files that aren't in the cache yet")
    )
    out.print(
        Text(f"segmenter.model auto: {bright_field_model} for bright-field RGB slides, {other_model} for all others")
    )
    for model, decoder in CLASS_DECODERS.items():
        here = "here" if (folder / decoder).is_file() else f"not here, ≈ {_DECODER_SIZE} MB"
        out.print(Text(f"segmenter.classes semantic: {decoder}, for {model} ({here})"))
    out.print(Text(f"cache: {folder} (`slidesam models verify` checks its files)"))


def _on_disk(model: str, folder: Path) -> tuple[str, str]:
    """Tell which of a model's files exist, and the size in megabytes of all of them."""
    from slidesam.tasks.segmenters.microsam.registry import list_files

    files = list_files(model)
    existing = [file for file in files if (folder / file).is_file()]
    if len(existing) == len(files):
        return "yes", _megabytes(folder / file for file in files)
    megabytes = _ENCODER_SIZES[model[:5]] + _DECODER_SIZE * (len(files) - 1)
    return f"no {'encoder' if files[1] in existing else 'decoder'}" if existing else "no", f"≈ {megabytes:,} MB"


def _megabytes(files: Iterable[Path]) -> str:
    return f"{sum(file.stat().st_size for file in files) / 1e6:,.0f} MB"


@models_app.command("fetch")
def fetch_models(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Models, as `slidesam models list` names them.")],
    cache: Cache = None,
) -> None:
    """Fetch models into the cache. Run this on a machine with internet (a login node), into a folder that the workers see.

    A file gets its name only when it is complete and its hash is right. Existing files aren't fetched again.
    """
    from slidesam.tasks.segmenters.microsam.registry import (
        check_file,
        fetch,
        find_cache_folder,
        list_files,
        read_registry,
    )

    files = [file for name in dict.fromkeys(names) for file in list_files(name)]
    folder, hashes = find_cache_folder(cache), read_registry()
    # On SIGTERM remove the incomplete file, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for file in files:
        state = check_file(folder / file, hashes.get(file))
        if state in ("whole", "unchecked"):
            say(_SIGNS[state], f"{file}: {_WORDS[state]}")
            continue
        if err.is_terminal:
            err.print(f"fetching {file}")
        fetch(file, folder, show_progress=err.is_terminal)
        say(_SIGNS["whole"], f"{file}: fetched, {(folder / file).stat().st_size / 1e6:,.1f} MB, its hash is right")
    out.print(Text(f"\nThe files are in {folder}. Runs find them if this is set, here and in the profile's prologue:"))
    out.print(Text(f"export MICROSAM_CACHEDIR={shlex.quote(str(folder.parent))}"))


@models_app.command("verify")
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Models; by default all in the cache.")
    ] = None,
    cache: Cache = None,
) -> None:
    """Compare the files in the cache with the hashes of micro-sam's registry.

    The exit code is 1 if a file is wrong, or if a file of a named model is missing.
    """
    from slidesam.tasks.segmenters.microsam.registry import (
        CLASS_DECODERS,
        MODELS,
        check_file,
        find_cache_folder,
        list_files,
        read_registry,
    )

    folder, hashes = find_cache_folder(cache), read_registry()
    found_states: set[State] = set()
    for name in dict.fromkeys(names or (*MODELS, *CLASS_DECODERS.values())):
        states = {file: check_file(folder / file, hashes.get(file)) for file in list_files(name)}
        # Models that are neither in the cache nor named would fill the screen.
        if names or set(states.values()) != {"missing"}:
            found_states.update(states.values())
            for file, state in states.items():
                say(_SIGNS[state], f"{file}: {_WORDS[state]}")
    for unfinished in sorted(folder.glob("tmp????????")):
        say(_SIGNS["unchecked"], f"{unfinished.name}: of a fetch that runs now or was killed; if none runs, remove it")
    out.print(Text(f"{'' if found_states else 'no model is in the '}cache: {folder}"))
    if "wrong" in found_states or (names and "missing" in found_states):
        raise typer.Exit(1)
