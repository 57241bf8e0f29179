"""What files of weights are, for the fingerprint: a hash, without torch or TensorFlow."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.segmenters.microsam.registry import hash_file, unreadable


def hash_of(files: Iterable[Path]) -> str:
    """SHA-256 of the files' contents, in the order given; each is read once per process (1 GB: some seconds).

    Args:
        files: Weights and what belongs to them. Their names don't count.

    Returns:
        For example "sha256:...".

    Raises:
        SegmenterError: One can't be read.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            digest.update(hash_file(path, "sha256")[0])
        except OSError as error:
            raise unreadable(path, error) from error
    return f"sha256:{digest.hexdigest()}"


def given_path(model: str | None, what: str, how: str) -> Path:
    """The path of `segmenter.model`.

    Args:
        model: The setting.
        what: What it names, in words.
        how: Where to get one.

    Raises:
        SegmenterError: It isn't set, or there is nothing of that name.
    """
    if model is None:
        raise SegmenterError(f"setting segmenter.model is needed: the path of {what}. {how}")
    path = Path(model).expanduser()
    if not path.exists():
        raise SegmenterError(
            f"segmenter.model {path} is not on this machine: give the path of {what}, one that the workers see too. {how}"
        )
    return path
