"""The bytes of a finished result, to be compared with another run's; what a run says of its times and places is left out."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Result:
    """What lies in an output folder beside the intermediate results.

    Attributes:
        digests: Digest of each file's bytes, by its path.
        records: Values of each `run.json` and of each list of the objects' files, by path and key; reports by path.
    """

    digests: dict[str, str] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)

    def ignore(self, keys: set[str]) -> None:
        """Leave these keys of the records out of comparisons."""
        self.ignored |= keys


def read_result(output: Path) -> Result:
    """Read all files of an output folder but those of `.slidesam`."""
    result = Result()
    for folder, folders, files in os.walk(output):
        if ".slidesam" in folders:
            folders.remove(".slidesam")
        for name in files:
            # What a process was writing as it was killed stays, hidden, until `slidesam clean`.
            if name.endswith(".partial"):
                continue
            path = Path(folder, name)
            where = str(path.relative_to(output))
            if name.endswith("report.html"):
                # It shows times, as run.json has them.
                result.records[where] = path.stat().st_size > 0
            elif name.endswith((".run.json", ".objects.json")):
                result.records |= {
                    key: value for key, value in _flatten(where, _read_record(path)) if not key.endswith(".report.html")
                }
            else:
                result.digests[where] = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return result


def find_volatile_keys(first: Result, second: Result) -> set[str]:
    """List keys of the records that differ between two runs that nobody disturbed, and times: these can be equal by chance."""
    keys = first.records.keys() | second.records.keys()
    return {
        key
        for key in keys
        if "seconds" in key or key.endswith(".finished") or first.records.get(key) != second.records.get(key)
    }


def find_difference(expected: Result, result: Result) -> str:
    """Name a file or key in which a result differs from what is expected; empty if it doesn't."""
    ignored = expected.ignored | result.ignored
    for have, want in ((result.digests, expected.digests), (result.records, expected.records)):
        for key in sorted(want.keys() | have.keys()):
            if have.get(key) != want.get(key) and not any(
                key == each or key.startswith(f"{each}.") for each in ignored
            ):
                return f"{key} {'is missing' if key not in have else 'differs' if key in want else 'is too much'}"
    return ""


def _read_record(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return "damaged"


def _flatten(where: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(where, value)]
    return [pair for key, inner in value.items() for pair in _flatten(f"{where}.{key}", inner)]
