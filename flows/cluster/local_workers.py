"""Worker processes on this machine: their environment, their devices, and others in place of those that are lost.

They listen on loopback, which every user of the machine reaches, so they talk by TLS only. The key is never written.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidesam.flows.cluster.device_workers import KEEP_MEMORY
from slidesam.flows.cluster.keys import make_keys, make_security
from slidesam.flows.cluster.links import LOOPBACK, dashboard_options, read_page
from slidesam.flows.cluster.profile import LocalGpuProfile, LocalProfile
from slidesam.flows.cluster.scratch import make_scratch_folder
from slidesam.tasks.errors import ClusterError
from slidesam.tasks.segment import devices

if TYPE_CHECKING:
    from slidesam.flows.cluster.task_runner import Connection, SharedTaskRunner

_PATIENCE = "15s"
_PRELOADS = {"preload": "slidesam.flows.cluster.on_worker", "preload_nanny": "slidesam.flows.cluster.on_nanny"}


@dataclass
class Workers:
    """A Dask scheduler and its workers.

    Attributes:
        address: The scheduler's address.
        security: What a client needs to talk to it; None = it talks to everybody.
        dashboard: Address of its web page, without the token that it asks for; None if it has none.
        close: Ends what was started.
        keeper: Controls the number of jobs, if there are jobs.
        replace_lost: Starts workers in place of those whose nanny has given up.
    """

    address: str
    security: Any
    dashboard: str | None
    close: Callable[[], None]
    keeper: Any = None
    replace_lost: Callable[[], None] = lambda: None
    _connection: Connection | None = None

    def connect(self) -> Any:
        """Return a Dask client of the scheduler."""
        from dask.distributed import Client

        return Client(self.address, security=self.security, timeout=_PATIENCE, set_as_default=False)

    def task_runner(self) -> SharedTaskRunner:
        """Return a task runner of Prefect that computes tasks here; all of them share one connection."""
        from slidesam.flows.cluster.task_runner import Connection, SharedTaskRunner

        if self._connection is None:
            self._connection = Connection(self.address, self.connect)
        return SharedTaskRunner(self.address, self._connection)

    def end(self) -> None:
        """Close the connection, and end what was started."""
        if self._connection is not None:
            self._connection.close()
        self.close()


def _worker_environment(threads: int) -> dict[str, str]:
    """Return the environment variables that a worker process needs at its start."""
    # A nanny would set one thread. A worker computes one block at a time, with as many threads as the profile says.
    thread_limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    # It would also return memory after each large array and request it again for the next: micro-sam on the CPU takes
    # 0.6 of the time if the process keeps its memory (benchmarks/block.py, benchmarks/guide).
    return thread_limits | KEEP_MEMORY


def start_local(profile: LocalProfile, link: Path | None = None) -> Workers:
    """Start worker processes on this machine.

    Args:
        profile: How many.
        link: File for the link of the dashboard; None = there is no dashboard.
    """
    import dask
    from dask.distributed import LocalCluster

    stack, environment, security = ExitStack(), _worker_environment(profile.threads), make_security(make_keys())
    # `env` of the cluster below is set too late for libraries that read it at the start of the process.
    stack.enter_context(dask.config.set({"distributed.nanny.pre-spawn-environ": environment}))
    cluster = stack.enter_context(
        LocalCluster(
            n_workers=profile.n_workers,
            threads_per_worker=1,
            host=LOOPBACK,
            protocol="tls://",
            security=security,
            dashboard_address=f"{LOOPBACK}:0",
            scheduler_kwargs=dashboard_options(link),
            memory_limit=0 if profile.memory is None else f"{profile.memory:g}GiB",
            local_directory=str(make_scratch_folder()),
            env=environment,
            **_PRELOADS,
        )
    )
    return Workers(
        str(cluster.scheduler_address),
        security,
        read_page(link),
        stack.close,
        replace_lost=partial(_replace_lost, cluster),
    )


def _replace_lost(cluster: Any) -> None:
    """Have a cluster of this machine replace nannies that have closed.

    A nanny closes for good if the worker that it starts can't register, for instance because the scheduler still lists
    the killed worker of this name. Dask starts no other, and the run would wait for ever.
    """

    def replace() -> None:
        for name, nanny in list(cluster.workers.items()):
            if nanny.status.name in ("closed", "failed"):
                del cluster.workers[name]
        if len(cluster.workers) < len(cluster.worker_spec):
            cluster.scale(len(cluster.worker_spec))

    cluster.loop.add_callback(replace)


def start_local_gpu(profile: LocalGpuProfile, link: Path | None = None) -> Workers:
    """Start worker processes on this machine, each of which sees one device.

    Args:
        profile: How many, on which devices.
        link: File for the link of the dashboard; None = there is no dashboard.

    Raises:
        ClusterError: There is no device.
    """
    import dask
    from dask.distributed import Nanny, Scheduler
    from distributed.deploy.spec import SpecCluster

    visible = (
        profile.devices if profile.devices != "auto" else devices.visible_devices(os.environ, devices.nvidia_smi())
    )
    if not visible:
        raise ClusterError(
            f"no GPU was found on {socket.gethostname()} (CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}, `nvidia-smi -L` lists none)",
            "use --cluster local",
        )
    stack, environment, security = ExitStack(), _worker_environment(profile.threads), make_security(make_keys())
    stack.enter_context(dask.config.set({"distributed.nanny.pre-spawn-environ": environment}))
    member = {"host": LOOPBACK, "protocol": "tls://", "security": security, "dashboard": False}
    common = member | {"nthreads": 1, "memory_limit": 0, **_PRELOADS}
    common["local_directory"] = str(make_scratch_folder())
    specs = {}
    for number, device in enumerate(device for device in visible for _ in range(profile.workers_per_gpu)):
        pinned = environment | {"CUDA_VISIBLE_DEVICES": device, devices.GIVEN: device}
        specs[number] = {"cls": Nanny, "options": common | {"env": pinned}}
    options = member | {"port": 0, "dashboard_address": f"{LOOPBACK}:0"} | dashboard_options(link)
    scheduler = {"cls": Scheduler, "options": options}
    cluster = stack.enter_context(
        SpecCluster(workers=specs, scheduler=scheduler, security=security, silence_logs="error")
    )
    return Workers(
        str(cluster.scheduler_address),
        security,
        read_page(link),
        stack.close,
        replace_lost=partial(_replace_lost, cluster),
    )
