"""Options that choose a profile, and the command that shows them."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from slidesam.flows.cli.app import app
from slidesam.flows.cli.cluster import choose_profile
from slidesam.tasks.errors import SettingsError


def test_options_that_contradict_each_other_are_refused() -> None:
    assert choose_profile(None, None).kind == "local"
    assert choose_profile(None, None, workers=3).workers == 3
    assert choose_profile(None, None, scheduler="tcp://a:1").address == "tcp://a:1"
    assert choose_profile("attach", None, scheduler="tcp://a:1").kind == "attach"
    assert choose_profile("slurm-gpu", ["gpu.partition=a", "gpu.gpus=2", "gpu.workers=2"]).gpu.gres == "gpu:2"
    for name, workers, scheduler in (("slurm-cpu", 2, None), ("slurm-cpu", None, "tcp://a:1"), (None, 2, "tcp://a:1")):
        with pytest.raises(SettingsError):
            choose_profile(name, None, workers, scheduler)


def test_the_command_prints_scripts_and_profiles() -> None:
    shown = CliRunner().invoke(app, ["cluster", "show", "slurm-gpu", "--cluster-set", "gpu.account=lab"])
    assert shown.exit_code == 0
    assert "# cpu: the stages that need no accelerator; 0 to 4 jobs" in shown.output
    assert "#SBATCH -A lab" in shown.output
    shown = CliRunner().invoke(app, ["cluster", "show", "local-gpu"])
    assert "workers_per_gpu: 1" in shown.output
    listed = CliRunner().invoke(app, ["cluster", "list"])
    assert "slurm-mig" in listed.output
    assert "MIG instances" in listed.output
