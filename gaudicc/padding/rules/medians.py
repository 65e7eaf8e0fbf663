"""Order statistics over a padded dim: an element of a stable sort with the pads last, at a rank that the length gives."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import FINITE, GARBAGE, Pads, mapped, normal
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.ordering import sorted_last
from gaudicc.padding.rules.rule import Rule, operand, wrap
from gaudicc.rules.match import argument

Rank = Callable[[Padder, fx.Node, Any, int], fx.Node]
"""The 0-based rank of the element that is wanted, int64 with a dim of 1, of a sorted operand."""


def _by_rank(rank_of: Rank, first: int, nan: bool) -> Callable[[Padder, fx.Node], Claims]:
    """The element of a rank along a dim.

    Args:
        rank_of: the rank that is wanted.
        first: place of the argument `dim`.
        nan: a NaN among the valid elements is the result.
    """

    def claims(p: Padder, node: fx.Node) -> Claims:
        x = operand(node, 0)
        if any(user.target is not operator.getitem or user.args[1] == 1 for user in node.users):
            raise p.refuse("a position among equals is not defined; take the value only")
        if val(x).dim() == 0:
            return (Pads(()), Pads(()))
        dim = wrap(int(argument(node, first, "dim", -1)), val(x).dim())
        if not p.pads(x).padded(dim):
            return _kept(p, node, dim)
        keep = bool(argument(node, first + 1, "keepdim", False))
        value = _picked(p, node, x, dim, rank_of, nan)
        value = value if keep else p.emit(aten.squeeze.dims, value, [dim])
        p.log("rewrite", "the element of that rank in a stable sort with the pads last")
        return p.become_all((value, p.literal(0, torch.int64)))

    return claims


def _whole(rank_of: Rank, nan: bool) -> Callable[[Padder, fx.Node], Claims]:
    """The median of all elements: of the flattened tensor."""

    def claims(p: Padder, node: fx.Node) -> Claims:
        x = operand(node, 0)
        if not p.pads(x).padded_dims:
            return Pads(())
        sizes = [p.size_of(sympy.Mul(*(f.size for dim in p.pads(x).dims for f in dim)))]
        flat = p.emit(aten.view.default, p.emit(aten.clone.default, x, memory_format=torch.contiguous_format), sizes)
        value = p.emit(aten.squeeze.dims, _picked(p, node, flat, 0, rank_of, nan), [0])
        p.log("rewrite", "the element of that rank in a stable sort with the pads last")
        return p.become(value)

    return claims


def _picked(p: Padder, node: fx.Node, x: Any, dim: int, rank_of: Rank, nan: bool) -> fx.Node:
    """The element of a rank, with a dim of 1 where the operand has its padded one."""
    values, _ = sorted_last(p, x, dim, False)
    value = p.emit(aten.gather.default, values, dim, rank_of(p, node, values, dim))
    if not nan or not val(x).dtype.is_floating_point:
        return value
    bad = p.emit(aten.any.dim, p.emit(aten.isnan.default, x), dim, True)
    return p.emit(aten.where.self, bad, p.literal(float("nan"), val(x).dtype), value)


def _median_rank(p: Padder, node: fx.Node, values: Any, dim: int) -> fx.Node:
    """The lower of the two in the middle of the valid ones."""
    return _middle(p, values, dim, p.emit(aten.ones_like.default, values, dtype=torch.int64))


def _nanmedian_rank(p: Padder, node: fx.Node, values: Any, dim: int) -> fx.Node:
    """The lower of the two in the middle of those that are not NaN; 0 if all are."""
    real = p.emit(aten.logical_not.default, p.emit(aten.isnan.default, values))
    return _middle(p, values, dim, real)


def _middle(p: Padder, values: Any, dim: int, counted: fx.Node) -> fx.Node:
    number = p.emit(aten.sum.dim_IntList, counted, [dim], True)
    middle = p.emit(aten.div.Tensor_mode, p.emit(aten.sub.Tensor, number, 1), 2, rounding_mode="floor")
    return p.emit(aten.clamp.default, middle, 0)


def _given_rank(p: Padder, node: fx.Node, values: Any, dim: int) -> fx.Node:
    """The k-th smallest: `k - 1`."""
    shape = [1 if i == dim else p.size_of(size) for i, size in enumerate(val(values).shape)]
    k: Any = operand(node, 1)
    first = p.emit(aten.full.default, shape, 0, dtype=torch.int64, **p.resources.placement)
    return p.emit(aten.add.Tensor, first, p.emit(aten.sub.Tensor, p.value(k), 1) if isinstance(k, fx.Node) else k - 1)


def _kept(p: Padder, node: fx.Node, dim: int) -> Claims:
    """Over a dim without pads: the other dims stay as they were."""
    values = val(node)[0]
    pads = p.pads(operand(node, 0))
    keep = values.dim() == len(pads.dims)
    dims = [mapped(d, lambda c: FINITE if c.finite else GARBAGE) for d in pads.dims]
    dims[dim : dim + 1] = [p.dim(1)] if keep else []
    made = tuple(normal(d, values.dtype) for d in dims)
    return Pads(made), Pads(tuple(mapped(d, lambda c: GARBAGE) for d in made))


RULES = (
    Rule(
        (aten.median.dim,),
        "over a padded dim: a stable sort with the pads last; positions refused",
        "garbage",
        _by_rank(_median_rank, 1, nan=True),
    ),
    Rule((aten.nanmedian.dim,), "as median", "garbage", _by_rank(_nanmedian_rank, 1, nan=False)),
    Rule((aten.kthvalue.default,), "as median", "garbage", _by_rank(_given_rank, 2, nan=False)),
    Rule((aten.median.default,), "as median, over all elements", "none left", _whole(_median_rank, nan=True)),
    Rule((aten.nanmedian.default,), "as median, over all elements", "none left", _whole(_nanmedian_rank, nan=False)),
)
