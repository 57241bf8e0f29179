"""How much memory this process uses, and which errors say that there wasn't enough."""

from __future__ import annotations

import psutil

# What torch says if the machine's memory, not a GPU's, doesn't suffice: c10/core/impl/alloc_cpu.cpp.
_TORCH_ON_CPU = "DefaultCPUAllocator"


def used_memory() -> int:
    """Return the bytes of this process that are in the machine's memory."""
    return int(psutil.Process().memory_info().rss)


def is_memory_error(error: BaseException) -> bool:
    """Tell whether an error, or one that it came from, says that the machine's memory doesn't suffice.

    Example:
        >>> is_memory_error(MemoryError()), is_memory_error(RuntimeError("CUDA out of memory"))
        (True, False)
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if isinstance(current, MemoryError) or (isinstance(current, RuntimeError) and _TORCH_ON_CPU in str(current)):
            return True
        seen.add(id(current))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return False


def is_device_memory_error(error: BaseException) -> bool:
    """Tell whether an error is torch's of a GPU without memory; without importing torch, which takes seconds."""
    return any(
        kind.__name__ == "OutOfMemoryError" and kind.__module__.startswith("torch") for kind in type(error).__mro__
    )
