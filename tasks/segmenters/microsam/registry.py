"""micro-sam's registry of weights: which files a model has, their hashes and addresses, and where they are kept.

All without torch or micro_sam, which take 15 s to import. The registry stands in `micro_sam.util.models` as dictionaries of
texts, which are read from its source and not run: what is expected is so what the installed micro-sam would fetch, and a
newer one with newer weights needs no change here. A file named by SLIDESAM_MODELS goes before it, line by line: pooch's
registry format, `NAME HASH [URL]`, for a site with a mirror of the weights.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from slidesam.tasks.errors import OutputError, SegmenterError, SettingsError, in_one_line
from slidesam.tasks.segmenters.torch_host import can_hash, hash_file, unreadable

# micro-sam's registry without the vit_t family, which needs mobile_sam; the value says whether a decoder comes with it.
MODELS = {
    "vit_b": False,
    "vit_l": False,
    "vit_h": False,
    "vit_b_lm": True,
    "vit_l_lm": True,
    "vit_b_em_organelles": True,
    "vit_l_em_organelles": True,
    "vit_b_histopathology": True,
    "vit_l_histopathology": True,
    "vit_h_histopathology": True,
    "vit_b_medical_imaging": True,
}
OVERRIDES = "SLIDESAM_MODELS"
INSTALL = 'pip install "slidesam[micro-sam]"'
_HASH = re.compile(r"(?:\w+:)?[0-9a-f]{16,}", re.IGNORECASE)
_URL = re.compile(r"https?://\S+")
_MIB = 2**20

State = Literal["whole", "wrong", "missing", "unchecked"]


@dataclass(frozen=True)
class Registered:
    """What the registry says of one file.

    Attributes:
        hash: Its algorithm and digest, such as "xxh128:fe92...".
        url: Where it is fetched from, where the registry has an address.
    """

    hash: str
    url: str | None = None

    @property
    def algorithm(self) -> str:
        """The hash's algorithm; pooch's default is sha256."""
        return self.hash.partition(":")[0] if ":" in self.hash else "sha256"

    @property
    def digest(self) -> str:
        """The hash in lower-case hexadecimal digits."""
        return self.hash.rpartition(":")[2].lower()


class Bar(Protocol):
    """What pooch asks of a progress bar; sizes in bytes."""

    total: int

    def update(self, size: int) -> None:
        """So much more has arrived."""

    def reset(self) -> None:
        """Nothing has arrived."""

    def close(self) -> None:
        """All has arrived."""


def files_of(model: str) -> tuple[str, ...]:
    """Names of a model's files: the registry has a decoder's weights in a file of their own.

    Raises:
        SettingsError: There is no such model.

    Example:
        >>> files_of("vit_b_lm")
        ('vit_b_lm', 'vit_b_lm_decoder')
    """
    if model not in MODELS:
        raise SettingsError(f"micro-sam has no model {model!r} that slidesam can use: choose of {', '.join(MODELS)}")
    return (model, f"{model}_decoder") if MODELS[model] else (model,)


def cache_folder(cache: Path | None = None) -> Path:
    """The folder of the files: `models` in the cache named, else in MICROSAM_CACHEDIR, else where micro-sam keeps it.

    Raises:
        SegmenterError: No cache is named, and pooch, which knows micro-sam's, isn't installed.
    """
    if cache is None and not os.environ.get("MICROSAM_CACHEDIR"):
        if importlib.util.find_spec("pooch") is None:
            raise SegmenterError("segmenter micro-sam is not installed here", f"{INSTALL}, or name its cache")
        import pooch  # type: ignore[import-untyped]

        cache = Path(pooch.os_cache("micro_sam"))
    return (cache or Path(os.environ["MICROSAM_CACHEDIR"])).expanduser().absolute() / "models"


def registry() -> dict[str, Registered]:
    """The files that micro-sam fetches, by name; empty where micro-sam isn't installed or keeps them in another way.

    Raises:
        SettingsError: The file that SLIDESAM_MODELS names can't be used.
    """
    spec = importlib.util.find_spec("micro_sam")
    folders = getattr(spec, "submodule_search_locations", None) or ()
    found: dict[str, Registered] = {}
    for folder in folders:
        found |= _registry_in(Path(folder) / "util.py")
    if overrides := os.environ.get(OVERRIDES):
        for name, entry in _read_overrides(Path(overrides).expanduser()).items():
            found[name] = replace(entry, url=entry.url or (found[name].url if name in found else None))
    return found


@lru_cache(maxsize=2)
def _registry_in(source: Path) -> dict[str, Registered]:
    """The entries of the dictionaries in the function `models` of micro_sam.util; those that can't be read are left out."""
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return {}
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "models"]
    texts = [pair for function in functions for node in ast.walk(function) for pair in _texts(node)]
    urls = {name: text for name, text in texts if _URL.fullmatch(text)}
    return {name: Registered(text, urls.get(name)) for name, text in texts if _HASH.fullmatch(text)}


