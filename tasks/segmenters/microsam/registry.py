"""micro-sam's registry of weights: the files of each model, their hashes and addresses, and the folder that holds them.

micro-sam offers its registry only as a function, `micro_sam.util.models`, whose module imports torch: 15 s. So the function's
dictionaries of texts are read from the source by `ast`, without running it; a newer micro-sam with newer weights needs no change
here. Lines of the file that SLIDESAM_MODELS names take precedence: pooch's registry format, `NAME HASH [URL]`, for a site with a
mirror of the weights.
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
from typing import Any, Literal
from urllib.parse import urlsplit

from slidesam.tasks.errors import OutputError, SegmenterError, SettingsError, in_one_line
from slidesam.tasks.segmenters.microsam import library
from slidesam.tasks.segmenters.torch_host import can_hash, hash_file, make_read_error

# Models of micro-sam's registry; True: a decoder belongs to the model. The vit_t family needs mobile_sam.
MODELS = {
    "vit_t": False,
    "vit_b": False,
    "vit_l": False,
    "vit_h": False,
    "vit_t_lm": True,
    "vit_b_lm": True,
    "vit_l_lm": True,
    "vit_t_em_organelles": True,
    "vit_b_em_organelles": True,
    "vit_l_em_organelles": True,
    "vit_b_histopathology": True,
    "vit_l_histopathology": True,
    "vit_h_histopathology": True,
    "vit_b_medical_imaging": True,
}
CLASS_DECODERS = {"vit_b_histopathology": "vit_b_histopathology_semantic_segmentation_decoder"}
"""Decoders of classes by the model whose embeddings they take: PathoSAM's, which micro-sam's registry doesn't have."""
OVERRIDES = "SLIDESAM_MODELS"
INSTALL = 'pip install "slidesam[micro-sam]"'
_HASH = re.compile(r"(?:\w+:)?[0-9a-f]{16,}", re.IGNORECASE)
_URL = re.compile(r"https?://\S+")
_MIB = 2**20

State = Literal["whole", "wrong", "missing", "unchecked"]


@dataclass(frozen=True)
class Registered:
    """The registry's entry for one file.

    Attributes:
        hash: Algorithm and digest, such as "xxh128:fe92...".
        url: Where to fetch the file, if the registry has an address.
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


# Hash and address as in https://github.com/computational-cell-analytics/patho-sam/blob/master/patho_sam/util.py
_PATHO_SAM = {
    "vit_b_histopathology_semantic_segmentation_decoder": Registered(
        "sha256:bdd05a55c72c02abce72a7aa6885c6ec21df9c43fda9cf3c5d11ef5788de0ab0",
        "https://owncloud.gwdg.de/index.php/s/TFbI25UZoixd1hi/download",
    )
}


def list_files(model: str) -> tuple[str, ...]:
    """List the names of a model's files: the registry keeps a decoder's weights in a separate file.

    Raises:
        SettingsError: micro-sam has no such model.

    Example:
        >>> list_files("vit_b_lm")
        ('vit_b_lm', 'vit_b_lm_decoder')
    """
    if model in _PATHO_SAM:
        return (model,)
    if model not in MODELS:
        raise SettingsError(f"micro-sam has no model {model!r} that slidesam can use: choose of {', '.join(MODELS)}")
    return (model, f"{model}_decoder") if MODELS[model] else (model,)


def find_cache_folder(cache: Path | None = None) -> Path:
    """Find the folder of the files: `models` in the given cache, else in MICROSAM_CACHEDIR, else in micro-sam's default cache.

    Raises:
        SegmenterError: No cache is given, and pooch, which knows micro-sam's, isn't installed.
    """
    if cache is None and not os.environ.get("MICROSAM_CACHEDIR"):
        if importlib.util.find_spec("pooch") is None:
            raise SegmenterError("segmenter micro-sam is not installed here", f"{INSTALL}, or name its cache")
        import pooch  # type: ignore[import-untyped]

        cache = Path(pooch.os_cache("micro_sam"))
    return (cache or Path(os.environ["MICROSAM_CACHEDIR"])).expanduser().absolute() / "models"


def read_registry() -> dict[str, Registered]:
    """Read which files micro-sam and PathoSAM fetch, by name.

    micro-sam's are missing if it isn't installed or stores its registry differently.

    Raises:
        SettingsError: The file that SLIDESAM_MODELS names can't be used.
    """
    source = library.find_registry_source()
    entries = _PATHO_SAM | ({} if source is None else dict(_parse_registry(source)))
    if overrides := os.environ.get(OVERRIDES):
        for name, entry in _read_overrides(Path(overrides).expanduser()).items():
            entries[name] = replace(entry, url=entry.url or (entries[name].url if name in entries else None))
    return entries


@lru_cache(maxsize=2)
def _parse_registry(source: Path) -> dict[str, Registered]:
    """Parse the dictionaries in the function `models` of micro_sam.util; skip entries that aren't plain texts."""
    try:
        tree = ast.parse(source.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return {}
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "models"]
    texts = [pair for function in functions for node in ast.walk(function) for pair in _texts(node)]
    urls = {name: text for name, text in texts if _URL.fullmatch(text)}
    return {name: Registered(text, urls.get(name)) for name, text in texts if _HASH.fullmatch(text)}


