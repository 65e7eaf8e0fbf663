"""The range of the values of a tensor, as far as the op that made it says."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from types import MappingProxyType
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
    aten.contiguous.default, aten.expand.default, aten.flatten.using_ints, aten.index_select.default, aten.permute.default,
    aten.squeeze.dim, aten.t.default, aten.transpose.int, aten.unsqueeze.default, aten.max.default, aten.min.default,
    aten.amax.default, aten.amin.default,
)  # fmt: skip
_CONDITIONS = (operator.ge, operator.eq, torch.sym_ite, aten.item.default, aten._local_scalar_dense.default)
"""What stands between a bool tensor and the check that it holds: `ite(item(t), 1, 0) >= 1`."""
_AT_MOST = {aten.le.Tensor: 0, aten.lt.Tensor: 1, aten.le.Scalar: 0, aten.lt.Scalar: 1}
_PARTS = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int)


def promises_of(graph: fx.Graph) -> dict[fx.Node, float]:
    """The most that tensors of no dims hold where the program goes on: what `torch._check` was told, and raises otherwise."""
    found: dict[fx.Node, float] = {}
    for check in graph.find_nodes(op="call_function", target=aten._assert_scalar.default):
        condition = check.args[0]
        while isinstance(condition, fx.Node) and condition.target in _CONDITIONS and not condition.kwargs:
            condition = condition.args[0]
        if isinstance(condition, fx.Node) and condition.target in _AT_MOST:
            held, limit = condition.args[:2]
            most = limit.args[0] if isinstance(limit, fx.Node) and limit.target is aten.scalar_tensor.default else limit
            if isinstance(held, fx.Node) and isinstance(most, int):
                found[held] = min(most - _AT_MOST[condition.target], found.get(held, INF))
    return found


def range_of(
    node: Any, constants: Mapping[str, torch.Tensor], promised: Mapping[fx.Node, float] = MappingProxyType({})
) -> tuple[float, float]:
    """The smallest and the largest value that a tensor can hold, NaN apart.

    Args:
        node: the tensor.
        constants: placeholder name -> tensor, for what never changes.
        promised: tensor -> the most that the user says it holds.
    """
    if not isinstance(node, fx.Node):
        return -INF, INF
    if node in promised:
        least, most = range_of(node, constants)
        return least, min(most, promised[node])
    args = node.args
    if node.name in constants and constants[node.name].numel():
        return float(constants[node.name].min()), float(constants[node.name].max())
    if node.op != "call_function" or val(node).dtype is torch.bool:
        return (0, 1) if val(node).dtype is torch.bool else (-INF, INF)
    if node.target is operator.getitem:
        parts: Any = args[0]
        return range_of(parts.args[0], constants, promised) if parts.target in _PARTS else (-INF, INF)
    if node.target in (aten.zeros_like.default, aten.full_like.default, aten.full.default, aten.scalar_tensor.default):
        fill = {aten.zeros_like.default: 0, aten.scalar_tensor.default: args[0]}.get(node.target, args[-1])
        return (fill, fill) if isinstance(fill, (int, float)) else (-INF, INF)
    if node.target in (aten.sum.default, aten.sum.dim_IntList) and _is_bool(args[0]):
        return 0, ends(val(args[0]).numel())[1]  # type: ignore[arg-type]
    if node.target is aten.clamp.default:
        low, high = (*args[1:], None, None)[:2]
        below, above = range_of(args[0], constants, promised)
        return max(below, _number(low, -INF)), min(above, _number(high, INF))
    if node.target is aten.where.self:
        (a, b), (c, d) = (range_of(arg, constants, promised) for arg in args[1:])
        return min(a, c), max(b, d)
    if node.target in (aten.add.Tensor, aten.sub.Tensor) and isinstance(args[1], int) and not node.kwargs:
        low, high = range_of(args[0], constants, promised)
        by = args[1] if node.target is aten.add.Tensor else -args[1]
        return low + by, high + by
    return range_of(args[0], constants, promised) if node.target in _MOVES else (-INF, INF)


def _is_bool(node: Any) -> bool:
    return bool(val(node).dtype is torch.bool)


def _number(value: Any, otherwise: float) -> float:
    return value if isinstance(value, (int, float)) else otherwise