def _texts(node: ast.AST) -> list[tuple[str, str]]:
    """The pairs of a dictionary whose key and value stand there as texts."""
    if not isinstance(node, ast.Dict):
        return []
    # Keys and values that aren't constants have no `value`.
    pairs = [[getattr(part, "value", None) for part in pair] for pair in zip(node.keys, node.values, strict=True)]
    return [(key, value) for key, value in pairs if isinstance(key, str) and isinstance(value, str)]


def _read_overrides(path: Path) -> dict[str, Registered]:
    import pooch

    store = pooch.create(path=path.parent, base_url="")
    try:
        store.load_registry(path)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{OVERRIDES} names {path}, which can't be used ({in_one_line(error, 300)}): "
            "give a file with a line `NAME HASH [URL]` for each file, or unset the variable"
        ) from error
    return {name: Registered(known, store.urls.get(name)) for name, known in store.registry.items()}


def state_of(path: Path, entry: Registered | None) -> State:
    """Whether a file is the registered one; unchecked where the registry or its kind of hash isn't known here.

    Raises:
        SegmenterError: It is there and can't be read.
    """
    if not path.is_file():
        return "missing"
    if entry is None or not can_hash(entry.algorithm):
        return "unchecked"
    try:
        (found,) = hash_file(path, entry.algorithm)
    except OSError as error:
        raise unreadable(path, error) from error
    return "whole" if found.hex() == entry.digest else "wrong"


def fetch(name: str, folder: Path, bar: Bar) -> None:
    """Fetches a file into a folder: under its name only once it is there as a whole and its hash is right.

    Args:
        name: The file, as `files_of` names it.
        folder: Made where it isn't there. What has its name there is replaced.
        bar: Shows how far it is.

    Raises:
        SegmenterError: The registry has no address for it, it can't be fetched, or what came isn't the registered file.
        OutputError: The folder can't be written.
    """
    entry = registry().get(name)
    if entry is None or entry.url is None:
        raise SegmenterError(_no_address(name))
    import pooch
    from requests import RequestException

    # It would name the folder and the address for each file, among the bars.
    pooch.get_logger().setLevel("WARNING")
    store = pooch.create(path=folder, base_url="", registry={name: entry.hash}, urls={name: entry.url})
    where = urlsplit(entry.url).netloc
    try:
        store.fetch(name, downloader=_downloader(bar))
    except RequestException as error:
        raise _not_fetched(name, folder, entry.url, error) from error
    except OSError as error:
        raise OutputError(
            f"{folder / name} can't be written ({in_one_line(error, 200)}): make room, or name another folder with --cache"
        ) from error
    except ValueError as error:
        raise SegmenterError(
            f"what {where} sent as {name} is not the file of micro-sam's registry ({entry.hash}), so nothing was kept",
            f"see in a browser whether a proxy or a login page answers for {entry.url}, or take a newer micro-sam",
        ) from error


def _downloader(bar: Bar) -> Callable[[str, str, Any], None]:
    import pooch

    download = pooch.HTTPDownloader(progressbar=bar, chunk_size=_MIB)
    umask = os.umask(0)
    os.umask(umask)

    def get(url: str, file: str, store: Any) -> None:
        download(url, file, store)
        # pooch's temporary file is its owner's alone, and in a shared cache it would stay so.
        Path(file).chmod(0o666 & ~umask)

    return get


def _no_address(name: str) -> str:
    if importlib.util.find_spec("micro_sam") is None:
        return f"{name} can't be fetched, since micro-sam's list of addresses comes with it: {INSTALL}"
    return (
        f"slidesam finds no address of {name} in the installed micro-sam: let micro-sam fetch it, "
        f"`python -c \"from micro_sam.util import get_sam_model; get_sam_model('{name.removesuffix('_decoder')}')\"`"
    )


def _not_fetched(name: str, folder: Path, url: str, error: Exception) -> SegmenterError:
    """The error for a server that can't be reached, or that answers with something else."""
    response = getattr(error, "response", None)
    if response is not None:
        why = f"{urlsplit(url).netloc} answers {response.status_code} {response.reason} for {url}"
        cure = "try again later or with a newer micro-sam"
    else:
        why = f"no connection to {urlsplit(url).netloc}, or it was lost ({_innermost(error)})"
        cure = "run this where there is internet (a login node; HTTPS_PROXY where a proxy is needed)"
    return SegmenterError(
        f"{name} could not be fetched, {why}",
        f"{cure}, or bring the file to {folder / name} yourself and see `slidesam models verify`",
    )


def _innermost(error: BaseException) -> str:
    """The error that the others were raised for: what requests says of it is hard to read."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return in_one_line(error, 150)
