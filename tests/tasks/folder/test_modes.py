"""Who may read what a run writes: whoever the umask lets, be it the group, everybody, or nobody else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.support.serial import segment_serially
from tests.support.slides import write_numbered_slide

SETTINGS = {
    "segmenter.kind": "function",
    "segmenter.target": "tests.support.faults:bright_pieces",
    "blocks.block_shape": 64,
    "blocks.halo": 16,
}


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o027, 0o640, 0o750), (0o002, 0o664, 0o775)])
def test_results_and_work_have_the_modes_of_the_umask(
    umask: int, file_mode: int, folder_mode: int, tmp_path: Path
) -> None:
    slide, output = write_numbered_slide(tmp_path / "s.tif"), tmp_path / "out"
    before = os.umask(umask)
    try:
        segment_serially(slide, output, SETTINGS)
    finally:
        os.umask(before)
    paths = [output, *output.rglob("*")]
    modes = {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in paths}
    assert modes == {(True, folder_mode), (False, file_mode)}, [
        (path, oct(path.stat().st_mode))
        for path in paths
        if stat.S_IMODE(path.stat().st_mode) not in (file_mode, folder_mode)
    ]
