"""`torch.save` and `torch.load` with device tensors: values are saved with a note of where they belong.

Files made on a real Gaudi name `hpu:0` as the place of their storages; those come back on the device too. A file made
here needs the emulated device to be read back, unless it is loaded with `map_location="cpu"` beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from gaudicc.emulator.emulation import current
from gaudicc.emulator.tensor import DEVICE, HpuTensor

_FROM_GAUDI = "_gaudicc_from_gaudi"


def register() -> None:
    """Teach torch, once per process."""
    torch.serialization.register_package(1, lambda storage: None, _restore)
    torch.serialization.add_safe_globals([rebuild])
    torch.load = _loading(torch.load)


def rebuild(raw: Tensor, requires_grad: bool, parameter: bool) -> Tensor:
    """A device tensor from its values; a plain one where no device is emulated."""
    current().memory.note(raw)
    tensor: Tensor = HpuTensor(raw)
    if parameter:
        return nn.Parameter(tensor, requires_grad)
    return tensor.requires_grad_(requires_grad)


def _restore(storage: Any, location: str) -> Any:
    """A storage that belongs on a device stays on the host, with a mark; others are not ours."""
    if not location.startswith(DEVICE):
        return None
    untyped = getattr(storage, "_untyped_storage", storage)
    setattr(untyped, _FROM_GAUDI, True)
    return storage


def _loading(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        loaded = original(f, map_location, *args, **kwargs)
        if isinstance(map_location, (str, torch.device)):
            goal = torch.device(map_location)
            return _move(loaded, lambda tensor: tensor.to(goal))
        return _move(loaded, lambda tensor: tensor.to(DEVICE) if _from_gaudi(tensor) else tensor)

    return load


def _from_gaudi(tensor: Tensor) -> bool:
    plain = not isinstance(tensor, HpuTensor) and tensor.layout is torch.strided
    return plain and hasattr(tensor.untyped_storage(), _FROM_GAUDI)


def _move(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    """A loaded value with its tensors moved; containers are changed in place where they can be."""
    if isinstance(value, nn.Parameter):
        moved = move(value.detach())
        return value if moved.device == value.device else nn.Parameter(moved, value.requires_grad)
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _move(item, move)
        return value
    if isinstance(value, list):
        value[:] = [_move(item, move) for item in value]
        return value
    if isinstance(value, tuple):
        items = [_move(item, move) for item in value]
        return value._make(items) if hasattr(value, "_make") else tuple(items)
    return value
