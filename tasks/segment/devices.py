"""GPUs and MIG instances: which there are, who gets which, and whether a worker has the one that it was given.

Whoever starts a worker shows it one device by CUDA_VISIBLE_DEVICES and says so a second time in `GIVEN`. Between the two stand
job scripts, modules and containers, each of which may set CUDA_VISIBLE_DEVICES anew; torch then finds another GPU, or none, and
computes on the CPU without a word. So the worker compares.
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

# The device that a worker was given, in the words of CUDA_VISIBLE_DEVICES, or CPU.
GIVEN = "SLIDESAM_DEVICE"
CPU = "cpu"

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_GPU = re.compile(r"\s*GPU\s+(\d+):\s+(.*?)\s+\(UUID:\s*(\S+?)\s*\)")
_INSTANCE = re.compile(r"\s+MIG\s+(.*?)\s+Device\s+(\d+):\s+\(UUID:\s*(\S+?)\s*\)")
_SMI_SECONDS = 30.0


@dataclass(frozen=True)
class Instance:
    """A part of a GPU that counts as a device of its own (MIG)."""

    profile: str
    """Its size, such as 1g.5gb."""
    index: int
    """Its number on its GPU."""
    uuid: str
    """Its name: the only one by which CUDA finds it."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as nvidia-smi lists it. One in MIG mode that has no instances looks like one that isn't in it, and can't be used."""

    index: int
    """Its number in the order of the PCI bus."""
    name: str
    """Its model."""
    uuid: str
    """Its name for good."""
    instances: tuple[Instance, ...] = ()
    """What it is divided into, if it is."""


def parse_smi(text: str) -> tuple[Gpu, ...]:
    """The GPUs that `nvidia-smi -L` lists.

    Args:
        text: What it printed; lines of another kind are passed over.

    Example:
        >>> parse_smi("GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-5a)")
        (Gpu(index=0, name='NVIDIA A100-SXM4-80GB', uuid='GPU-5a', instances=()),)
    """
    gpus: list[tuple[int, str, str]] = []
    instances: list[list[Instance]] = []
    for line in text.splitlines():
        if found := _GPU.fullmatch(line.rstrip()):
            gpus.append((int(found[1]), found[2], found[3]))
            instances.append([])
        elif gpus and (found := _INSTANCE.fullmatch(line.rstrip())):
            instances[-1].append(Instance(profile=found[1], index=int(found[2]), uuid=found[3]))
    return tuple(Gpu(*gpu, tuple(parts)) for gpu, parts in zip(gpus, instances, strict=True))


def visible_devices(environment: Mapping[str, str], smi: str | None) -> tuple[str, ...]:
    """The devices that workers may be given, as CUDA_VISIBLE_DEVICES names them.

    Where CUDA_VISIBLE_DEVICES is set, these are its entries up to the first that names no device, which is where CUDA stops too
    (-1, Slurm's NoDevFiles). Else they are all that nvidia-smi shows; in a Slurm job with ConstrainDevices that is what the job
    has, numbered from 0. A GPU that is divided stands for its instances: by its own name CUDA would use the first only. Beside a
    divided GPU the others go by their UUIDs, because an index may not mean to CUDA what it means to nvidia-smi.

    Args:
        environment: Environment variables.
        smi: What `nvidia-smi -L` printed; None or nothing that can be read = entries are taken at their word.

    Example:
        >>> visible_devices({"CUDA_VISIBLE_DEVICES": "2,3,-1,0"}, None)
        ('2', '3')
    """
    gpus = parse_smi(smi or "")
    entries = environment.get(_VISIBLE)
    if entries is None:
        return _unique(name for gpu in gpus for name in _names(gpu, gpus, str(gpu.index)))
    found: list[str] = []
    for entry in entries.split(","):
        names = _named(entry.strip(), gpus)
        if not names:
            break
        found.extend(names)
    return _unique(found)


def nvidia_smi() -> str | None:
    """What `nvidia-smi -L` prints, or None where there is none, it finds no GPU or it doesn't answer."""
    try:
        done = subprocess.run(
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
    return done.stdout


def share(devices: Sequence[str], workers: int) -> list[str]:
    """The device of each worker.

    Devices are shared evenly, neighbours together. Fewer workers than devices get one each, the first ones, and the others stay
    idle: whoever asks for two workers beside four GPUs may want to leave two to something else. Without a device all compute on
    the CPU.

    Args:
        devices: Names of devices; none = CPU.
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
    used = list(devices[:workers]) or [CPU]
    return [used[i * len(used) // workers] for i in range(workers)]


def check_given(environment: Mapping[str, str] = os.environ) -> None:
    """Makes sure that this process sees the device that it was given, and no other.

    Args:
        environment: Environment variables; without `GIVEN` nothing is checked.

    Raises:
        DeviceError: CUDA_VISIBLE_DEVICES says something else.
    """
    given, seen = environment.get(GIVEN), environment.get(_VISIBLE)
    if given is None or seen == given or (given == CPU and not seen):
        return
    found = f"{_VISIBLE} is unset" if seen is None else f"{_VISIBLE} is {seen!r}"
    raise DeviceError(
        f"{socket.gethostname()}: this worker was given the device {given}, but {found}",
        "a job script, module or container sets it after slidesam did, so remove that setting",
    )


def check_torch(environment: Mapping[str, str] = os.environ) -> None:
    """Makes sure that torch, where it is imported, computes on the GPU that this process was given.

    Args:
        environment: Environment variables; without `GIVEN`, or for the CPU, nothing is checked.

    Raises:
        DeviceError: torch finds no GPU, several, or another.
    """
    given, torch = environment.get(GIVEN), sys.modules.get("torch")
    if torch is None or given is None or given == CPU:
        return
    wrong = _wrong_in_torch(torch, given)
    if wrong:
        what, cure = wrong
        raise DeviceError(f"{socket.gethostname()}: this worker was given the device {given}, but {what}", cure)


def _wrong_in_torch(torch: Any, given: str) -> tuple[str, str] | None:
    """Return what is wrong and what to do."""
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
    if given.startswith("GPU-") and uuid and not uuid.startswith(given.removeprefix("GPU-")):
        return f"torch computes on GPU-{uuid}", f"something sets {_VISIBLE} after slidesam did, so remove that setting"
    return None


def _named(entry: str, gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """The devices that an entry of CUDA_VISIBLE_DEVICES names; none if it isn't valid."""
    if entry.startswith("MIG-"):
        return (entry,)
    by_uuid, by_index = entry.startswith("GPU-"), entry.isascii() and entry.isdigit()
    if not (by_uuid or by_index):
        return ()
    if not gpus:
        return (entry,)
    # CUDA takes the beginning of a UUID where only one GPU's begins so.
    meant = [gpu for gpu in gpus if (gpu.uuid.startswith(entry) if by_uuid else gpu.index == int(entry))]
    return _names(meant[0], gpus, entry) if len(meant) == 1 else ()


def _names(gpu: Gpu, gpus: Sequence[Gpu], name: str) -> tuple[str, ...]:
    """What to call a GPU that goes by a name, beside the others of its machine."""
    if gpu.instances:
        return tuple(instance.uuid for instance in gpu.instances)
    return (gpu.uuid if any(other.instances for other in gpus) else name,)


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
