"""Fake results of ops with static sizes: of calls that are alike one is computed, the others are given its layout.

Computing one takes 0.2 ms, of a matrix product 2.5 ms (measured), and attention in slices is hundreds of equal ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

_NOT_PLAIN = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool, fx.GraphModule)


class FakeResults:
    """Computes fake results, each kind of call once.

    Two calls are alike if they are of one op, their tensors have the same dtype, device and static layout, and all else is
    equal.
    """

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def of(self, op: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """What an op gives; to be called under the fake mode of its operands.

        Args:
            op: an op overload; what is none, or writes to its operands, is always called.
            args: fake tensors and literals.
            kwargs: likewise.

        Returns:
            The result: fake tensors that nothing else holds, in the structure that the op returns.
        """
        remembered = isinstance(op, torch._ops.OpOverload) and not op._schema.is_mutable
        key = call_key(op, args, dict(kwargs)) if remembered else None
        if key is None:
            return op(*args, **kwargs)
        if key not in self._known:
            result = op(*args, **kwargs)
            if (layout := _layout(result)) is not None:
                self._known[key] = layout
            return result
        return _filled(self._known[key])


def call_key(*parts: Any) -> Any:
    """What tells a call from another, of its op and operands; None if something in it has no static layout."""
    items = tuple(map(_key, parts))
    return None if None in items else items


def unshared(value: Any) -> Any:
    """A fake value of the same layout that nothing else holds; values that are not static are given back as they are."""
    layout = _layout(value)
    return value if layout is None else _filled(layout)


def _key(value: Any) -> Any:
    if isinstance(value, FakeTensor):
        sizes = _sizes(value)
        return None if sizes is None else (id(value.fake_mode), value.dtype, value.device, value.dim(), sizes)
    if isinstance(value, (tuple, list)):
        return call_key("items", *value)
    if isinstance(value, dict):
        return call_key("items", *value.items())
    return None if isinstance(value, _NOT_PLAIN) else (type(value), value)  # 1, 1.0 and True are equal, not the same


def _sizes(value: FakeTensor) -> tuple[int, ...] | None:
    """Shape, strides, offset and size of the storage; None if they are not numbers, or if more than that is known."""
    if value.layout is not torch.strided or value.constant is not None:
        return None
    sizes = (*value.shape, *value.stride(), value.storage_offset(), value.untyped_storage().nbytes())
    return sizes if all(isinstance(size, int) for size in sizes) else None


def _layout(result: Any) -> Any:
    """A result without its identity: a meta tensor, mode and device, or a list of these; None if it is not static."""
    if isinstance(result, FakeTensor):
        if (sizes := _sizes(result)) is None:
            return None
        with _disable_current_modes():
            whole = torch.empty(sizes[-1] // result.element_size(), dtype=result.dtype, device="meta")
            return whole.as_strided(result.shape, result.stride(), sizes[-2]), result.fake_mode, result.device
    if isinstance(result, (tuple, list)):
        items = [_layout(item) for item in result]
        return None if None in items else items
    return None


def _filled(layout: Any) -> Any:
    if isinstance(layout, list):
        return tuple(map(_filled, layout))
    tensor, mode, device = layout
    return FakeTensor(mode, tensor, device)
