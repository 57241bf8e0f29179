"""GPUs and MIG instances: list them, share them among workers, and check that a worker has the one that it was given.

A worker is started with one device in CUDA_VISIBLE_DEVICES, and with the same device in `GIVEN`. In between, job scripts, modules
and containers may set CUDA_VISIBLE_DEVICES again. torch then finds another GPU, or none, and computes on the CPU without a
warning. So the worker compares the two.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from slidesam.tasks.errors import DeviceError

# Environment variable with the device that a worker was given, as CUDA_VISIBLE_DEVICES names it, or CPU.
GIVEN = "SLIDESAM_DEVICE"
CPU = "cpu"

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_GPU = re.compile(r"\s*GPU\s+(\d+):\s+(.*?)\s+\(UUID:\s*(\S+?)\s*\)")
_INSTANCE = re.compile(r"\s+MIG\s+(.*?)\s+Device\s+(\d+):\s+\(UUID:\s*(\S+?)\s*\)")
_SMI_SECONDS = 30.0


@dataclass(frozen=True)
class Instance:
    """A part of a GPU that counts as a device (MIG)."""

    profile: str
    """Its size, such as 1g.5gb."""
    index: int
    """Its number on its GPU."""
    uuid: str
    """Its name: the only one by which CUDA finds it."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi lists it. One in MIG mode without instances looks like one without MIG mode, and can't be used."""

    index: int
    """Its number in the order of the PCI bus."""
    name: str
    """Its model."""
    uuid: str
    """Its permanent name."""
    instances: tuple[Instance, ...] = ()
    """The instances that it is divided into, if any."""


def parse_smi(text: str) -> tuple[Gpu, ...]:
    """Read the GPUs from the output of `nvidia-smi -L`.

    Args:
        text: The output; other lines are ignored.

    Example:
        >>> parse_smi("GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-5a)")
        (Gpu(index=0, name='NVIDIA A100-SXM4-80GB', uuid='GPU-5a', instances=()),)
    """
    gpus: list[tuple[int, str, str]] = []
    instances: list[list[Instance]] = []
    for line in text.splitlines():
        if match := _GPU.fullmatch(line.rstrip()):
            gpus.append((int(match[1]), match[2], match[3]))
            instances.append([])
        elif gpus and (match := _INSTANCE.fullmatch(line.rstrip())):
            instances[-1].append(Instance(profile=match[1], index=int(match[2]), uuid=match[3]))
    return tuple(Gpu(*gpu, tuple(parts)) for gpu, parts in zip(gpus, instances, strict=True))


def visible_devices(environment: Mapping[str, str], smi: str | None) -> tuple[str, ...]:
    """List the devices that workers may be given, as CUDA_VISIBLE_DEVICES names them.

    If CUDA_VISIBLE_DEVICES is set, these are its entries up to the first one that names no device, where CUDA stops too (-1,
    Slurm's NoDevFiles). Otherwise they are all that nvidia-smi shows; in a Slurm job with ConstrainDevices these are the job's
    devices, numbered from 0. A divided GPU is replaced by its instances: by the GPU's name CUDA would use only the first. If one
    GPU is divided, the others are named by their UUIDs, because CUDA and nvidia-smi may number them differently.

    Args:
        environment: Environment variables.
        smi: Output of `nvidia-smi -L`; if it is None or unreadable, the entries are taken as they are.

    Example:
        >>> visible_devices({"CUDA_VISIBLE_DEVICES": "2,3,-1,0"}, None)
        ('2', '3')
    """
    gpus = parse_smi(smi or "")
    entries = environment.get(_VISIBLE)
    if entries is None:
        return _unique(name for gpu in gpus for name in _names(gpu, gpus, str(gpu.index)))
    devices: list[str] = []
    for entry in entries.split(","):
        names = _resolve_entry(entry.strip(), gpus)
        if not names:
            break
        devices.extend(names)
    return _unique(devices)


