"""How a method that runs on torch uses this machine: which device, how many threads."""

from __future__ import annotations

import os

from slidesam.tasks.errors import SegmenterError


def choose_device(wanted: str) -> str:
    """Name of the device to compute on: cpu, cuda or mps.

    Args:
        wanted: One of them, or auto for the first at hand of CUDA, Apple's MPS, the CPU.

    Raises:
        SegmenterError: torch doesn't have it here.
    """
    import torch

    is_there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and torch.backends.mps.is_built(),
        "cpu": True,
    }
    here = [name for name in is_there if is_there[name]]
    if wanted == "auto":
        return here[0]
    if wanted not in here:
        raise SegmenterError(
            f"segmenter.device is {wanted}, but torch {torch.__version__} only has {', '.join(here)} on this machine: "
            "let the profile ask for a GPU, or set segmenter.device: auto"
        )
    return wanted


def keep_to_threads() -> None:
    """Lets torch use OMP_NUM_THREADS threads, where that is set."""
    import torch

    threads = given_threads()
    if threads is not None:
        torch.set_num_threads(threads)


def given_threads() -> int | None:
    """OMP_NUM_THREADS, or None where it isn't set."""
    threads = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(threads) if threads.isdigit() and int(threads) > 0 else None
