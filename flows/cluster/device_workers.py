"""Starts Dask workers on this node, each on its own device or on its share of one.

    python -m slidesam.flows.cluster.device_workers tls://10.0.0.5:8786 --keys keys.pem --gpus 2 --workers 4

Job scripts and infra/interactive start their workers so, instead of with `dask worker`: it knows nothing of GPUs, and would show
all of them to each worker. What only `dask worker` understands is handed on to it.

A single worker takes the launcher's place, so that its signals and its exit code are the job's. Several are its children and end
with it, whatever ends it. Imports nothing that takes time: workers wait for it.

Workers and nannies listen on one address of the node, and talk by TLS only to those who have the cluster's key. They find the
key in their environment, which no other user can read: `ps` shows the command to everybody.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from slidesam.flows.cluster.scratch import make_scratch_folder
from slidesam.flows.cluster.secret_files import read_secret
from slidesam.tasks.segment.devices import CPU, GIVEN, nvidia_smi, share, visible_devices

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# flows/cluster/cluster.py says why. What the environment holds goes before the settings of Dask's nanny.
KEEP_MEMORY = {
    **dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**35)),
    # Only the arena of the main thread can grow that far, and Dask calls tasks in another.
    "MALLOC_ARENA_MAX": "1",
}
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class DeviceWorker:
    """A worker process to start."""

    name: str
    """Its name on the cluster."""
    device: str
    """The device that it is given."""
    threads: int
    """Threads that the computing of one block uses."""
    memory: str
    """What it may use before Dask ends it, as `dask worker` takes it."""

    def command(self, address: str, handed_on: Sequence[str]) -> list[str]:
        """Return the command that starts it.

        Args:
            address: The scheduler's address.
            handed_on: More options of `dask worker`; those that slidesam depends on override them.
        """
        own_options = ["--name", self.name, "--memory-limit", self.memory, "--nthreads", "1", "--nworkers", "1"]
        # The port for HTTP that Dask opens in any case, and the worker closes.
        http = ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
        fixed = ["--nanny", *http, "--preload", "slidesam.flows.cluster.on_worker"]
        fixed += ["--preload-nanny", "slidesam.flows.cluster.on_nanny"]
        return [sys.executable, "-m", "distributed.cli.dask_worker", address, *handed_on, *own_options, *fixed]

    def environment(self, launcher_variables: Mapping[str, str]) -> dict[str, str]:
        """Return the environment variables that it starts with.

        Args:
            launcher_variables: Those of the launcher; what they set for threads and memory is kept.
        """
        on_cpu = self.device == CPU
        # Indices are nvidia-smi's; CUDA itself would give 0 to the fastest GPU.
        order = {} if on_cpu else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        fixed = {"CUDA_VISIBLE_DEVICES": "" if on_cpu else self.device, GIVEN: self.device}
        # `python -m`, and what Dask's nanny starts, would import from the current folder, which others may have filled.
        fixed["PYTHONSAFEPATH"] = "1"
        return {**dict.fromkeys(_THREADS, str(self.threads)), **KEEP_MEMORY, **order, **launcher_variables, **fixed}


def launch_workers(arguments: Sequence[str] | None = None) -> int:
    """Start workers and wait for them.

    Args:
        arguments: Those of the command line.

    Returns:
        The exit code: the highest of all workers', or 1 if none was started.
    """
    options, handed_on = _options(arguments)
    devices = () if options.gpus == 0 else visible_devices(os.environ, nvidia_smi())
    if options.gpus is not None and len(devices) != options.gpus:
        print(_refusal(options.gpus, devices), file=sys.stderr)
        return 1
    try:
        os.environ.update(_tls_variables(options.keys))
    except OSError as error:
        print(f"the cluster's keys can't be read: {error}; did the run that asked for workers end?", file=sys.stderr)
        return 1
    if "--host" not in handed_on and "--interface" not in handed_on:
        handed_on += ["--host", address_towards(options.address)]
    try:
        handed_on += ["--local-directory", str(make_scratch_folder(options.local_directory))]
    except OSError as error:
        print(f"no folder for temporary files of the workers: {error}", file=sys.stderr)
        return 1
    workers = _workers(options, devices)
    # Written at once, or srun mixes it with what other nodes write.
    sys.stderr.write(_in_words(workers) + "\n")
    if len(workers) == 1:
        command = workers[0].command(options.address, handed_on)
        os.execve(command[0], command, workers[0].environment(os.environ))  # noqa: S606
    return _run_all(workers, options.address, handed_on)


def address_towards(scheduler: str) -> str:
    """Return this machine's address on the network of a scheduler; loopback if the scheduler is on this machine.

    Args:
        scheduler: Its address.
    """
    parts = urlsplit(scheduler)
    try:
        family, _, _, _, peer = socket.getaddrinfo(parts.hostname, parts.port or 8786, type=socket.SOCK_DGRAM)[0]
        # No packet is sent: this only asks for the route.
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(peer)
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def _tls_variables(keys: str | None) -> dict[str, str]:
    """Return the environment variables by which Dask finds the cluster's keys, and serves nothing over HTTP."""
    variables = {"DASK_DISTRIBUTED__WORKER__HTTP__ROUTES": "[]"}
    if keys is None:
        return variables
    text = sys.stdin.read() if keys == "-" else read_secret(Path(keys))
    names = ("CA_FILE", "WORKER__CERT", "WORKER__KEY")
    variables |= {f"DASK_DISTRIBUTED__COMM__TLS__{name}": text for name in names}
    return variables | {"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True"}


