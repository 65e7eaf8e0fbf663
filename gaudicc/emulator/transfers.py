"""Everything that crosses between host and device: copies, and reads of single values; each flushes the gathered graph.

Inside a capture a crossing splits it, and the value that crossed stays what it was: replays neither read nor copy again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from gaudicc.emulator.emulation import Emulation
from gaudicc.emulator.ledger import Kind
from gaudicc.emulator.tensor import HpuTensor, raw_of
from gaudicc.errors import UnsupportedOpError
from gaudicc.targets.calls import OpCall

Compute = Callable[[Emulation, OpOverload, tuple[Any, ...], dict[str, Any]], Any]


def copy(emulation: Emulation, compute: Compute, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """`destination.copy_(source)` with either end on the host, or both on the device."""
    destination: Tensor = args[0]
    source: Tensor = args[1]
    if isinstance(destination, HpuTensor) and isinstance(source, HpuTensor):
        on_device: Tensor = compute(emulation, torch.ops.aten.copy_.default, args, kwargs)
        return on_device
    if isinstance(destination, HpuTensor):
        to_device(emulation, source, destination.raw)
        return destination
    raw = _values(source)
    emulation.flush("a copy to the host")
    emulation.ledger.add(Kind.TO_HOST, str(tuple(source.shape)), raw.nbytes, emulation.clock.fetch(raw.nbytes))
    both = destination.dtype is raw.dtype
    (_bytes(destination) if both else destination).copy_(_bytes(raw) if both else raw)
    return destination


def to_device(emulation: Emulation, source: Tensor, into: Tensor) -> None:
    """Copy a CPU tensor into device memory, narrowing it.

    Raises:
        RuntimeError: the tensor is complex.
    """
    try:
        narrowed = emulation.judge.enter(source, "a copy to the device")
    except UnsupportedOpError as error:
        raise RuntimeError(error.what) from error
    assert isinstance(narrowed, Tensor)
    if emulation.judge.overflowed.pop("a copy to the device", 0):
        emulation.ledger.add(Kind.OVERFLOW, "a copy to the device")
    emulation.flush("a copy to the device")
    emulation.memory.note(into)
    emulation.ledger.add(Kind.TO_DEVICE, str(tuple(source.shape)), into.nbytes, emulation.clock.send(into.nbytes))
    both = into.dtype is narrowed.dtype
    (_bytes(into) if both else into).copy_(_bytes(narrowed) if both else narrowed)


def to_host(emulation: Emulation, source: HpuTensor, kwargs: dict[str, Any]) -> Tensor:
    """`tensor.cpu()`, `tensor.to("cpu", dtype)`."""
    raw = _values(source)
    emulation.flush("a copy to the host")
    emulation.ledger.add(Kind.TO_HOST, str(tuple(source.shape)), raw.nbytes, emulation.clock.fetch(raw.nbytes))
    rest = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    keeps = rest.get("dtype") in (None, raw.dtype)
    copied: Tensor = torch.ops.aten._to_copy.default(
        _bytes(raw) if keeps else raw, **{**rest, "dtype": None} if keeps else rest
    )
    return copied.view(raw.dtype) if keeps else copied


def read(emulation: Emulation, op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """An op that turns values into a Python number: `item`, `equal`, `is_nonzero`."""
    return emulation.judge.read(OpCall(op, tuple(map(raw_of, args)), kwargs))


def _bytes(tensor: Tensor) -> Tensor:
    """A bool's bytes, which the CPU's own copies make 0 or 1 of; any other tensor as it is."""
    return tensor.view(torch.uint8) if tensor.dtype is torch.bool else tensor


def _values(tensor: Tensor) -> Tensor:
    raw = raw_of(tensor)
    assert isinstance(raw, Tensor)
    return raw
