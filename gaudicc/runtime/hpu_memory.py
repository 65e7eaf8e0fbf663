"""What a Gaudi holds of a model: weights and state, uploaded once and kept up to date with the host's tensors.

A recorded graph reads weights and state by address. So each host tensor has one device tensor, shared by all recordings,
whose values are replaced in place when the host's version counter says that they changed (`load_state_dict`). State is
newer on the device after a replay; `fetch` brings it back, and a write of the host before that is refused.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping

import torch
from torch import fx

from gaudicc.errors import LoweringError, StateError, Where
from gaudicc.nodes import where
from gaudicc.runtime.cpu_flatten import byte_extent
from gaudicc.runtime.graph_cache import OutOfDeviceMemoryError, is_out_of_memory
from gaudicc.runtime.hpu_pieces import describe
from gaudicc.runtime.hpu_prepare import HPU

_INT32 = torch.iinfo(torch.int32)
GRAPH_SHARE = 0.9
"""Of the memory that is free when the device is opened, what recorded graphs may hold; weights come out of it too."""


class Resident:
    """One host tensor and its device tensor.

    Attributes:
        host: the model's tensor.
        here: the device's.
        newer: the device's values are newer than the host's.
    """

    def __init__(self, name: str, host: torch.Tensor, used: Where, *, narrow: bool) -> None:
        self.host, self.newer, self._name, self._narrow = host, False, name, narrow
        self._version = _version(host)
        if narrow:
            refuse_wide(name, host, used)
        self.here = host if host.device.type == "hpu" else _uploaded(name, host)

    def refresh(self) -> None:
        """Uploads the host's values if they changed since.

        Raises:
            StateError: the device's are newer.
        """
        version = _version(self.host)
        if version == self._version or self.here is self.host:
            return
        if self.newer:
            raise StateError(
                f"{self._name} was written on the host, but its newest values are on the device",
                where=Where(stage="replay"),
                hint="bring them to the host first: device.fetch(tensor)",
            )
        if self._narrow:
            refuse_wide(self._name, self.host, Where(stage="replay"))
        self.here.copy_(self.host.detach())
        self._version = version

    def fetch(self) -> None:
        """Brings the host's values up to date."""
        if self.newer and self.here is not self.host:
            with torch.no_grad():
                self.host.copy_(self.here.cpu())
            self._version = _version(self.host)
        self.newer = False


class Residents:
    """The host tensors that a device holds, as long as a recording uses them.

    Args:
        narrow: the device keeps 32 bits of int64: larger values are refused.
    """

    def __init__(self, *, narrow: bool) -> None:
        self.narrow = narrow
        self._known: weakref.WeakValueDictionary[Hashable, Resident] = weakref.WeakValueDictionary()

    def place(self, name: str, tensor: torch.Tensor, used: Where) -> Resident:
        """A tensor's resident, uploaded when it is first used: errors point there.

        Raises:
            LoweringError: an int64 value does not fit.
            OutOfDeviceMemoryError: the device has no room for it.
        """
        key = _identity(tensor)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Resident(name, tensor, used, narrow=self.narrow)
        return found

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself, its values brought up to date with the device's."""
        found = self._known.get(_identity(tensor))
        if found is not None:
            found.fetch()
        return tensor


def buffer_like(value: torch.Tensor) -> torch.Tensor:
    """A device tensor of these sizes and strides, of zeros: whatever runs on it reads no index out of range.

    Made on the host: filling it on the device would compile a recipe for each shape.
    """
    strides = value.stride() if 0 not in value.stride() else torch.empty(value.shape, device="meta").stride()
    return torch.empty_strided(value.shape, strides, dtype=value.dtype).zero_().to(HPU)


def _uploaded(name: str, host: torch.Tensor) -> torch.Tensor:
    try:
        return host.detach().to(HPU)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfDeviceMemoryError(
            f"the device has no memory for {name}: {str(error).splitlines()[0]}",
            where=Where(stage="record"),
            hint="weights alone do not fit: use a narrower dtype or more cards; `gaudicc plan --memory` says what fits",
        ) from error


def _identity(tensor: torch.Tensor) -> Hashable:
    return tensor.data_ptr(), describe(tensor)


def _version(tensor: torch.Tensor) -> tuple[int, int]:
    """Changes when the values do: written in place, or other memory assigned to `tensor.data`."""
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


def first_use(graph: fx.GraphModule, name: str) -> Where:
    """Where the model first reads what a graph is given under a name."""
    given = next(node for node in graph.graph.find_nodes(op="placeholder") if node.name == name)
    return where(next(iter(given.users), given), "record")


def refuse_wide(name: str, tensor: torch.Tensor, at: Where) -> None:
    """Refuses int64 values that lazy mode would wrap.

    Raises:
        LoweringError: a value does not fit in int32.
    """
    if tensor.dtype is not torch.int64 or tensor.numel() == 0 or tensor.device.type != "cpu":
        return
    low, high = (tensor, tensor) if tensor.numel() == 1 else tensor.detach().aminmax()
    if int(low) < _INT32.min or int(high) > _INT32.max:
        raise LoweringError(
            f"{name} holds {int(low) if int(low) < _INT32.min else int(high)}, which lazy mode narrows to int32",
            where=at,
            hint="keep integers within 32 bits, or use eager and compile mode (PT_HPU_LAZY_MODE=0)",
        )


def refuse_shared_state(bound: Mapping[str, torch.Tensor], state: Mapping[str, int]) -> None:
    """State must be its own memory: a weight or another buffer that shares it would change under the recording.

    Raises:
        LoweringError: a state buffer is not bound, or shares memory.
    """
    if missing := [name for name in state if name not in bound]:
        raise LoweringError(f"state buffer {missing[0]} is not bound", where=Where(stage="record"))
    ranges = sorted((t.data_ptr(), t.data_ptr() + byte_extent(t), name) for name, t in bound.items() if t.numel())
    reach, owner = 0, ""
    for start, end, name in ranges:
        if start < reach and (name in state or owner in state):
            raise LoweringError(f"{name} shares memory with {owner}, one of them is state", where=Where(stage="record"))
        if end > reach:
            reach, owner = end, name


def free_bytes() -> int:
    """Bytes of device memory that recorded graphs may hold."""
    from habana_frameworks.torch.hpu.memory import mem_get_info

    return int(mem_get_info()[0] * GRAPH_SHARE)


def held_bytes() -> int:
    """Bytes of device memory in use now."""
    from habana_frameworks.torch.hpu.memory import memory_allocated

    return int(memory_allocated())
