"""Fills that nothing exceeds, in numbers that the device holds exactly."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import GARBAGE, Number, Pads, mapped
from gaudicc.padding.padder import Padder, aten, highest
from gaudicc.padding.sizes import expression, never_below_zero


def fill_extreme(p: Padder, node: fx.Node, dims: Iterable[int], value: Number, reason: str) -> tuple[fx.Node, Pads]:
    """The tensor with its pads along some dims holding what no valid entry exceeds, or falls below.

    For int64 that is the extreme of what the tensor holds, pads included: that of the dtype does not fit the 32 bits in which
    a Gaudi computes int64, and that of int32 is exceeded where 64 bits are kept. A valid entry may equal it.

    Args:
        p: of the graph.
        node: the tensor.
        dims: the dims, those without pads included.
        value: the lowest or the highest value of the dtype, or another number for floats.
        reason: the demand, for the certificate.

    Returns:
        The tensor, and what is known of its pads. The graph claims nothing of those of int64, since no claim says what they hold:
        only the op that asked for them may read them.
    """
    x, pads = val(node), p.pads(node)
    padded = [dim for dim in dims if pads.padded(dim)]
    if x.dtype is not torch.int64 or not padded or 0 in x.shape:
        filled = p.fill(node, padded, value, reason)
        return filled, p.pads(filled)
    of_all = aten.amax.default if value == highest(x.dtype) else aten.amin.default
    never_empty = all(never_below_zero(expression(size) - 1, p.ranges) for size in x.shape)
    own = p.raw(of_all, node if never_empty else _with_a_zero(p, node), list(range(x.dim() if never_empty else 1)))
    p.claims[own] = Pads(())
    made = p.raw(aten.where.self, p.mask(x.dim(), {dim: pads.sizes(dim) for dim in padded}), node, own)
    kept = [mapped(d, lambda c: c.weak) for d in pads.dims]
    lost = [mapped(d, lambda c: GARBAGE) for d in pads.dims]
    p.log("mask", reason)
    return made, Pads(tuple(lost[i] if i in padded else kept[i] for i in range(len(kept))))


def _with_a_zero(p: Padder, node: fx.Node) -> fx.Node:
    """The entries of a tensor and a 0, in one row: where there are no entries, something has to be the extreme."""
    rows = p.raw(aten.view.default, p.raw(aten.clone.default, node, memory_format=torch.contiguous_format), [-1])
    zero = p.raw(aten.full.default, [1], 0, dtype=torch.int64, **p.resources.placement)
    return p.raw(aten.cat.default, [rows, zero])


def fill_extreme_arg(p: Padder, index: int, dims: Iterable[int], value: Number, reason: str) -> Pads:
    """`fill_extreme` on an argument of the current node; returns its claims."""
    arg = p.node.args[index]
    assert isinstance(arg, fx.Node), "only tensors are filled"
    filled, pads = fill_extreme(p, arg, dims, value, reason)
    if filled is not arg:
        p.set_arg(index, filled)
    return pads
