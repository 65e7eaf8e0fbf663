"""Device memory: what tensors on the emulated device hold, at most, and how often they asked for it.

Only tensors are counted: neither workspaces nor recipes, which a Gaudi also keeps on the device. Blocks are not rounded.
Names: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu/memory.py`.
"""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import StorageWeakRef


class Memory:
    """Keeps account of live storages.

    Args:
        limit: bytes of device memory.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._held = 0
        self._peak = 0
        self._largest = 0
        self._allocated = 0
        self._freed = 0

    def note(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, if it is new or has grown.

        Raises:
            torch.OutOfMemoryError: the device has no room for it.
        """
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._live.get(key)
        if known is not None and known[1] == size and not known[0].expired():
            return
        if known is not None:
            self._drop(key)
        if self._held + size > self._peak:
            self.sweep()
        if self._held + size > self.limit:
            raise torch.OutOfMemoryError(
                f"Allocation failed for size::{size} ({size / 2**20:.1f}) MB: {self.limit - self._held} bytes of the "
                f"emulated device are free"
            )
        self._live[key] = (StorageWeakRef(storage), size)
        self._allocated += 1
        self._held += size
        self._largest = max(self._largest, size)
        self._peak = max(self._peak, self._held)

    def sweep(self) -> None:
        """Count the storages that died since the last time as freed."""
        for key in [key for key, (reference, _) in self._live.items() if reference.expired()]:
            self._drop(key)

    def _drop(self, key: int) -> None:
        _, size = self._live.pop(key)
        self._held -= size
        self._freed += 1

    def stats(self) -> dict[str, int]:
        """The figures under the names of `torch.hpu.memory.memory_stats`; sizes in bytes."""
        self.sweep()
        return {
            "Limit": self.limit,
            "InUse": self._held,
            "MaxInUse": self._peak,
            "NumAllocs": self._allocated,
            "NumFrees": self._freed,
            "ActiveAllocs": len(self._live),
            "MaxAllocSize": self._largest,
            "TotalSystemAllocs": self._allocated,
            "TotalSystemFrees": self._freed,
            "TotalActiveAllocs": len(self._live),
        }

    def reset_peak(self) -> None:
        """Start the peak again from what is held now."""
        self.sweep()
        self._peak = self._held

    def reset_counts(self) -> None:
        """Forget how many allocations and frees there were."""
        self.sweep()
        self._allocated = self._freed = 0
