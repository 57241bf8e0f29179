"""The job scripts that come of profiles: text, so it is tested as text, without any queue."""

from __future__ import annotations

import sys
from pathlib import Path

import dask
import pytest

from slidesam.flows.cluster.find_profile import load_profile, make_profile
from slidesam.flows.cluster.jobs import job_script, scheduler_options
from slidesam.flows.cluster.memory_steps import count_steps, describe_step, enlarge
from slidesam.flows.cluster.profile import LocalGpuProfile, LocalProfile, SlurmProfile
from slidesam.tasks.errors import ClusterError

LOGS = Path("/shared/out/.slidesam/.jobs")
KEYS = "--keys /shared/out/.slidesam/.jobs/slidesam.keys/keys.pem"
WORKERS = "-m slidesam.flows.cluster.device_workers tls://SCHEDULER:PORT --name slidesam-0"
ENDING = '--death-timeout 60 --local-directory "${TMPDIR:-/tmp}"'


def script(name: str, pool: str = "cpu", **changes: object) -> list[str]:
    profile = load_profile(name, {key.replace("__", "."): value for key, value in changes.items()})
    return job_script(profile, pool, logs=LOGS).strip().splitlines()


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
    "export OMP_NUM_THREADS=2 MKL_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2 PYTHONSAFEPATH=1",
    "export SLIDESAM_LEAVE_AT=$(( $(date +%s) + 13500 )) SLIDESAM_LEAVE_STAGGER=300",
    "export SLIDESAM_LOG=/shared/out/.slidesam/.jobs/slidesam-$SLURM_JOB_ID.log",
    f"{sys.executable} {WORKERS} --nthreads 1 --memory-limit 8.00GiB {ENDING} --workers 1 --gpus 0 {KEYS}",
]


@pytest.mark.parametrize("name", ["slurm-cpu", "slurm-gpu", "slurm-mig"])
def test_cpu_jobs_of_the_shipped_slurm_profiles(name: str) -> None:
    assert script(name) == SLURM_CPU


def test_gpu_jobs_of_the_shipped_slurm_profiles() -> None:
    assert script("slurm-cpu", "gpu") == SLURM_CPU
    gpu = "\n".join(script("slurm-gpu", "gpu"))
    for line in ("#SBATCH -p gpu", "#SBATCH --gres=gpu:1", "#SBATCH --cpus-per-task=4", "#SBATCH --mem=32G"):
        assert f"\n{line}\n" in gpu
    assert gpu.endswith("--nthreads 1 --memory-limit 32.00GiB " + ENDING + f" --workers 1 --gpus 1 {KEYS}")
    mig = "\n".join(script("slurm-mig", "gpu"))
    assert "\n#SBATCH --gres=gpu:1g.10gb:1\n" in mig
    assert mig.endswith("--memory-limit 16.00GiB " + ENDING + f" --workers 1 --gpus 1 {KEYS}")


@pytest.mark.parametrize(("memory", "cores", "expected"), [(8, 2, "4096M"), (8, 3, "2731M"), (0.5, 1, "512M")])
def test_sites_that_refuse_memory_per_job_get_it_per_core(memory: float, cores: int, expected: str) -> None:
    text = "\n".join(script("slurm-cpu", memory_per_cpu=True, cpu__memory=memory, cpu__cores=cores))
    assert f"\n#SBATCH --mem-per-cpu={expected}\n" in text
    assert "--mem=" not in text
    # Workers are told of the whole all the same.
    assert f"--memory-limit {memory:.2f}GiB" in text or "--memory-limit 512.00MiB" in text


def test_jobs_of_a_step_have_more_memory_and_are_otherwise_the_same() -> None:
    profile = load_profile("slurm-gpu", {"gpu.memory_steps": [1.5, 3], "gpu.minimum_jobs": 1})
    plain = job_script(profile, "gpu").replace("--mem=32G", "--mem=48G").replace("32.00GiB", "48.00GiB")
    larger = enlarge(profile, "gpu", 1)
    assert isinstance(larger, SlurmProfile)
    assert job_script(larger, "gpu") == plain
    assert larger.cpu == profile.cpu
    assert larger.gpu.minimum_jobs == 0
    assert "--mem=96G" in job_script(enlarge(profile, "gpu", 2), "gpu")
    assert describe_step(profile, "gpu", 2) == "jobs of 96 GiB"


