"""Cluster profiles: where to compute, as data that says nothing of what is computed.

    local        worker processes on this machine
    local-gpu    the same, each pinned to a GPU or MIG instance of this machine
    slurm        jobs on Slurm, by dask-jobqueue
    pbs, lsf, sge, htcondor, oar, moab      jobs on another queue, by dask-jobqueue's class for it
    attach       a Dask cluster that somebody else started, and that is never shut down

A profile for a queue has one or two worker pools: the jobs of `gpu` run the stage that may use an accelerator, those of `cpu` all
other stages. Without `gpu` the jobs of `cpu` run everything. `find_profile` reads profiles from files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# A block of 2048 px takes micro-sam's AMG with ViT-B 9 GiB on the CPU, AIS 4.4, `watershed` 0.3 (benchmarks/block.py).
_BYTES_PER_WORKER = 8 * 2**30
_WALLTIME = re.compile(r"(?:(?:(\d+)-)?(\d{1,3}):)?(\d{1,2}):(\d{2})")
# Of a walltime that is a number.
_LEAST_SECONDS = 3600
# What a worker may still need, once it takes no further block, before its job is ended.
_MARGIN, _MARGIN_SECONDS = 0.25, 900.0
Stage = Literal["cpu", "gpu"]
Queue = Literal["pbs", "lsf", "sge", "htcondor", "oar", "moab"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


class LocalProfile(_Section):
    """Worker processes on this machine."""

    kind: Literal["local"] = "local"
    """Kind of cluster."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Worker processes; null = as many as this machine has cores and memory (8 GiB each) for."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Threads for one block. Equal results need the same number: see the provenance."""
    memory: Annotated[float, Field(gt=0)] | None = None
    """GiB that a worker may use; null = no limit. A block that runs out of memory is tried again alone, with all workers'."""
    dashboard: bool = False
    """Serve the Dask dashboard, on loopback, to whoever has the link that `slidesam status` shows."""

    @property
    def n_workers(self) -> int:
        """Number of worker processes to start."""
        if self.workers is not None:
            return self.workers
        from dask.system import CPU_COUNT
        from distributed.system import MEMORY_LIMIT

        return max(1, min(CPU_COUNT // self.threads, MEMORY_LIMIT // _BYTES_PER_WORKER))


class LocalGpuProfile(_Section):
    """Worker processes on this machine, each pinned to one of its GPUs or MIG instances."""

    kind: Literal["local-gpu"] = "local-gpu"
    """Kind of cluster."""
    devices: Literal["auto"] | tuple[str, ...] = "auto"
    """Indices or UUIDs of GPUs or MIG instances; auto = those of CUDA_VISIBLE_DEVICES, else all that `nvidia-smi -L` lists."""
    workers_per_gpu: Annotated[int, Field(ge=1)] = 1
    """Worker processes that share a device; each holds its own model."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Threads for one block, besides the device."""
    dashboard: bool = False
    """Serve the Dask dashboard, on loopback, to whoever has the link that `slidesam status` shows."""

    @field_validator("devices", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return tuple(map(str, value)) if isinstance(value, list | tuple) else value


class AttachProfile(_Section):
    """A Dask cluster that runs already; its workers need `--preload slidesam.flows.cluster.on_worker --nthreads 1`."""

    kind: Literal["attach"] = "attach"
    """Kind of cluster."""
    address: str
    """Address of its scheduler: tls://HOST:PORT, or tcp://HOST:PORT of a cluster that lets everybody in."""
    ca_file: Path | None = None
    """File with the certificate (PEM) that the cluster's members trust; null = what Dask's own configuration says."""
    cert_file: Path | None = None
    """File with the certificate to show to them; null = ca_file."""
    key_file: Path | None = None
    """File with its key; null = cert_file, or ca_file."""

    @model_validator(mode="after")
    def _agree(self) -> AttachProfile:
        files = self.ca_file, self.cert_file, self.key_file
        if any(files) and not self.address.startswith("tls://"):
            raise ValueError(f"ca_file, cert_file and key_file belong to an address tls://..., not to {self.address}")
        if any(files) and self.ca_file is None:
            raise ValueError("cert_file and key_file need ca_file too")
        return self


class Scheduler(_Section):
    """Where the Dask scheduler listens: in the process that runs slidesam, on a host that the jobs can reach."""

    host: str | None = None
    """Address of this host as the jobs' nodes see it; null = that of `interface`, or of the default route."""
    interface: str | None = None
    """Network interface, such as ib0; null = the profile's."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port; 0 = any free port; the scheduler of the gpu pool takes the next."""
    dashboard_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of the Dask dashboard, on this host's loopback; 0 = any free port; that of the gpu pool takes the next."""


class Jobs(_Section):
    """One kind of job, and how many of it."""

    cores: Annotated[int, Field(ge=1)] = 2
    """CPU cores of a job; each of its workers computes with cores / workers threads; equal results need the same number."""
    memory: Annotated[float, Field(gt=0)] = 8
    """Memory of a job in GiB, shared by its workers."""
    memory_steps: tuple[Annotated[float, Field(gt=1)], ...] = Field(default=(2.0, 4.0), max_length=8)
    """Blocks that ran out of memory are tried again in jobs of so many times `memory`, one step after the other; [] = never."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs or MIG instances of a job; its workers are spread over them, and a job that finds another number refuses to work."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Worker processes of a job; more than `gpus` share them."""
    walltime: str = "04:00:00"
    """Longest time of a job: [[days-]hours:]minutes:seconds."""
    lifetime: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """Seconds after which a worker takes no further block; auto = walltime minus a quarter, at most minus 15 minutes."""
    lifetime_stagger: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """Seconds by which lifetimes differ, up and down, so that jobs don't all end at once; auto = a third of the time left."""
    minimum_jobs: Annotated[int, Field(ge=0)] = 0
    """Jobs that are kept during a run, even without work."""
    maximum_jobs: Annotated[int, Field(ge=1)] = 4
    """Most jobs that wait or run at once."""
    prologue: tuple[str, ...] = ()
    """Lines of shell before the workers start, such as `module load cuda`."""
    directives: tuple[str, ...] = ()
    """Further directives of the queue, without `#SBATCH` or its like, such as --constraint=a100."""

    @field_validator("walltime", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        # YAML reads 4:00:00 without quotes as a number of seconds. A small one was meant as minutes, or as hours and minutes.
        if isinstance(value, int) and not isinstance(value, bool):
            if value < _LEAST_SECONDS:
                raise ValueError(f'{value} may be minutes or seconds: write it as "hours:minutes:seconds", in quotes')
            return _clock(value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> Jobs:
        if not _WALLTIME.fullmatch(self.walltime):
            raise ValueError(f"walltime must be [[days-]hours:]minutes:seconds, not {self.walltime!r}")
        if self.minimum_jobs > self.maximum_jobs:
            raise ValueError(f"minimum_jobs ({self.minimum_jobs}) is more than maximum_jobs ({self.maximum_jobs})")
        if list(self.memory_steps) != sorted(set(self.memory_steps)):
            raise ValueError(f"memory_steps {list(self.memory_steps)} have to grow")
        if self.workers > self.cores:
            raise ValueError(f"a job of {self.cores} cores has none for each of {self.workers} workers")
        if 0 < self.workers < self.gpus:
            raise ValueError(
                f"{self.workers} workers leave some of {self.gpus} gpus idle: give as many workers as gpus"
            )
        if self.lifetime_seconds + self.stagger_seconds >= self.walltime_seconds:
            raise ValueError(
                f"lifetime ({self.lifetime_seconds:g} s) with its stagger ({self.stagger_seconds:g} s) must be below the "
                f"walltime ({self.walltime}), by as much as a block takes"
            )
        return self

    @property
    def walltime_seconds(self) -> float:
        """The walltime in seconds."""
        match = _WALLTIME.fullmatch(self.walltime)
        assert match is not None
        days, hours, minutes, seconds = (int(number or 0) for number in match.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)

    @property
    def lifetime_seconds(self) -> float:
        """Seconds after which a worker takes no further block."""
        if self.lifetime != "auto":
            return self.lifetime
        return self.walltime_seconds - min(_MARGIN * self.walltime_seconds, _MARGIN_SECONDS)

    @property
    def stagger_seconds(self) -> float:
        """Seconds by which lifetimes differ, up and down."""
        if self.lifetime_stagger != "auto":
            return self.lifetime_stagger
        return max(0.0, self.walltime_seconds - self.lifetime_seconds) / 3

    @property
    def threads(self) -> int:
        """Threads that the computing of one block uses."""
        return self.cores // self.workers


class SlurmJobs(Jobs):
    """One kind of Slurm job, and how many of it."""

    partition: str | None = None
    """Partition; null = Slurm's default."""
    qos: str | None = None
    """Quality of service."""
    account: str | None = None
    """Account that is charged."""
    gpu_type: str | None = None
    """Type of GPU or MIG instance as the site's gres names it, such as a100 or 1g.10gb; null = any."""

    @property
    def gres(self) -> str | None:
        """What the job asks for with --gres."""
        if not self.gpus:
            return None
        return ":".join(["gpu", *([self.gpu_type] if self.gpu_type else []), str(self.gpus)])


class QueueJobs(Jobs):
    """One kind of job on another queue, and how many of it."""

    queue: str | None = None
    """Queue; null = the default."""
    options: Mapping[str, Any] = Field(default_factory=dict)
    """Further options of dask-jobqueue's class for this queue, such as resource_spec or account."""


class _QueueProfile(_Section):
    scheduler: Scheduler = Scheduler()
    """Where the Dask scheduler listens."""
    dashboard: bool = False
    """Serve the Dask dashboard, on this host's loopback, to whoever has the link that `slidesam status` shows."""
    interface: str | None = None
    """Network interface of the workers, such as ib0; null = that of the default route of their node."""
    local_directory: str | None = None
    """Folder on the nodes for temporary files; null = the job's TMPDIR."""
    python: str | None = None
    """Python that the jobs run; null = the one that runs slidesam, or python3 in a container."""
    container: Path | None = None
    """Apptainer image in which workers run; null = none."""
    container_command: str = "apptainer"
    """Command that runs it: apptainer or singularity."""
    container_binds: tuple[str, ...] = ()
    """Folders that workers need besides home and /tmp, such as those of slides and results."""
    death_timeout: Annotated[int, Field(ge=5)] = 60
    """Seconds after which a job ends if it finds no scheduler, for instance because slidesam was killed."""
    give_back_after: Annotated[int, Field(ge=1)] = 60
    """Seconds after which a job is given back during a run if it has no work and fewer jobs are needed; `minimum_jobs` stay."""


class SlurmProfile(_QueueProfile):
    """Jobs on Slurm."""

    kind: Literal["slurm"] = "slurm"
    """Kind of cluster."""
    memory_per_cpu: bool = False
    """Request memory with --mem-per-cpu (`memory` / `cores`) instead of --mem, for sites that refuse that."""
    cpu: SlurmJobs = SlurmJobs()
    """Jobs of the stages that need no accelerator."""
    gpu: SlurmJobs | None = None
    """Jobs of the stage that segments; null = those of `cpu`."""


class QueueProfile(_QueueProfile):
    """Jobs on another queue, by dask-jobqueue's class for it."""

    kind: Queue
    """Kind of queue."""
    cpu: QueueJobs = QueueJobs()
    """Jobs of the stages that need no accelerator."""
    gpu: QueueJobs | None = None
    """Jobs of the stage that segments; null = those of `cpu`."""


JobProfile = SlurmProfile | QueueProfile
ClusterProfile = Annotated[
    LocalProfile | LocalGpuProfile | SlurmProfile | QueueProfile | AttachProfile, Field(discriminator="kind")
]


def _clock(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"
