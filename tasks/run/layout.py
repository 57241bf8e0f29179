"""Where everything lies below the output folder.

    OUT/.slidesam/.jobs/                  <job>-<number>.log
    OUT/.slidesam/<name>/.image/
        lock.json                         who writes the slide's image
        convert-<fingerprint>/            marks/<level>-<piece>.json
        rechunk-<fingerprint>/            pixels.zarr, marks/<level>-<piece>.json
    OUT/.slidesam/<name>/<label>/
        lock.json                         who runs
        state.json                        what `slidesam status` shows
        segment-<fingerprint>/            params.json, tissue.npz, blocks.zarr, frames/<block_id>.blosc,
                                          objects/<block_id>.npy, marks/<block_id>.json, starts/<block_id>.json
        stitch-<fingerprint>/             overlaps/<group>.npz, resolved.json, relabelling.npy, offsets.npy, sizes.npy
        paint-<fingerprint>/              measures/<group>.npy, marks/<group>.json

Folders carry the fingerprint of their stage, so results made under other settings are never mixed in, and a changed setting
redoes its stage and those after it only. A done-mark is written last, after the result that it vouches for.
"""

from __future__ import annotations

from pathlib import Path


def work_folder(output: Path, name: str, label: str) -> Path:
    """Folder of a run's intermediate results."""
    return output / ".slidesam" / name / label


def jobs_folder(output: Path) -> Path:
    """Folder of the logs of jobs that worked on an output folder."""
    return output.resolve() / ".slidesam" / ".jobs"
