"""Which cluster profiles may come from a file or a form."""

from __future__ import annotations

from pathlib import Path

import pytest

from slidesam.flows.cluster.find_profile import load_profile, make_profile, profile_names
from slidesam.flows.cluster.known_profiles import refuse_unknown
from slidesam.tasks.errors import SettingsError

HOSTILE = [
    {"kind": "slurm", "cpu": {"prologue": ["touch /tmp/x"]}},
    {"kind": "slurm", "python": "/tmp/evil"},
    {"kind": "slurm", "container_command": "/tmp/evil"},
    {"kind": "slurm", "cpu": {"directives": ["--export=LD_PRELOAD=/tmp/evil.so"]}},
    {"kind": "slurm", "cpu": {"partition": "short\ntouch /tmp/x"}},
    {"kind": "pbs", "cpu": {"options": {"job_script_prologue": ["touch /tmp/x"]}}},
    {"kind": "attach", "address": "tcp://198.51.100.1:8786"},
]


@pytest.mark.parametrize("values", HOSTILE, ids=str)
def test_a_profile_that_could_run_anything_is_refused(values: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLIDESAM_PROFILES", raising=False)
    with pytest.raises(
        SettingsError, match="none of this machine's, and that could run any command: name the one to use"
    ):
        refuse_unknown(make_profile(values), "it was run with")


def test_the_sites_own_profiles_and_other_numbers_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours.yaml").write_text("kind: slurm\ncpu: {prologue: [module load slidesam], partition: long}\n")
    monkeypatch.setenv("SLIDESAM_PROFILES", str(tmp_path))
    ours = load_profile("ours", {"cpu.maximum_jobs": 50, "cpu.walltime": "08:00:00", "cpu.lifetime": 600})
    refuse_unknown(ours, "it was run with")
    for name in profile_names().keys() - {"attach"}:
        refuse_unknown(load_profile(name), "it was run with")
    refuse_unknown(make_profile({"kind": "local", "workers": 3}), "it was run with")
    with pytest.raises(SettingsError, match="could run any command"):
        refuse_unknown(load_profile("ours", {"cpu.prologue": ["module load slidesam", "evil"]}), "it was run with")


@pytest.mark.parametrize(
    "options",
    [
        {"job_script_prologue": {"touch /tmp/x": 1}},
        {"worker_extra_args": {"--preload evil.py": None}},
        {"job_extra_directives": {"-S /tmp/evil": 1}},
        {"walltime": "01:00:00 -S /tmp/evil.sh"},
        {"kind": "evil"},
        {"disk": 3},
        {},
    ],
    ids=str,
)
def test_options_of_the_queue_are_taken_as_the_site_has_them(
    options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ours.yaml").write_text("kind: pbs\ncpu: {queue: batch, options: {disk: 2}}\n")
    (tmp_path / "plain.yaml").write_text("kind: pbs\ncpu: {queue: batch, prologue: [module load slidesam]}\n")
    monkeypatch.setenv("SLIDESAM_PROFILES", str(tmp_path))
    refuse_unknown(load_profile("ours", {"cpu.cores": 4, "cpu.memory_steps": [2]}), "it was run with")
    for name in ("ours", "plain"):
        if options or name == "ours":
            with pytest.raises(SettingsError, match="could run any command"):
                refuse_unknown(load_profile(name, {"cpu.options": options}), "it was run with")


def test_the_message_names_what_the_sites_profile_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLIDESAM_PROFILES", raising=False)
    with pytest.raises(SettingsError, match=r"--cluster NAME --cluster-set cpu.partition=...`"):
        refuse_unknown(load_profile("slurm-cpu", {"cpu.partition": "short"}), "it was run with")
    attached = make_profile({"kind": "attach", "address": "tls://10.0.0.5:1", "ca_file": "/keys.pem"})
    with pytest.raises(SettingsError, match=r"--scheduler tls://10.0.0.5:1 --cluster-set ca_file=/keys.pem`"):
        refuse_unknown(attached, "it was run with")


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "local", "workers": 100_000},
        {"kind": "local-gpu", "devices": ["0"] * 100_000},
        {"kind": "local-gpu", "workers_per_gpu": 100_000},
    ],
    ids=["workers", "devices", "workers per device"],
)
def test_more_workers_than_this_machine_could_bear_are_refused(values: dict) -> None:
    with pytest.raises(SettingsError, match=r"100000 workers on this machine, which has \d+ cores: name what to use"):
        refuse_unknown(make_profile(values), "it was run with")


def test_the_group_servers_profile_is_known_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "attached.yaml"
    file.write_text("kind: attach\naddress: tcp://10.0.0.5:8786\n")
    monkeypatch.setenv("SLIDESAM_CLUSTER", str(file))
    refuse_unknown(load_profile(str(file)), "the run's parameters give")


def test_the_current_folder_adds_no_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "infra" / "profiles"
    folder.mkdir(parents=True)
    (folder / "local.yaml").write_text("kind: slurm\npython: /tmp/evil\n")
    monkeypatch.chdir(tmp_path)
    assert load_profile("local").kind == "local"