def _texts(node: ast.AST) -> list[tuple[str, str]]:
    """List the pairs of a dictionary whose key and value are written as texts."""
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
    return {name: Registered(file_hash, store.urls.get(name)) for name, file_hash in store.registry.items()}


def check_file(path: Path, entry: Registered | None) -> State:
    """Compare a file with its registry entry; unchecked if there is no entry or its hash can't be computed here.

    Raises:
        SegmenterError: The file exists and can't be read.
    """
    if not path.is_file():
        return "missing"
    if entry is None or not can_hash(entry.algorithm):
        return "unchecked"
    try:
        (digest,) = hash_file(path, entry.algorithm)
    except OSError as error:
        raise make_read_error(path, error) from error
    return "whole" if digest.hex() == entry.digest else "wrong"


def fetch(name: str, folder: Path, *, show_progress: bool) -> None:
    """Fetch a file into a folder; it gets its name only when it is complete and its hash is right.

    Args:
        name: The file, as `list_files` names it.
        folder: Created if needed. A file of this name in it is replaced.
        show_progress: Draw a progress bar on stderr.

    Raises:
        SegmenterError: The registry has no address, the file can't be fetched, or the server sent another file.
        OutputError: The folder can't be written.
    """
    entry = read_registry().get(name)
    if entry is None or entry.url is None:
        raise SegmenterError(_explain_missing_address(name))
    import pooch
    from requests import RequestException

    # It would print folder and address of each file between the progress bars.
    pooch.get_logger().setLevel("WARNING")
    store = pooch.create(path=folder, base_url="", registry={name: entry.hash}, urls={name: entry.url})
    server = urlsplit(entry.url).netloc
    try:
        store.fetch(name, downloader=_downloader(show_progress))
    except RequestException as error:
        raise _make_fetch_error(name, folder, entry.url, error) from error
    except OSError as error:
        raise OutputError(
            f"{folder / name} can't be written ({in_one_line(error, 200)}): make room, or name another folder with --cache"
        ) from error
    except ValueError as error:
        raise SegmenterError(
            f"what {server} sent as {name} is not the file of micro-sam's registry ({entry.hash}), so nothing was kept",
            f"see in a browser whether a proxy or a login page answers for {entry.url}, or take a newer micro-sam",
        ) from error


def _downloader(show_progress: bool) -> Callable[[str, str, Any], None]:
    import pooch

    download = pooch.HTTPDownloader(progressbar=show_progress, chunk_size=_MIB)
    umask = os.umask(0)
    os.umask(umask)

    def get(url: str, file: str, store: Any) -> None:
        download(url, file, store)
        # Only the owner can read pooch's temporary file, and in a shared cache it would stay so.
        Path(file).chmod(0o666 & ~umask)

    return get


def _explain_missing_address(name: str) -> str:
    if not library.is_installed():
        return f"{name} can't be fetched, since micro-sam's list of addresses comes with it: {INSTALL}"
    return (
        f"slidesam finds no address of {name} in the installed micro-sam: let micro-sam fetch it, "
        f"`python -c \"from micro_sam.util import get_sam_model; get_sam_model('{name.removesuffix('_decoder')}')\"`"
    )


def _make_fetch_error(name: str, folder: Path, url: str, error: Exception) -> SegmenterError:
    """Make the error for a server that can't be reached or answers with an error."""
    response = getattr(error, "response", None)
    if response is not None:
        reason = f"{urlsplit(url).netloc} answers {response.status_code} {response.reason} for {url}"
        cure = "try again later or with a newer micro-sam"
    else:
        reason = f"no connection to {urlsplit(url).netloc}, or it was lost ({_describe_root_cause(error)})"
        cure = "run this where there is internet (a login node; HTTPS_PROXY where a proxy is needed)"
    return SegmenterError(
        f"{name} could not be fetched, {reason}",
        f"{cure}, or bring the file to {folder / name} yourself and see `slidesam models verify`",
    )


def _describe_root_cause(error: BaseException) -> str:
    """Describe the error that caused the others: the message of requests itself is hard to read."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return in_one_line(error, 150)