def divided(memory: str, workers: int) -> str:
    """Divide memory among workers.

    Args:
        memory: Bytes, a fraction of the machine's memory (up to 1.0), or a number with a unit; 0 and auto are unchanged.
        workers: How many share it.

    Raises:
        ValueError: It is no amount of memory.

    Example:
        >>> divided("16.00GiB", 4), divided("1000", 3), divided("0.5", 2), divided("auto", 2)
        ('4GiB', '333', '0.25', 'auto')
    """
    if memory == "auto":
        return memory
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)", memory.strip())
    if match is None:
        raise ValueError(f"{memory!r} is no amount of memory: write 16GiB, or 0 for no limit")
    number, unit = float(match[1]), match[2]
    # A bare number up to 1 is a fraction of the machine's memory.
    amount = number / workers if unit or number <= 1 else number // workers
    return f"{amount:.12g}{unit}"


def _options(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m slidesam.flows.cluster.device_workers",
        description="Starts Dask workers on this node, each on its own device or on its share of one.",
        epilog="All other options are handed on to `dask worker`.",
        allow_abbrev=False,
    )
    parser.add_argument("address", metavar="ADDRESS", help="the scheduler's, such as tls://10.0.0.5:8786; comes first")
    parser.add_argument(
        "--keys",
        metavar="FILE",
        help="of the cluster's key and certificate, in PEM; - = standard input (default: no TLS)",
    )
    parser.add_argument("--name", metavar="NAME", help="of the worker, or of the first NAME-0 (default: host-pid)")
    parser.add_argument(
        "--workers", type=_positive, metavar="N", help="on this node (default: one per device, or 1 without)"
    )
    parser.add_argument(
        "--gpus",
        type=_natural,
        metavar="G",
        help="devices (GPUs, or MIG instances) that this node has to show, or nothing is started; "
        "0 = compute on the CPU (default: all there are)",
    )
    parser.add_argument(
        "--memory-limit",
        default="0",
        metavar="BYTES",
        help="of all workers together; 0 = Dask watches none (default), auto = Dask's",
    )
    parser.add_argument(
        "--local-directory", metavar="FOLDER", help="for temporary files (default: that of Dask's settings)"
    )
    parser.add_argument("--nthreads", help="ignored: a worker computes one block at a time, on OMP_NUM_THREADS threads")
    options, handed_on = parser.parse_known_args(arguments)
    if ":" not in options.address:
        parser.error(f"{options.address} is no address: the scheduler's, such as tls://10.0.0.5:8786, comes first")
    options.name = options.name or f"{socket.gethostname()}-{os.getpid()}"
    try:
        divided(options.memory_limit, 1)
    except ValueError as error:
        parser.error(str(error))
    return options, handed_on


def _positive(text: str) -> int:
    number = _natural(text)
    if number == 0:
        raise argparse.ArgumentTypeError("has to be 1 or more")
    return number


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def _workers(options: argparse.Namespace, devices: Sequence[str]) -> list[DeviceWorker]:
    shares = share(devices, options.workers or max(1, len(devices)))
    threads = max(1, _cpus(os.environ) // len(shares))
    memory = divided(options.memory_limit, len(shares))
    names = [options.name] if len(shares) == 1 else [f"{options.name}-{i}" for i in range(len(shares))]
    return [DeviceWorker(name, device, threads, memory) for name, device in zip(names, shares, strict=True)]


def _cpus(environment: Mapping[str, str]) -> int:
    """Count the CPUs that this process may use; without cgroups a Slurm job sees all CPUs of its node."""
    n_usable = len(os.sched_getaffinity(0))
    granted = environment.get("SLURM_CPUS_PER_TASK", "")
    return min(n_usable, int(granted)) if granted.isdigit() and int(granted) else n_usable


def _refusal(expected: int, devices: Sequence[str]) -> str:
    visible_devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    device_list = ", ".join(devices) or "none"
    return (
        f"{socket.gethostname()}: {expected} GPUs (or MIG instances) are expected and {len(devices)} are there ({device_list}; "
        f"CUDA_VISIBLE_DEVICES is {'unset' if visible_devices is None else repr(visible_devices)}): request as many "
        f"(such as --gres=gpu:{expected}), start a container with --nv, or correct --gpus"
    )


def _in_words(workers: Sequence[DeviceWorker]) -> str:
    """Describe workers in one line for the log; infra/interactive/cluster counts the workers by it."""
    worker_list = ", ".join(f"{worker.name} on {worker.device}" for worker in workers)
    return f"slidesam workers on {socket.gethostname()}: {len(workers)} ({worker_list}), threads each: {workers[0].threads}"


def _run_all(workers: Sequence[DeviceWorker], address: str, handed_on: Sequence[str]) -> int:
    """Start several workers, pass signals on to them, and wait until the last has ended."""
    # Blocked and waited for, signals come one after another, and none is lost between two lines of code.
    waited_for = {*_SIGNALS, signal.SIGCHLD}
    signal_mask = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    launcher = os.getpid()

    def in_child() -> None:
        _die_with(launcher)
        signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)

    processes = [
        subprocess.Popen(  # noqa: S603
            worker.command(address, handed_on),
            stdin=subprocess.DEVNULL,
            env=worker.environment(os.environ),
            preexec_fn=in_child,
        )
        for worker in workers
    ]
    while any(process.poll() is None for process in processes):
        signum = signal.sigwait(waited_for)
        if signum in _SIGNALS:
            for process in processes:
                process.send_signal(signum)
    return max(_exit_code(process.returncode) for process in processes)


def _die_with(launcher: int) -> None:
    """Ask Linux to end this process when the launcher is killed; Dask's nanny then ends its worker."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != launcher:  # it was killed before
        os._exit(1)


def _exit_code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


if __name__ == "__main__":
    sys.exit(launch_workers())
