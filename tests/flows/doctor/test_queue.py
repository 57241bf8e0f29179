"""What the doctor makes of partitions."""

from __future__ import annotations

import pytest

from slidesam.flows.cluster.profile import SlurmJobs, SlurmProfile
from slidesam.flows.doctor import queue
from slidesam.flows.doctor.queue import judge_partition, parse_sinfo

SINFO = """
cpu*|up|infinite|1|(null)|idle
cpu*|up|infinite|1|gpu:2|mix
short|up|30:00|4|(null)|idle
a100|up|1-00:00:00|2|gpu:a100:4(S:0-1,3),gpu:1g.10gb:7(S:0)|alloc
night|down|infinite|2|(null)|idle
old|up|infinite|3|gpu:1|down*
"""


def test_sinfo_is_understood() -> None:
    rows = {row.name: row for row in parse_sinfo(SINFO)}
    assert len(parse_sinfo(SINFO)) == 6
    assert parse_sinfo("") == parse_sinfo("slurm_load_partitions: Unable to contact slurm controller") == []
    assert [name for name, row in rows.items() if row.is_default] == ["cpu"]
    assert [name for name, row in rows.items() if row.is_usable] == ["cpu", "short", "a100"]
    assert rows["cpu"].limit == float("inf")
    assert (rows["short"].limit, rows["a100"].limit) == (1800, 86400)
    assert rows["a100"].gres == (("gpu:a100", 4), ("gpu:1g.10gb", 7))


@pytest.mark.parametrize(
    ("jobs", "state", "what", "cure"),
    [
        ({}, "ok", "cpu is up: 2 nodes, any walltime", ""),
        ({"partition": "nope"}, "failed", "there is no partition nope; there are: a100, cpu", "cpu.partition"),
        ({"partition": "short"}, "failed", "up to 0.5 h; cpu.walltime is 04:00:00", "lower cpu.walltime"),
        ({"partition": "night"}, "failed", "night has no node that takes jobs (partition down)", "wait for it"),
        ({"partition": "old"}, "failed", "old has no node that takes jobs (down*)", "sinfo -R -p old"),
        ({"partition": "a100", "gpus": 4, "gpu_type": "a100", "workers": 4, "cores": 4}, "ok", "24 h", ""),
        ({"partition": "a100", "gpus": 1, "gpu_type": "1g.10gb"}, "ok", "24 h", ""),
        ({"partition": "a100", "gpus": 1, "gpu_type": "h100"}, "warning", "there is: gpu:1g.10gb:7, gpu:a100:4", "cpu.gpu_type"),
        ({"partition": "short", "gpus": 1, "walltime": "20:00"}, "warning", "there is: none", "cpu.gpus"),
    ],
)  # fmt: skip
def test_partitions_are_judged(jobs, state, what, cure) -> None:
    finding = judge_partition("cpu", SlurmJobs(**jobs), parse_sinfo(SINFO))
    assert finding.state == state
    assert what in finding.what
    assert cure in finding.cure
    assert bool(cure) == bool(finding.cure)


def test_larger_jobs_that_slurm_refuses_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them a run starts all the same: only blocks that run out of memory fail."""

    def ask(*command: str, stdin: str | None = None) -> tuple[int, str]:
        return (0, "") if "--mem=16G" in str(stdin) else (1, "Memory specification can not be satisfied")

    monkeypatch.setattr(queue, "_ask", ask)
    findings = list(queue._larger_scripts(SlurmProfile(cpu=SlurmJobs(memory=8, memory_steps=(2, 4))), "cpu"))
    assert [(finding.name, finding.state) for finding in findings] == [
        ("cpu: more memory", "ok"), ("cpu: more memory", "warning"),
    ]  # fmt: skip
    assert findings[0].what == "Slurm would take jobs of 16 GiB"
    assert findings[1].what.startswith("Slurm refuses jobs of 32 GiB, for blocks that run out of memory: Memory spec")
    assert "shorten cpu.memory_steps" in findings[1].cure
