"""Repairing all results of an output folder."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from slidesam.tasks.folder.verify import repair_findings
from slidesam.tasks.run.layout import RunPaths
from slidesam.tasks.run.lock import LockedError, locked
from slidesam.tasks.store.verify import check_result


def test_what_a_run_is_at_work_on_is_refused_at_once_and_the_rest_repaired(tmp_path: Path) -> None:
    busy, free = (RunPaths(tmp_path, name, "cells") for name in ("busy", "free"))
    for paths in (busy, free):
        paths.provenance.write_text("{")
    findings = [check_result(paths, "sizes") for paths in (busy, free)]
    with locked(busy.lock, 'flow run "busy"', target="busy"):
        start_time = time.monotonic()
        with pytest.raises(LockedError, match=r'^busy \(cells\) in .* is locked by flow run "busy"'):
            repair_findings(findings)
        assert time.monotonic() - start_time < 5
    assert busy.provenance.exists()
    assert not free.provenance.exists()
