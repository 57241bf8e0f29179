"""Cluster profiles: what is refused, and how long their jobs live."""

from __future__ import annotations

import pytest

from slidesam.flows.cluster.find_profile import make_profile
from slidesam.tasks.errors import SettingsError


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": "slrum"}, "kind must be one of local, local-gpu, slurm, .*not 'slrum'"),
        ({}, "kind must be one of"),
        ({"kind": "slurm", "cpu": {"parttion": "x"}}, r"unknown key cpu.parttion: .*partition"),
        ({"kind": "slurm", "walltime": "1:00"}, "unknown key walltime: one of slurm has .*container"),
        (
            {"kind": "slurm", "cpu": {"walltime": "1h"}},
            r"cpu: walltime must be \[\[days-\]hours:\]minutes:seconds, not '1h'",
        ),
        (
            {"kind": "slurm", "cpu": {"walltime": 240}},
            r"cpu.walltime: .*240 may be minutes or seconds: write it as .*quotes",
        ),
        ({"kind": "slurm", "gpu": {"lifetime": 14400}}, r"gpu: lifetime \(14400 s\).*below the walltime"),
        ({"kind": "slurm", "gpu": {"lifetime": 14000, "lifetime_stagger": 500}}, r"its stagger \(500 s\)"),
        ({"kind": "slurm", "cpu": {"minimum_jobs": 9}}, r"minimum_jobs \(9\) is more than maximum_jobs \(4\)"),
        ({"kind": "slurm", "gpu": {"gpus": 2, "workers": 1}}, "1 workers leave some of 2 gpus idle"),
        ({"kind": "slurm", "cpu": {"cores": 1, "workers": 2}}, "1 cores has none for each of 2 workers"),
        ({"kind": "slurm", "cpu": {"memory": 0}}, "cpu.memory"),
        ({"kind": "slurm", "cpu": {"memory_steps": [4, 2]}}, r"cpu: memory_steps \[4.0, 2.0\] have to grow"),
        ({"kind": "slurm", "cpu": {"memory_steps": [0.5]}}, "cpu.memory_steps.*greater than 1"),
        ({"kind": "pbs", "memory_per_cpu": True}, "unknown key memory_per_cpu"),
        ({"kind": "attach"}, "address is needed.*--scheduler"),
        ({"kind": "local", "workers": 0}, "workers"),
        ({"kind": "pbs", "cpu": {"partition": "x"}}, "unknown key cpu.partition: .*queue"),
    ],
)
def test_a_wrong_profile_is_refused_in_words(values: dict, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        make_profile(values)
    assert "\n" not in str(caught.value)


def test_walltimes_and_lifetimes() -> None:
    def lives(walltime: object) -> tuple[float, float, float]:
        jobs = make_profile({"kind": "slurm", "cpu": {"walltime": walltime}}).cpu
        return jobs.walltime_seconds, jobs.lifetime_seconds, jobs.stagger_seconds

    assert lives("00:01:00") == (60, 45, 5)
    assert lives("12:00:00") == lives(43200) == (43200, 42300, 300)
    assert lives("2-00:00:00") == (172800, 171900, 300)
    assert lives("30:00") == (1800, 1350, 150)