def nvidia_smi() -> str | None:
    """Run `nvidia-smi -L`; None if there is no such command, it finds no GPU or it doesn't answer."""
    try:
        process = subprocess.run(
            ["nvidia-smi", "-L"],  # noqa: S607 - wherever PATH has it: containers keep it elsewhere
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SMI_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout


def share(devices: Sequence[str], workers: int) -> list[str]:
    """Choose the device of each worker.

    Devices are shared evenly, neighbouring workers together. Fewer workers than devices get one each, the first ones, and the
    other devices stay idle: a person who asks for two workers on four GPUs may want to use the rest for something else. Without a
    device all workers compute on the CPU.

    Args:
        devices: Names of devices; empty for the CPU.
        workers: How many workers there are.

    Raises:
        ValueError: There are no workers.

    Example:
        >>> share(["0", "1"], 5)
        ['0', '0', '0', '1', '1']
        >>> share(["0", "1", "2"], 2)
        ['0', '1']
        >>> share([], 2)
        ['cpu', 'cpu']
    """
    if workers < 1:
        raise ValueError(f"{workers} workers can't share devices: take 1 or more")
    shared_devices = list(devices[:workers]) or [CPU]
    return [shared_devices[i * len(shared_devices) // workers] for i in range(workers)]


def check_given(environment: Mapping[str, str] = os.environ) -> None:
    """Check that this process sees the device that it was given, and no other.

    Args:
        environment: Environment variables; without `GIVEN` nothing is checked.

    Raises:
        DeviceError: CUDA_VISIBLE_DEVICES names something else.
    """
    given_device, visible = environment.get(GIVEN), environment.get(_VISIBLE)
    if given_device is None or visible == given_device or (given_device == CPU and not visible):
        return
    state = f"{_VISIBLE} is unset" if visible is None else f"{_VISIBLE} is {visible!r}"
    raise DeviceError(
        f"{socket.gethostname()}: this worker was given the device {given_device}, but {state}",
        "a job script, module or container sets it after slidesam did, so remove that setting",
    )


def check_torch(environment: Mapping[str, str] = os.environ) -> None:
    """Check that torch, if it is imported, computes on the GPU that this process was given.

    Args:
        environment: Environment variables; without `GIVEN`, or for the CPU, nothing is checked.

    Raises:
        DeviceError: torch finds no GPU, several, or another.
    """
    given_device, torch = environment.get(GIVEN), sys.modules.get("torch")
    if torch is None or given_device is None or given_device == CPU:
        return
    fault = _find_fault(torch, given_device)
    if fault:
        problem, cure = fault
        raise DeviceError(
            f"{socket.gethostname()}: this worker was given the device {given_device}, but {problem}", cure
        )


def _find_fault(torch: Any, given_device: str) -> tuple[str, str] | None:
    """Describe what is wrong with torch's devices and what to do; None if torch sees the given one."""
    if not torch.cuda.is_available():
        return (
            "torch finds no GPU",
            "see that `nvidia-smi -L` shows it there, that torch is built with CUDA for its driver, and "
            "that a container is started with --nv",
        )
    count = torch.cuda.device_count()
    if count != 1:
        return (
            f"torch finds {count}",
            f"CUDA was started before {_VISIBLE} was set, so set it where the worker is started",
        )
    uuid = str(getattr(torch.cuda.get_device_properties(0), "uuid", "")).removeprefix("GPU-")
    # An index doesn't say which GPU it is, and not every torch tells an instance from its GPU. UUIDs may be cut short.
    if given_device.startswith("GPU-") and uuid and not uuid.startswith(given_device.removeprefix("GPU-")):
        return f"torch computes on GPU-{uuid}", f"something sets {_VISIBLE} after slidesam did, so remove that setting"
    return None


def _resolve_entry(entry: str, gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """List the devices that an entry of CUDA_VISIBLE_DEVICES names; empty if it isn't valid."""
    if entry.startswith("MIG-"):
        return (entry,)
    by_uuid, by_index = entry.startswith("GPU-"), entry.isascii() and entry.isdigit()
    if not (by_uuid or by_index):
        return ()
    if not gpus:
        return (entry,)
    # CUDA accepts the beginning of a UUID if only one GPU's UUID begins with it.
    matches = [gpu for gpu in gpus if (gpu.uuid.startswith(entry) if by_uuid else gpu.index == int(entry))]
    return _names(matches[0], gpus, entry) if len(matches) == 1 else ()


def _names(gpu: Gpu, gpus: Sequence[Gpu], name: str) -> tuple[str, ...]:
    """Name a GPU, or its instances, so that CUDA finds it beside the others of its machine."""
    if gpu.instances:
        return tuple(instance.uuid for instance in gpu.instances)
    return (gpu.uuid if any(any_gpu.instances for any_gpu in gpus) else name,)


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
