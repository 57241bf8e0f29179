"""Cluster profiles, and the job scripts that come of them: text, so it is tested as text, without any queue."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from slidesam.flows.cli.app import app
from slidesam.flows.cli.cluster import choose_profile
from slidesam.flows.cluster.cluster import Cluster, ssh_line
from slidesam.flows.cluster.jobs import job_script, scheduler_options
from slidesam.flows.cluster.profile import load_profile, make_profile, profile_names
from slidesam.tasks.errors import SettingsError

LOGS = Path("/shared/out/.slidesam/.jobs")
WORKERS = "-m slidesam.flows.cluster.device_workers tcp://SCHEDULER:PORT --name slidesam-0"
ENDING = '--death-timeout 60 --local-directory "${TMPDIR:-/tmp}"'


def script(name: str, part: str = "cpu", **changes: object) -> list[str]:
    profile = load_profile(name, {key.replace("__", "."): value for key, value in changes.items()})
    return job_script(profile, part, logs=LOGS).strip().splitlines()


SLURM_CPU = [
    "#!/usr/bin/env bash",
    "",
    "#SBATCH -J slidesam",
    "#SBATCH -n 1",
    "#SBATCH --cpus-per-task=2",
    "#SBATCH --mem=8G",
    "#SBATCH -t 04:00:00",
    '#SBATCH --output="/shared/out/.slidesam/.jobs/%x-%j.log"',
    "#SBATCH --no-requeue",
    "export OMP_NUM_THREADS=2 MKL_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2",
    "export SLIDESAM_LEAVE_AT=$(( $(date +%s) + 13500 )) SLIDESAM_LEAVE_STAGGER=300",
    "export SLIDESAM_LOG=/shared/out/.slidesam/.jobs/slidesam-$SLURM_JOB_ID.log",
    f"{sys.executable} {WORKERS} --nthreads 1 --memory-limit 8.00GiB {ENDING} --workers 1 --gpus 0",
]


@pytest.mark.parametrize("name", ["slurm-cpu", "slurm-gpu", "slurm-mig"])
def test_cpu_jobs_of_the_shipped_slurm_profiles(name: str) -> None:
    assert script(name) == SLURM_CPU


def test_gpu_jobs_of_the_shipped_slurm_profiles() -> None:
    assert script("slurm-cpu", "gpu") == SLURM_CPU
    gpu = "\n".join(script("slurm-gpu", "gpu"))
    for line in ("#SBATCH -p gpu", "#SBATCH --gres=gpu:1", "#SBATCH --cpus-per-task=4", "#SBATCH --mem=32G"):
        assert f"\n{line}\n" in gpu
    assert gpu.endswith("--nthreads 1 --memory-limit 32.00GiB " + ENDING + " --workers 1 --gpus 1")
    mig = "\n".join(script("slurm-mig", "gpu"))
    assert "\n#SBATCH --gres=gpu:1g.10gb:1\n" in mig
    assert mig.endswith("--memory-limit 16.00GiB " + ENDING + " --workers 1 --gpus 1")


def test_what_a_site_sets_is_in_the_script() -> None:
    lines = script(
        "slurm-gpu", "gpu",
        gpu__partition="a100", gpu__qos="short", gpu__account="lab", gpu__gpus=2, gpu__workers=4, gpu__cores=8,
        gpu__walltime="1-00:00:00", gpu__prologue=["module load cuda"], gpu__directives=["--constraint=ib"],
        interface="ib0", local_directory="/scratch", python="/opt/bin/python", death_timeout=30,
    )  # fmt: skip
    for line in (
        "#SBATCH -p a100", "#SBATCH -A lab", "#SBATCH --qos=short", "#SBATCH --gres=gpu:2", "#SBATCH -t 1-00:00:00",
        "#SBATCH --constraint=ib", "module load cuda",
        "export SLIDESAM_LEAVE_AT=$(( $(date +%s) + 85500 )) SLIDESAM_LEAVE_STAGGER=300",
        "export OMP_NUM_THREADS=2 MKL_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2",
    ):  # fmt: skip
        assert line in lines
    assert lines[-1] == (
        f"/opt/bin/python {WORKERS} --nthreads 1 --memory-limit 32.00GiB --death-timeout 30 --local-directory /scratch "
        "--workers 4 --gpus 2 --interface ib0"
    )


def test_workers_in_a_container_see_gpus_only_where_there_are() -> None:
    ways = {"container": "/shared/slidesam.sif", "container_binds": ["/data", "/out put"]}
    line = script("slurm-gpu", "gpu", **ways)[-1]
    assert line.startswith(f"apptainer exec --nv --bind /data --bind '/out put' /shared/slidesam.sif python3 {WORKERS}")
    line = script("slurm-gpu", "cpu", container_command="singularity", **ways)[-1]
    assert line.startswith("singularity exec --bind /data --bind '/out put' /shared/slidesam.sif python3 -m")


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        (
            "pbs",
            ["#PBS -N slidesam", "#PBS -q long", "#PBS -l select=1:ncpus=2:mem=8192MB", "#PBS -l walltime=04:00:00"],
        ),
        ("lsf", ["#BSUB -J slidesam", "#BSUB -q long", "#BSUB -n 2", "#BSUB -W 04:00"]),
        ("sge", ["#$ -N slidesam", "#$ -q long", "#$ -l h_rt=04:00:00"]),
        ("moab", ["#PBS -N slidesam", "#PBS -q long", "#PBS -l walltime=04:00:00"]),
        ("oar", ["#OAR -n slidesam", "#OAR -q long", "#OAR -l /nodes=1/core=2,walltime=04:00:00"]),
        ("htcondor", []),
    ],
)
@pytest.mark.filterwarnings("ignore:OAR Job memory")
def test_other_queues_of_dask_jobqueue(kind: str, lines: list[str]) -> None:
    text = job_script(make_profile({"kind": kind, "cpu": {"queue": "long"}}), "cpu")
    for line in lines:
        assert line in text.splitlines()
    assert "slidesam.flows.cluster.device_workers tcp://SCHEDULER:PORT" in text
    assert "--workers 1 --gpus 0" in text


def test_folders_with_signs_of_their_own_reach_sbatch_as_they_are() -> None:
    text = job_script(load_profile("slurm-cpu", {"local_directory": "/my scratch"}), "cpu", logs=Path('/a b/50%/"c"'))
    assert '#SBATCH --output="/a b/50%%/\\"c\\"/%x-%j.log"' in text
    assert "--local-directory '/my scratch'" in text
    assert """export SLIDESAM_LOG='/a b/50%/"c"'/slidesam-$SLURM_JOB_ID.log""" in text


def test_schedulers_listen_on_one_address_and_those_of_two_parts_on_two_ports() -> None:
    where = load_profile(
        "slurm-gpu", {"scheduler.host": "10.0.0.5", "scheduler.port": 8786, "scheduler.dashboard_port": 8800}
    )
    assert scheduler_options(where, "cpu") == {"host": "10.0.0.5", "port": 8786, "dashboard_address": "10.0.0.5:8800"}
    assert scheduler_options(where, "gpu") == {"host": "10.0.0.5", "port": 8787, "dashboard_address": "10.0.0.5:8801"}
    alone = scheduler_options(load_profile("slurm-cpu"))
    assert alone["host"] not in (None, "", "0.0.0.0")
    assert alone["dashboard_address"] == f"{alone['host']}:0"


def test_options_of_another_queue_reach_its_class() -> None:
    part = {"options": {"resource_spec": "select=1:ncpus=4:ngpus=1", "account": "lab"}, "gpus": 1}
    text = job_script(make_profile({"kind": "pbs", "gpu": part}), "gpu")
    assert "#PBS -l select=1:ncpus=4:ngpus=1" in text
    assert "#PBS -A lab" in text


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
        ({"kind": "slurm", "gpu": {"lifetime": 14400}}, r"gpu: lifetime \(14400 s\).*below the walltime"),
        ({"kind": "slurm", "gpu": {"lifetime": 14000, "lifetime_stagger": 500}}, r"its stagger \(500 s\)"),
        ({"kind": "slurm", "cpu": {"minimum_jobs": 9}}, r"minimum_jobs \(9\) is more than maximum_jobs \(4\)"),
        ({"kind": "slurm", "gpu": {"gpus": 2, "workers": 1}}, "1 workers leave some of 2 gpus idle"),
        ({"kind": "slurm", "cpu": {"cores": 1, "workers": 2}}, "1 cores has none for each of 2 workers"),
        ({"kind": "slurm", "cpu": {"memory": 0}}, "cpu.memory"),
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


def test_options_that_contradict_each_other_are_refused() -> None:
    assert choose_profile(None, None).kind == "local"
    assert choose_profile(None, None, workers=3).workers == 3
    assert choose_profile(None, None, scheduler="tcp://a:1").address == "tcp://a:1"
    assert choose_profile("attach", None, scheduler="tcp://a:1").kind == "attach"
    assert choose_profile("slurm-gpu", ["gpu.partition=a", "gpu.gpus=2", "gpu.workers=2"]).gpu.gres == "gpu:2"
    for name, workers, scheduler in (("slurm-cpu", 2, None), ("slurm-cpu", None, "tcp://a:1"), (None, 2, "tcp://a:1")):
        with pytest.raises(SettingsError):
            choose_profile(name, None, workers, scheduler)


def test_one_kind_of_job_serves_all_stages_and_two_are_kept_apart() -> None:
    one, two = Cluster(load_profile("slurm-cpu")), Cluster(load_profile("slurm-gpu"))
    assert [one.part("cpu"), one.part("gpu"), two.part("gpu")] == ["cpu", "cpu", "gpu"]
    assert one.job_names == [f"{one.name}-cpu"]
    assert two.job_names == [f"{two.name}-cpu", f"{two.name}-gpu"]
    assert one.name != two.name
    assert Cluster(load_profile("local")).job_names == []


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


def test_without_slurm_a_slurm_run_says_so(monkeypatch) -> None:
    from slidesam.tasks.errors import ClusterError

    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ClusterError, match=r"Slurm's commands aren't here on .*login or compute node"):
        _ = Cluster(load_profile("slurm-cpu")).address


def test_the_ssh_line_names_host_and_port() -> None:
    assert ssh_line("http://10.0.0.5:8787/status").startswith("ssh -N -L 8787:10.0.0.5:8787 ")


@pytest.mark.slow
def test_a_cluster_that_was_open_leaves_dasks_defaults() -> None:
    """Where Dask's distributed part is first imported with the cluster: its defaults must not go with our settings."""
    code = (
        "import dask, sys; from slidesam.flows.cluster.cluster import LocalProfile, open_cluster\n"
        "assert 'distributed' not in sys.modules\n"
        "with open_cluster(LocalProfile(workers=1)) as cluster: cluster.address\n"
        "print(dask.config.get('distributed.comm.require-encryption', 'gone'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "None"
