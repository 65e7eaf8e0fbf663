"""`habana_frameworks.torch.hpu.memory`. Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu/memory.py`."""

from __future__ import annotations

import warnings

from gaudicc.emulator.emulation import current
from gaudicc.emulator.surface.device import Device, _checked, init

__all__ = [
    "empty_cache",
    "max_memory_allocated",
    "max_memory_cached",
    "max_memory_reserved",
    "mem_get_info",
    "memory_allocated",
    "memory_cached",
    "memory_reserved",
    "memory_stats",
    "memory_summary",
    "reset_accumulated_memory_stats",
    "reset_peak_memory_stats",
]  # fmt: skip


def memory_stats(device: Device = None) -> dict[str, int]:
    """Ten figures, sizes in bytes."""
    init()
    _checked(device)
    return current().memory.stats()


def memory_allocated(device: Device = None) -> int:
    """Bytes that tensors hold now."""
    return memory_stats(device)["InUse"]


def max_memory_allocated(device: Device = None) -> int:
    """The most that they held at once."""
    return memory_stats(device)["MaxInUse"]


def memory_reserved(device: Device = None) -> int:
    """All memory of the device: the bridge's pool takes it whole."""
    return memory_stats(device)["Limit"]


max_memory_reserved = memory_reserved


def memory_cached(device: Device = None) -> int:
    """The old name of `memory_reserved`."""
    warnings.warn("torch.hpu.memory_cached has been renamed to torch.hpu.memory_reserved", FutureWarning, stacklevel=2)
    return memory_reserved(device)


def max_memory_cached(device: Device = None) -> int:
    """The old name of `max_memory_reserved`."""
    warnings.warn(
        "torch.hpu.max_memory_cached has been renamed to torch.hpu.max_memory_reserved", FutureWarning, stacklevel=2
    )
    return max_memory_reserved(device)


def mem_get_info(device: Device = None) -> tuple[int, int]:
    """Free and total bytes."""
    stats = memory_stats(device)
    return stats["Limit"] - stats["InUse"], stats["Limit"]


def reset_peak_memory_stats(device: Device = None) -> None:
    """The peak starts from what is held now."""
    _checked(device)
    current().memory.reset_peak()


def reset_accumulated_memory_stats(device: Device = None) -> None:
    """Forgets how many allocations and frees there were."""
    _checked(device)
    current().memory.reset_counts()


def memory_summary(device: Device = None) -> str:
    """The figures as text."""
    return "\n".join(f"{name:<20}{value:>20}" for name, value in memory_stats(device).items())


def empty_cache() -> None:
    """Counts tensors that died as freed; there is no cache."""
    current().memory.sweep()
