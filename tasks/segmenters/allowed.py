"""Own the rule on which code a run may load: nothing that only a file or a form names.

Settings come from files, manifests, forms and an output's state.json, and whoever wrote those may be a stranger. A function
(`segmenter.target`) and files that need pickle (`segmenter.trust`, `segmenter.class_trust`) run code, so one of these must vouch
for them:

1. a package that is installed, by an entry point of the group `slidesam.segmenters`;
2. the site, by SLIDESAM_ALLOW: patterns separated by commas, those that begin with / for files, all others for functions;
3. the person, on the command line (`--set segmenter.target=...`, `--allow ...`) or in Python.

The process that plans a run decides. What it permits travels with the run (`Run.permitted`), so that workers need neither the
variable nor the package's metadata. It is written to no file.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from importlib.metadata import entry_points
from pathlib import PurePosixPath
from typing import Any

from slidesam.tasks.errors import SegmenterError
from slidesam.tasks.settings.methods import Function, MicroSam, SegmenterSettings

VARIABLE = "SLIDESAM_ALLOW"
GROUP = "slidesam.segmenters"


def find_code(settings: SegmenterSettings) -> dict[str, str]:
    """Find what a segmenter loads that can run code, by setting: a function's target, or files that are to be trusted."""
    if isinstance(settings, Function):
        return {"target": settings.target}
    if not isinstance(settings, MicroSam):
        return {}
    trusted = {
        "trust": settings.checkpoint if settings.trust else None,
        "class_trust": settings.class_file if settings.class_trust and settings.classes != "off" else None,
    }
    return {setting: path for setting, path in trusted.items() if path is not None}


def list_own_words(settings: SegmenterSettings, overrides: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the person allows by naming it on the command line.

    Args:
        settings: The settings, complete.
        overrides: Dotted name → value, as the person gave them.
    """
    return tuple(code for setting, code in find_code(settings).items() if f"segmenter.{setting}" in overrides)


def permit(settings: SegmenterSettings, allowed: Collection[str]) -> tuple[str, ...]:
    """Return what these settings may load: nothing where they load no code of anybody's own.

    Args:
        settings: The segmenter's settings.
        allowed: Targets, modules or paths that the person allows; the patterns of SLIDESAM_ALLOW are added.

    Raises:
        SegmenterError: They name code that nobody vouches for.
    """
    found = find_code(settings)
    is_allowed = _is_function_allowed if isinstance(settings, Function) else _is_file_allowed
    for setting, code in found.items():
        if not is_allowed(code, allowed):
            raise SegmenterError(*_explain(setting, code))
    return tuple(dict.fromkeys(found.values()))


def is_path_allowed(path: str) -> bool:
    """Tell whether the site allows a file by its path."""
    return _is_file_allowed(path, ())


def _is_function_allowed(target: str, allowed: Collection[str]) -> bool:
    if target in allowed or any(_matches(target, pattern) for pattern in (*allowed, *_read_patterns())):
        return True
    return any(point.value.replace(" ", "") == target for point in entry_points(group=GROUP))


def _is_file_allowed(path: str, allowed: Collection[str]) -> bool:
    # As it stands: names of files may have commas and brackets in them.
    if path in allowed:
        return True
    parts = PurePosixPath(path)
    # What `..` leaves doesn't lie in the folder that a pattern names; a relative path lies in whatever folder is the current one.
    if not parts.is_absolute() or ".." in parts.parts:
        return False
    patterns = [pattern for pattern in (*allowed, *_read_patterns()) if pattern.startswith("/")]
    return path in (os.environ.get(VARIABLE), *patterns) or any(fnmatchcase(path, pattern) for pattern in patterns)


def _read_patterns() -> Iterator[str]:
    return (pattern.strip() for pattern in os.environ.get(VARIABLE, "").split(",") if pattern.strip())


def _matches(target: str, pattern: str) -> bool:
    """Tell whether a pattern means this function: `module` or `module:name`; `*` stands for anything.

    Example:
        >>> [_matches("own.spots:find", pattern) for pattern in ("own.spots", "own.*", "own.spots:find", "own", "own.spots:f")]
        [True, True, True, False, False]
    """
    return fnmatchcase(target, pattern) or (":" not in pattern and fnmatchcase(target.partition(":")[0], pattern))


def _explain(setting: str, code: str) -> tuple[str, str]:
    """Say what isn't allowed, and exactly what to type."""
    if setting == "target":
        return (
            f"setting segmenter.target: {code} isn't allowed, because a file or a form can name any code",
            f"if you know what it does, add `--allow {code}` to the command; a site allows it for all by "
            f"{VARIABLE}={code}, and its package by an entry point of the group {GROUP} (docs/own-segmenter.md)",
        )
    return (
        f"setting segmenter.{setting}: true isn't allowed for {code}, because a file or a form can name any file",
        f"if you trust who made that file, add `--allow {shlex.quote(code)}` to the command; a site allows it for all by "
        f"{VARIABLE}={code}",
    )
