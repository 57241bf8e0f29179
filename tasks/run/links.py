"""Find links in an output folder that lead elsewhere: nothing behind them may be changed or removed."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from slidesam.tasks.run.layout import (
    IMAGE_STAGES,
    RUN_STAGES,
    RunPaths,
    jobs_folder,
    slide_folder,
    work_root,
)
from slidesam.tasks.run.service_folders import inbox_folder


def find_link(output: Path, run: RunPaths | None = None) -> Path | None:
    """Find a link where a run writes or removes files: what it points to would be changed. None if there is none.

    The output folder itself may be a link. Folders of single marks, shards and chunks aren't looked at: there are thousands.

    Args:
        output: An output folder.
        run: The run that writes there; None = only look at what all runs share.
    """
    shared = [work_root(output), jobs_folder(output), inbox_folder(output)]
    if run is None:
        return next((path for path in shared if path.is_symlink()), None)
    slide = slide_folder(output, run.name)
    folders = [path for path in (run.work, run.image.work, run.store, run.label_image) if path.is_dir()]
    stages = run.stage_folders(*RUN_STAGES) + run.image.stage_folders(*IMAGE_STAGES)
    places = [slide, run.work, run.image.work, run.store, run.label_image.parent, run.label_image]
    entries = (entry for folder in [*folders, *stages] for entry in sorted(folder.iterdir()))
    return next((path for path in chain(shared, places, entries) if path.is_symlink()), None)


def list_job_logs(output: Path) -> list[Path]:
    """The logs of jobs that worked on an output folder; none where the folder is a link, or is reached by one."""
    if find_link(output) is not None:
        return []
    return sorted(path for path in jobs_folder(output).glob("*.log") if path.is_file() and not path.is_symlink())
