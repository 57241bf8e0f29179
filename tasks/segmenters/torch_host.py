"""What networks need from this machine: a device, threads, files of weights and their hashes."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from slidesam.tasks.errors import SegmenterError

_MIB = 2**20
# fmt: off
UNUSABLE = (
    ArithmeticError, AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError,
)
# fmt: on
"""What loading and using a file of anybody's can raise."""


def choose_device(name: str) -> str:
    """Choose the device to compute on: cpu, cuda or mps.

    Args:
        name: One of them, or auto for the first available one of CUDA, Apple's MPS, the CPU.

    Raises:
        SegmenterError: torch has no such device on this machine.
    """
    import torch

    is_available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and torch.backends.mps.is_built(),
        "cpu": True,
    }
    available = [device for device in is_available if is_available[device]]
    if name == "auto":
        return available[0]
    if name not in available:
        raise SegmenterError(
            f"segmenter.device is {name}, but torch {torch.__version__} only has {', '.join(available)} on this machine",
            "let the profile ask for a GPU, or set segmenter.device: auto",
        )
    return name


def limit_threads() -> None:
    """Let torch use OMP_NUM_THREADS threads, if that is set."""
    import torch

    threads = read_thread_limit()
    if threads is not None:
        torch.set_num_threads(threads)


def read_thread_limit() -> int | None:
    """Read OMP_NUM_THREADS; None if it isn't set."""
    threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(threads) if threads.isdigit() and int(threads) > 0 else None


def find_model_path(model: str | None, description: str, cure: str) -> Path:
    """Check that `segmenter.model` names something that exists, and return its path.

    Args:
        model: The setting.
        description: What it names, in words.
        cure: Where to get one.

    Raises:
        SegmenterError: It isn't set, or nothing of that name exists.
    """
    if model is None:
        raise SegmenterError("setting segmenter.model is needed", f"the path of {description}. {cure}")
    path = Path(model).expanduser()
    if not path.exists():
        raise SegmenterError(
            f"segmenter.model {path} is not on this machine",
            f"give the path of {description}, one that the workers see too. {cure}",
        )
    return path


def hash_files(files: Iterable[Path]) -> str:
    """Compute the SHA-256 of files' contents, in this order; each is read once per process (1 GB: some seconds).

    Args:
        files: Weights and what belongs to them. Their names don't count.

    Returns:
        For example "sha256:...".

    Raises:
        SegmenterError: A file can't be read.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            digest.update(hash_file(path, "sha256")[0])
        except OSError as error:
            raise make_read_error(path, error) from error
    return f"sha256:{digest.hexdigest()}"


def hash_file(path: Path, *algorithms: str) -> tuple[bytes, ...]:
    """Compute digests of a file in one reading; an unchanged file is read once per process.

    Args:
        path: The file (375 MB: about a second).
        algorithms: Names of algorithms for which `can_hash` is true.

    Raises:
        OSError: The file can't be read.
    """
    facts = path.stat()
    return _hash_file(path, facts.st_size, facts.st_mtime_ns, facts.st_ino, algorithms)


@lru_cache(maxsize=8)
def _hash_file(path: Path, size: int, mtime_ns: int, inode: int, algorithms: tuple[str, ...]) -> tuple[bytes, ...]:
    hashers = [_hasher(algorithm) for algorithm in algorithms]
    buffer = memoryview(bytearray(_MIB))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            for hasher in hashers:
                hasher.update(buffer[:count])
    return tuple(hasher.digest() for hasher in hashers)


def can_hash(algorithm: str) -> bool:
    """Tell whether this machine can compute hashes of this kind."""
    return _hash_function(algorithm) is not None


def _hasher(algorithm: str) -> Any:
    function = _hash_function(algorithm)
    assert function is not None, algorithm
    return function()


def _hash_function(algorithm: str) -> Callable[[], Any] | None:
    """Find one of Python's hash functions, or one of xxhash, which micro-sam installs."""
    if algorithm in hashlib.algorithms_available:
        return partial(hashlib.new, algorithm, usedforsecurity=False)
    if not algorithm.startswith("xxh") or importlib.util.find_spec("xxhash") is None:
        return None
    import xxhash

    return getattr(xxhash, algorithm, None)


def make_read_error(path: Path, error: OSError) -> SegmenterError:
    """Make the error for an existing file of weights that can't be read."""
    return SegmenterError(
        f"weights {path} can't be read ({error.strerror or error})", "let the account that runs slidesam read them"
    )
