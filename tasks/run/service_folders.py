"""Where in an output folder that lies which belongs to no slide: secrets of clusters, inboxes' memory, the contact sheet."""

from __future__ import annotations

import hashlib
from pathlib import Path

from slidesam.tasks.run.layout import work_root


def inbox_folder(output: Path) -> Path:
    """Folder of what was seen in folders where slides arrive."""
    return work_root(output.resolve()) / ".inbox"


def inbox_memory(output: Path, folder: Path) -> Path:
    """The file that keeps what was seen in a folder where slides arrive."""
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    return inbox_folder(output) / f"{digest}.json"


def inbox_lock(memory: Path) -> Path:
    """The lock of such a file."""
    return memory.with_suffix(".lock.json")


def key_folder(jobs: Path, cluster: str) -> Path:
    """Folder of the secrets of one cluster of a run, beside the logs of its jobs."""
    return jobs / f"{cluster}.keys"


def list_key_folders(jobs: Path) -> list[Path]:
    """The folders of secrets of all clusters; those of killed runs are left behind. None is reached by a link."""
    if jobs.is_symlink() or jobs.parent.is_symlink():
        return []
    return [path for path in sorted(jobs.glob("*.keys")) if path.is_dir() and not path.is_symlink()]


def contact_sheet(output: Path) -> Path:
    """The page that shows all slides of an output folder. No slide's file has this name: they begin with slide and label."""
    return output / "report.html"