def test_on_this_machine_one_worker_gets_the_memory_of_all() -> None:
    profile = LocalProfile(workers=4, memory=3)
    assert count_steps(profile, "gpu") == 1
    assert enlarge(profile, "gpu", 1) == LocalProfile(workers=1, memory=12)
    assert describe_step(profile, "gpu", 1) == "one worker alone, with 12 GiB"
    assert describe_step(LocalProfile(workers=4), "gpu", 1) == "one worker alone"
    shared = LocalGpuProfile(workers_per_gpu=2)
    assert (count_steps(shared, "gpu"), enlarge(shared, "gpu", 1)) == (1, LocalGpuProfile())
    assert count_steps(LocalGpuProfile(), "gpu") == 0


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
        "export OMP_NUM_THREADS=2 MKL_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2 PYTHONSAFEPATH=1",
    ):  # fmt: skip
        assert line in lines
    assert lines[-1] == (
        f"/opt/bin/python {WORKERS} --nthreads 1 --memory-limit 32.00GiB --death-timeout 30 --local-directory /scratch "
        f"--workers 4 --gpus 2 {KEYS} --interface ib0"
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
    assert "slidesam.flows.cluster.device_workers tls://SCHEDULER:PORT" in text
    assert "--workers 1 --gpus 0" in text


def test_folders_with_signs_of_their_own_reach_sbatch_as_they_are() -> None:
    text = job_script(load_profile("slurm-cpu", {"local_directory": "/my scratch"}), "cpu", logs=Path('/a b/50%/"c"'))
    assert '#SBATCH --output="/a b/50%%/\\"c\\"/%x-%j.log"' in text
    assert "--local-directory '/my scratch'" in text
    assert """--keys '/a b/50%/"c"/slidesam.keys/keys.pem'""" in text
    assert """export SLIDESAM_LOG='/a b/50%/"c"'/slidesam-$SLURM_JOB_ID.log""" in text


def test_schedulers_listen_on_one_address_and_those_of_two_pools_on_two_ports() -> None:
    where = load_profile(
        "slurm-gpu", {"scheduler.host": "10.0.0.5", "scheduler.port": 8786, "scheduler.dashboard_port": 8800}
    )
    for pool, port, page in (("cpu", 8786, "8800"), ("gpu", 8787, "8801")):
        found = scheduler_options(where, pool, Path("link"))
        assert (found["host"], found["port"], found["dashboard"]) == ("10.0.0.5", port, False)
        assert found["preload_argv"] == [["--link-file", "link", "--link-port", page]]
    assert scheduler_options(where, "gpu", step=1)["port"] == 8789
    alone = scheduler_options(load_profile("slurm-cpu"))
    assert alone["host"] not in (None, "", "0.0.0.0")
    assert alone["dashboard_address"] == f"{alone['host']}:0"
    assert alone["preload_argv"] == [[]]


def test_options_of_another_queue_reach_its_class() -> None:
    pool = {"options": {"resource_spec": "select=1:ncpus=4:ngpus=1", "account": "lab"}, "gpus": 1}
    text = job_script(make_profile({"kind": "pbs", "gpu": pool}), "gpu")
    assert "#PBS -l select=1:ncpus=4:ngpus=1" in text
    assert "#PBS -A lab" in text


@pytest.mark.parametrize("end", ["\n", "\r", "\x0b", "\x85"])
@pytest.mark.parametrize("kind", ["slurm", "pbs", "lsf", "sge", "oar", "moab"])
def test_a_folder_with_a_line_end_does_not_reach_the_script(kind: str, end: str) -> None:
    profile = make_profile({"kind": kind, "cpu": {"walltime": "10:00"}})
    with pytest.raises(ClusterError, match=r"would be a part of the job script: .* name the output"):
        job_script(profile, "cpu", logs=Path(f"/out{end}touch x #"))


@pytest.mark.parametrize(
    "changes",
    [
        {"cpu": {"partition": "long\ntouch x"}},
        {"cpu": {"account": "lab\ntouch x"}},
        {"cpu": {"qos": "short\ntouch x"}},
        {"cpu": {"gpus": 1, "gpu_type": "a100\ntouch x"}},
        {"cpu": {"directives": ["--constraint=ib\ntouch x"]}},
        {"interface": "ib0\ntouch x"},
    ],
)
def test_a_setting_with_a_line_end_does_not_reach_the_script(changes: dict) -> None:
    with pytest.raises(ClusterError, match=r"touch x(:1)?' \(\w+\) has the character '\\n' in it"):
        job_script(make_profile({"kind": "slurm", **changes}), "cpu", logs=LOGS)


def test_lines_of_shell_may_have_line_ends() -> None:
    lines = script("slurm-cpu", cpu__prologue=["if true\nthen module load cuda\nfi"])
    assert "then module load cuda" in lines


@pytest.mark.parametrize(("kind", "line"), [
    ("pbs", "#PBS -l walltime=50:30:00"), ("sge", "#$ -l h_rt=50:30:00"), ("oar", "walltime=50:30:00"),
    ("moab", "#PBS -l walltime=50:30:00"), ("lsf", "#BSUB -W 50:30"), ("slurm", "#SBATCH -t 2-02:30:00"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:OAR Job memory")
def test_days_are_written_as_the_queue_knows_them(kind: str, line: str) -> None:
    assert line in job_script(make_profile({"kind": kind, "cpu": {"walltime": "2-02:30:00"}}), "cpu")


def test_a_configuration_of_dask_changes_no_script() -> None:
    profile = make_profile({"kind": "slurm", "cpu": {"cores": 3}})
    script_before = job_script(profile, "cpu")
    theirs = {
        "queue": "theirs", "account": "theirs", "job-mem": "1GB", "job-cpu": 99, "log-directory": "/theirs",
        "shebang": "#!/theirs",
        "job-directives-skip": ["-t"], "env-extra": ["theirs"], "job-script-prologue": ["theirs"], "interface": "theirs",
    }  # fmt: skip
    with dask.config.set({"jobqueue.slurm": theirs}):
        assert job_script(profile, "cpu") == script_before
