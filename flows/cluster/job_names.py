"""Names of a run's jobs, by which a later run or `slidesam clean` finds those that a killed run left.

A name holds a hash of the folder of the jobs' logs, which lies in the output folder. So whatever stands in the state file of an
output folder, no jobs of another folder are cancelled for it.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterable
from pathlib import Path


def make_cluster_name(logs: Path | None) -> str:
    """Make a new name, with which the names of a cluster's jobs begin.

    Args:
        logs: Folder of the jobs' logs; None = nobody has to find the jobs by it.
    """
    random = uuid.uuid4().hex[:8]
    return f"slidesam-{random}" if logs is None else f"slidesam-{_hash(logs)}-{random}"


def select_own_jobs(names: Iterable[str], logs: Path) -> list[str]:
    """Select the names of jobs whose logs are in a folder."""
    own_name = re.compile(rf"slidesam-{_hash(logs)}-[0-9a-f]{{8}}-(cpu|gpu)(-step[0-9]+)?")
    return [name for name in names if own_name.fullmatch(name)]


def _hash(logs: Path) -> str:
    # Names of jobs are public: nobody shall find a folder with the hash of another one.
    return hashlib.sha256(os.fsencode(logs)).hexdigest()[:24]
