"""Profiles by name or file: where they lie, and which goes before which."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidesam.flows.cluster.find_profile import load_profile, profile_names
from slidesam.tasks.errors import SettingsError


def test_a_sites_own_profile_goes_before_the_shipped_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SLIDESAM_PROFILES", str(tmp_path))
    (tmp_path / "ours.yaml").write_text("kind: slurm\ncpu: {partition: ours}\n")
    (tmp_path / "slurm-cpu.yaml").write_text("kind: slurm\ncpu: {partition: theirs}\n")
    assert load_profile("ours").cpu.partition == "ours"
    assert load_profile("slurm-cpu").cpu.partition == "theirs"
    assert load_profile(str(tmp_path / "ours.yaml"), {"cpu.partition": "other"}).cpu.partition == "other"
    assert {"local", "local-gpu", "slurm-cpu", "slurm-gpu", "slurm-mig", "attach", "ours"} <= set(profile_names())
    with pytest.raises(SettingsError, match=r"no cluster profile 'our': .*local, .*ours"):
        load_profile("our")
    (tmp_path / "bad.yaml").write_text("kind: [")
    with pytest.raises(SettingsError, match=r"bad\.yaml can't be read"):
        load_profile("bad")
