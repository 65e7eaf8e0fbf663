"""What a verdict on a call may depend on, as a key to look it up by."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from torch._ops import OpOverload

from gaudicc.targets.model import Mode


def call_key(value: object) -> Hashable | None:
    """All that a verdict may depend on: of tensors dtype, sizes and strides; None where sizes are symbolic, or it is unknown."""
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            return None
        sizes = (*value.shape, *value.stride())
        return None if any(isinstance(size, torch.SymInt) for size in sizes) else (value.dtype, sizes)
    if isinstance(value, Mapping):
        return call_key([*value, *value.values()])
    if isinstance(value, (list, tuple)):
        items = tuple(map(call_key, value))
        return None if None in items else items
    plain = value is None or isinstance(value, _PLAIN)
    return (type(value), value) if plain else None  # 1, 1.0 and True are equal, but other arguments


_PLAIN = (bool, int, float, str, OpOverload, Mode, torch.dtype, torch.device, torch.layout, torch.memory_format)
