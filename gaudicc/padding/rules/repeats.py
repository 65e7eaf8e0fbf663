"""Index writes whose pads write once more what the last valid position writes.

Nothing is added to what is written, so that a buffer of gigabytes, as a cache in pages is, can be written in place. The order of
writes stays: a position named twice holds what was written last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    given = [index for index in indices if index is not None]
    rank = val(x).dim() - len(given) + len(front)
    padded = [dim for dim, one in enumerate(front) if any(factor.content for factor in one)]
    own = {index: [dim - len(front) for dim in padded] for index in given}
    own[values] = [place + dim - rank for dim in padded]
    moved = {tensor: _compact(p, tensor, dims) for tensor, dims in own.items()}
    nothing: Any = None
    for number, dim in enumerate(padded):
        size = total([front[dim]])
        last = p.raw(aten.sub.Tensor, p.resources.length(size), 1)
        rows = p.raw(aten.clamp.default, p.raw(aten.minimum.default, p.resources.iota(size), last), 0)
        moved = {tensor: _picked(p, now, own[tensor][number], rows) for tensor, now in moved.items()}
        if not never_below_zero(size - 1, p.ranges):
            none = p.raw(aten.le.Scalar, p.resources.length(size), 0)
            nothing = none if nothing is None else p.raw(aten.logical_or.default, nothing, none)
    p.log("mask", _WHY)
    named = [None if index is None else moved[index] for index in indices]
    if nothing is None:
        return named, moved[values]
    named = [
        None if index is None else p.raw(aten.where.self, nothing, p.literal(0, val(index).dtype), index)
        for index in named
    ]
    kept = p.raw(aten.index.Tensor, x, named)
    return named, p.raw(aten.where.self, nothing, kept, moved[values])


def _compact(p: Padder, tensor: fx.Node, dims: Sequence[int]) -> fx.Node:
    for dim in dims:
        if varies(tensor, dim):
            tensor = p.compact(tensor, val(tensor).dim() + dim)
    return tensor


def _picked(p: Padder, tensor: fx.Node, dim: int, rows: fx.Node) -> fx.Node:
    return p.raw(aten.index_select.default, tensor, val(tensor).dim() + dim, rows) if varies(tensor, dim) else tensor


def varies(tensor: fx.Node, dim: int) -> bool:
    """Whether a tensor has a dim, counted from the last one, and is not broadcast along it."""
    value: torch.Tensor = val(tensor)
    return value.dim() + dim >= 0 and expression(value.shape[dim]) != 1
