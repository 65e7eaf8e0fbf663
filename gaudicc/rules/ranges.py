"""The range of the values of a tensor, as far as the op that made it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.rules.bounded import ends

aten = torch.ops.aten
INF = float("inf")
_MOVES = (
    aten.reshape.default, aten.view.default, aten.select.int, aten._to_copy.default, aten.to.dtype, aten.clone.default,
    aten.lift_fresh_copy.default, aten.detach.default, aten.alias.default, aten.squeeze.default, aten.slice.Tensor,
)  # fmt: skip


def range_of(node: Any, constants: Mapping[str, torch.Tensor]) -> tuple[float, float]:
    """The smallest and the largest value that a tensor can hold, NaN apart.

    Args:
        node: the tensor.
        constants: placeholder name -> tensor, for what never changes.
    """
    if not isinstance(node, fx.Node):
        return -INF, INF
    args = node.args
    if node.name in constants and constants[node.name].numel():
        return float(constants[node.name].min()), float(constants[node.name].max())
    if node.op != "call_function" or val(node).dtype is torch.bool:
        return (0, 1) if val(node).dtype is torch.bool else (-INF, INF)
    if node.target in (aten.zeros_like.default, aten.full_like.default, aten.full.default, aten.scalar_tensor.default):
        fill = {aten.zeros_like.default: 0, aten.scalar_tensor.default: args[0]}.get(node.target, args[-1])
        return (fill, fill) if isinstance(fill, (int, float)) else (-INF, INF)
    if node.target in (aten.sum.default, aten.sum.dim_IntList) and _is_bool(args[0]):
        return 0, ends(val(args[0]).numel())[1]  # type: ignore[arg-type]
    if node.target is aten.clamp.default:
        low, high = (*args[1:], None, None)[:2]
        below, above = range_of(args[0], constants)
        return max(below, _number(low, -INF)), min(above, _number(high, INF))
    if node.target is aten.where.self:
        (a, b), (c, d) = (range_of(arg, constants) for arg in args[1:])
        return min(a, c), max(b, d)
    if node.target in (aten.add.Tensor, aten.sub.Tensor) and isinstance(args[1], int) and not node.kwargs:
        low, high = range_of(args[0], constants)
        by = args[1] if node.target is aten.add.Tensor else -args[1]
        return low + by, high + by
    return range_of(args[0], constants) if node.target in _MOVES else (-INF, INF)


def _is_bool(node: Any) -> bool:
    return bool(val(node).dtype is torch.bool)


def _number(value: Any, otherwise: float) -> float:
    return value if isinstance(value, (int, float)) else otherwise
