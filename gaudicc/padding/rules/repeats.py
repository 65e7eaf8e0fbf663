"""Index writes whose pads write once more what the last valid position writes.

Nothing is added to what is written, so that a buffer of gigabytes, as a cache in pages is, can be written in place. The order of
writes stays: a position named twice holds what was written last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import Dim, total
from gaudicc.padding.padder import Padder, aten
from gaudicc.padding.sizes import expression, never_below_zero

_WHY = "pads write what the last valid position writes"


def has_rows(p: Padder, x: fx.Node, dims: Sequence[int]) -> bool:
    """Whether dims have a row at every length, to be written when there is no valid position."""
    return all(never_below_zero(expression(val(x).shape[dim]) - 1, p.ranges) for dim in dims)


def repeat_last(
    p: Padder, x: fx.Node, indices: Sequence[Any], values: Any, front: Sequence[Dim], place: int
) -> tuple[list[Any], Any]:
    """Indices and values of a write `x[indices] = values` whose pads repeat the last valid position.

    Where there is none, all positions write back what is there.

    Args:
        p: the padder.
        x: what is written; its indexed dims have a row.
        indices: per dim of `x` an index, or None.
        values: what is written.
        front: the layout of the indices together.
        place: where its dims stand in `x[indices]`.
    """
    rank = val(x).dim() - sum(index is not None for index in indices) + len(front)
    padded = [dim for dim, one in enumerate(front) if any(factor.content for factor in one)]
    rows = {dim: _rows(p, total([front[dim]])) for dim in padded}
    named = [
        None if index is None else _moved(p, index, {d - len(front): rows[d] for d in padded}) for index in indices
    ]
    values = _moved(p, values, {place + d - rank: rows[d] for d in padded})
    p.log("mask", _WHY)
    nothing: Any = None
    for size in (total([front[dim]]) for dim in padded):
        if not never_below_zero(size - 1, p.ranges):
            none = p.raw(aten.le.Scalar, p.resources.length(size), 0)
            nothing = none if nothing is None else p.raw(aten.logical_or.default, nothing, none)
    if nothing is None:
        return named, values
    named = [
        None if index is None else p.raw(aten.where.self, nothing, p.literal(0, val(index).dtype), index)
        for index in named
    ]
    return named, p.raw(aten.where.self, nothing, p.raw(aten.index.Tensor, x, named), values)


def _rows(p: Padder, size: sympy.Expr) -> fx.Node:
    """The positions of a dim, the last valid one in the place of each pad."""
    last = p.raw(aten.sub.Tensor, p.resources.length(size), 1)
    return p.raw(aten.clamp.default, p.raw(aten.minimum.default, p.resources.iota(size), last), 0)


def _moved(p: Padder, tensor: fx.Node, rows: Mapping[int, fx.Node]) -> fx.Node:
    """A tensor with these rows of some dims, counted from the last one, along which it is not broadcast."""
    own = [dim for dim in rows if varies(tensor, dim)]
    rank = val(tensor).dim()
    for dim in own:  # all of them first: nothing is claimed of what rows are taken from
        tensor = p.compact(tensor, rank + dim)
    for dim in own:
        tensor = p.raw(aten.index_select.default, tensor, rank + dim, rows[dim])
    return tensor


def varies(tensor: fx.Node, dim: int) -> bool:
    """Whether a tensor has a dim, counted from the last one, and is not broadcast along it."""
    value: torch.Tensor = val(tensor)
    return value.dim() + dim >= 0 and expression(value.shape[dim]) != 1
