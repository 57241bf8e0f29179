"""Where blocks are computed: worker processes on this machine, or a Dask cluster that runs already.

The cluster starts when the first flow asks for its address, so that a run that finds everything done starts none, and several
slides of one command share one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from slidesam.tasks.errors import ClusterError

# A block of 2048 px takes micro-sam's AMG with ViT-B 7 GiB on the CPU, AIS 4.4, `watershed` 0.3 (benchmarks/block.py).
_BYTES_PER_WORKER = 8 * 2**30


class LocalProfile(BaseModel):
    """Worker processes on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["local"] = "local"
    """Kind of cluster."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Worker processes; none = as many as this machine has cores and memory (8 GiB each) for."""
    threads: Annotated[int, Field(ge=1)] = 1
    """Threads that the computing of one block uses. It is part of what makes results equal: see the provenance."""

    @property
    def n_workers(self) -> int:
        """Worker processes that will be started."""
        if self.workers is not None:
            return self.workers
        from dask.system import CPU_COUNT
        from distributed.system import MEMORY_LIMIT

        return max(1, min(CPU_COUNT // self.threads, MEMORY_LIMIT // _BYTES_PER_WORKER))


class DaskProfile(BaseModel):
    """A Dask cluster that somebody else started; its workers need `--preload slidesam.flows.on_worker --nthreads 1`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["dask"] = "dask"
    """Kind of cluster."""
    address: str
    """Address of its scheduler, such as tcp://10.0.0.5:8786."""


ClusterProfile = LocalProfile | DaskProfile


class Cluster:
    """A cluster that starts when its address is first asked for.

    Args:
        profile: What to start.
    """

    def __init__(self, profile: ClusterProfile) -> None:
        self.profile = profile
        self._stack = ExitStack()
        self._address: str | None = None
        self.dashboard: str | None = None

    @property
    def address(self) -> str:
        """Address of the Dask scheduler."""
        if self._address is None:
            profile = self.profile
            found = self._reached(profile.address) if isinstance(profile, DaskProfile) else self._started(profile)
            self._address, self.dashboard = found
        return self._address

    def _reached(self, address: str) -> tuple[str, str]:
        """Address and dashboard of a scheduler that is there.

        Raises:
            ClusterError: It isn't.
        """
        from dask.distributed import Client

        try:
            with Client(address, timeout="15s", set_as_default=False) as client:
                return address, str(client.dashboard_link)
        except (OSError, ValueError) as error:
            raise ClusterError(
                f"no Dask scheduler answers at {address}: start it (`dask scheduler`), or correct the address"
            ) from error

    def _started(self, profile: LocalProfile) -> tuple[str, str]:
        """Address and dashboard of a new cluster on this machine."""
        import dask
        from dask.distributed import LocalCluster

        # A nanny would set one thread; blocks run one at a time in a worker, on as many threads as the profile says.
        threads = {f"{library}_NUM_THREADS": str(profile.threads) for library in ("OMP", "MKL", "OPENBLAS")}
        # It would also give memory back after each large array, to fetch it again for the next: micro-sam on the CPU
        # takes 0.6 of the time if the process keeps it (benchmarks/block.py).
        memory = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**35))
        settings = {
            # A process has to find these as it starts: what is given to the cluster below comes too late for them.
            "distributed.nanny.pre-spawn-environ": threads | memory,
            # Which block costs its workers is counted per block, by start-marks: Dask would blame all that wait beside it.
            "distributed.scheduler.allowed-failures": 10**6,
        }
        self._stack.enter_context(dask.config.set(settings))
        cluster = self._stack.enter_context(
            LocalCluster(
                n_workers=profile.n_workers,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                memory_limit=0,
                preload="slidesam.flows.on_worker",
                env=threads,
            )
        )
        return str(cluster.scheduler_address), str(cluster.dashboard_link)

    def close(self) -> None:
        """Ends the workers, if any were started."""
        self._stack.close()
        self._address = None


_shared: ContextVar[Cluster | None] = ContextVar("slidesam_cluster", default=None)


@contextmanager
def open_cluster(profile: ClusterProfile) -> Iterator[Cluster]:
    """The cluster of a profile: the one that is open around this call if it is of the same profile, else a new one."""
    around = _shared.get()
    if around is not None and around.profile == profile:
        yield around
        return
    cluster = Cluster(profile)
    token = _shared.set(cluster)
    try:
        yield cluster
    finally:
        _shared.reset(token)
        cluster.close()
