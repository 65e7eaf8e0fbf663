"""What torch says of sizes that only data knows: which nodes have them, and which ops can take them."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from gaudicc.nodes import val
from gaudicc.padding.rules.pointwise import pointwise
from gaudicc.rules.bounded_forms import OVER_TWO_DIMS

aten = torch.ops.aten
READS = (aten.item.default, aten._local_scalar_dense.default)
"""Ops that read a number from a tensor."""
_READS_TOO = (*READS, aten.narrow.Tensor)
"""And an op that takes where it begins from one."""
_SELECTING = (
    aten.nonzero.default, aten.nonzero_numpy.default, aten.argwhere.default, aten.masked_select.default,
    aten.repeat_interleave.self_Tensor, aten.repeat_interleave.Tensor,
)  # fmt: skip
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


def is_dynamic(node: fx.Node) -> bool:
    """Whether data decides on a node's size, or its value is a number that was read."""
    value = node.meta.get("val")
    leaves = value if isinstance(value, (tuple, list)) else (value,)
    if node.target in _READS_TOO or selects(node):
        return True
    return any(
        unknown_dims(leaf.shape)
        if isinstance(leaf, torch.Tensor)
        else isinstance(leaf, _SYMBOLS) and free_unbacked_symbols(leaf)
        for leaf in leaves
    )


def selects(node: fx.Node) -> bool:
    """Whether a node keeps what data chooses, or writes there by a mask that is not all of the indices."""
    if node.target in (aten.index.Tensor, aten.index_put.default):
        indices: Any = node.args[1]
        several = node.target is aten.index.Tensor or len(indices) > 1
        return several and any(item is not None and val(item).dtype in (torch.bool, torch.uint8) for item in indices)
    return node.target in _SELECTING


def selects_nothing(node: fx.Node) -> bool:
    """Whether a node selects rows by data from a tensor that has none."""
    if not selects(node):
        return False
    result = val(node)
    made = result[0] if isinstance(result, (tuple, list)) else result
    known = not any(unknown_dims(value.shape) for value in (made, *map(val, node.all_input_nodes)))
    return known and 0 in made.shape


def unknown_dims(shape: Sequence[Any]) -> list[int]:
    """The dims whose sizes only data knows."""
    return [i for i, size in enumerate(shape) if isinstance(size, torch.SymInt) and free_unbacked_symbols(size)]


def takes(node: fx.Node, shape: Sequence[Any]) -> bool:
    """Whether an op can take operands, and give a result, of these unknown lengths: of one each, or of the same one twice."""
    shapes = [shape, *(val(arg).shape for arg in node.all_input_nodes if isinstance(val(arg), torch.Tensor))]
    twice = any(len(unknown_dims(each)) > 1 for each in shapes)
    return not twice or pointwise(node.target) or node.target in OVER_TWO_DIMS


def too_tight(condition: Any) -> bool:
    """Whether torch takes a tensor's own size for the most that a mask selects of it, and the mask widens the tensor."""
    if not isinstance(condition, fx.Node) or condition.target is not operator.le:
        return False
    length, most = condition.args
    chosen: Any = length.args[0] if isinstance(length, fx.Node) and length.target is aten.sym_size.int else None
    if not isinstance(chosen, fx.Node) or chosen.target is not aten.masked_select.default:
        return False
    x, mask = (val(arg) for arg in chosen.args)  # type: ignore[arg-type]
    sizes = torch.broadcast_shapes(x.shape, mask.shape)
    known = all(isinstance(size, int) for size in (most, *x.shape, *sizes))
    return known and bool(most == x.numel() < math.prod(sizes))
