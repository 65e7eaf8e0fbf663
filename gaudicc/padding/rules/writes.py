"""Writes by index: pads write what the last valid position writes, add nothing, or write to a row that is dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import GARBAGE, Dim, Pads, mapped
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.alignment import aligned, laid_out, relaid
from gaudicc.padding.rules.indexing import (
    broadcast_dims,
    from_front,
    index_dims,
    index_place,
    refuse_masks,
    safe_index,
)
from gaudicc.padding.rules.repeats import has_rows, repeat_last, varies
from gaudicc.padding.rules.rule import Rule, operand, wrap
from gaudicc.padding.rules.windows import after_write
from gaudicc.padding.sizes import expression
from gaudicc.rules.match import argument

_ADDS = "pads add nothing"
_DUMP = "pads of an index name a row that is dropped afterwards"


def _dump_row(p: Padder, x: Any, dim: int) -> fx.Node:
    """The tensor with one more row at the end of a dim, for pads to be written to."""
    rank = val(x).dim()
    widths = [0] * (2 * rank)
    widths[2 * (rank - 1 - dim) + 1] = 1
    return p.raw(aten.constant_pad_nd.default, x, widths, 0)


def _dropped(p: Padder, node: fx.Node, dim: int, claims: Pads) -> Claims:
    rest = p.raw(aten.slice.Tensor, node, dim, 0, p.size_of(val(p.node).shape[dim]))
    p.claims[rest] = claims
    p.log("rewrite", "a row is added for pads to be written to, and dropped")
    return p.become(rest)


def _dumped_index(p: Padder, index: fx.Node, row: Any, pads: Pads) -> fx.Node:
    """An index whose pads name the dump row, wherever any dim is pad; `pads`: where these lie."""
    mask = p.mask(val(index).dim(), {d: pads.sizes(d) for d in pads.padded_dims})
    p.log("mask", _DUMP)
    dump = p.resources.physical(expression(row))
    if isinstance(dump, int):
        dump = p.literal(dump, val(index).dtype)
    return p.raw(aten.where.self, mask, index, dump)


def _index_put(p: Padder, node: fx.Node) -> Claims:
    x: Any = operand(node, 0)
    indices: list[Any] = list(operand(node, 1))
    if len(indices) == 1 and val(indices[0]).dtype is torch.bool and not argument(node, 3, "accumulate", False):
        return _masked_write(p, node)
    refuse_masks(p, indices)
    named = [dim for dim, index in enumerate(indices) if index is not None]
    for dim in named:
        x = p.compact(x, dim)
    rows = has_rows(p, x, named)
    repeats = rows and not argument(node, 3, "accumulate", False)
    for dim in named:
        indices[dim] = (from_front if repeats else _from_front_any)(p, x, dim, indices[dim])
    front = broadcast_dims(p, [index for index in indices if index is not None])
    values: Any = operand(node, 2)
    if p.pads(values).dims:
        values = relaid(p, values, index_dims(p, x, indices, front))
    claims = after_write(p, p.pads(x), p.pads(values), val(node).dtype)
    if not any(f.content for d in front for f in d):
        p.node.args = (x, indices, values, *node.args[3:])
        p.rewriter.modified = True
        return claims
    if repeats:
        indices, values = repeat_last(p, x, indices, values, front, index_place(indices))
    elif rows and (filled := _nothing(p, x, values, indices, front)) is not None:
        indices = [None if i is None else safe_index(p, i, val(x).shape[d]) for d, i in enumerate(indices)]
        values = filled
    else:
        return _dumped(p, node, x, indices, values, front, claims)
    written = p.raw(node.target, x, indices, values, *node.args[3:])
    p.claims[written] = claims
    return p.become(written)


def _nothing(p: Padder, x: fx.Node, values: Any, indices: list[Any], front: list[Dim]) -> fx.Node | None:
    """Values to be added, with 0 wherever an index is pad; None if they are the same along a padded dim."""
    named = sum(index is not None for index in indices)
    place = index_place(indices) - (val(x).dim() - named + len(front))
    dims = [place + dim for dim, one in enumerate(front) if any(factor.content for factor in one)]
    if not all(varies(values, dim) for dim in dims):
        return None
    sizes = [[factor.size for factor in one] for one in front if any(factor.content for factor in one)]
    return _zeroed(p, values, {val(values).dim() + dim: size for dim, size in zip(dims, sizes, strict=True)})


def _zeroed(p: Padder, values: fx.Node, dims: dict[int, Sequence[sympy.Expr]]) -> fx.Node:
    """Values with 0 at pads of an index, which may be valid positions of theirs: ones that are counted have no pads."""
    pads = p.pads(values)
    if pads.uniform is None and all(pads.padded(dim) and [*pads.sizes(dim)] == [*sizes] for dim, sizes in dims.items()):
        return p.fill(values, dims, 0, _ADDS)
    p.log("mask", _ADDS)
    return p.raw(aten.where.self, p.mask(val(values).dim(), dims), values, p.literal(0, val(values).dtype))


def _dumped(
    p: Padder, node: fx.Node, x: fx.Node, indices: list[Any], values: Any, front: list[Dim], claims: Pads
) -> Claims:
    """One index that varies along every padded dim names the dump row; the others are merely brought in range."""
    first = next(dim for dim, index in enumerate(indices) if index is not None)
    sizes = [p.size_of(s) for s in torch.broadcast_shapes(*(val(i).shape for i in indices if i is not None))]
    wide = p.raw(aten.expand.default, indices[first], sizes)
    p.claims[wide] = Pads(tuple(mapped(d, lambda c: GARBAGE) for d in front))
    indices = [None if i is None else safe_index(p, i, val(x).shape[d]) for d, i in enumerate(indices)]
    indices[first] = _dumped_index(p, wide, val(x).shape[first], p.pads(wide))
    written = p.raw(node.target, _dump_row(p, x, first), indices, values, *node.args[3:])
    return _dropped(p, written, first, claims)


def _masked_write(p: Padder, node: fx.Node) -> Claims:
    """`x[mask] = v` with the same values for every position is `where`."""
    x, mask, new = operand(node, 0), operand(node, 1)[0], operand(node, 2)
    inner = val(x).dim() - val(mask).dim()
    if val(new).dim() > inner and any(expression(size) != 1 for size in val(new).shape[: val(new).dim() - inner]):
        raise p.refuse("a bool mask takes as many rows as data says; use where")
    for _ in range(inner):
        mask = p.emit(aten.unsqueeze.default, mask, -1)
    return p.become(p.emit(aten.where.self, mask, new, x))


def _from_front_any(p: Padder, x: Any, dim: int, index: fx.Node) -> fx.Node:
    """Like `from_front`, for the first index too, whose dim grows by the dump row."""
    if p.pads(index).iota is not None:
        return index
    expr = expression(val(x).shape[dim])
    length = p.resources.length(expr) if expr.free_symbols else int(expr)
    return p.emit(aten.where.self, p.emit(aten.lt.Scalar, index, 0), p.emit(aten.add.Tensor, index, length), index)


def _scatter(p: Padder, node: fx.Node) -> Claims:
    """scatter, scatter_add, scatter_reduce: (x, dim, index, src or value)."""
    x: Any = operand(node, 0)
    rank = val(node).dim()
    dim = wrap(int(operand(node, 1)), rank)
    index: Any = operand(node, 2)
    x = p.compact(x, dim)
    source: Any = operand(node, 3) if len(node.args) > 3 else None
    tensor = isinstance(source, fx.Node) and isinstance(val(source), torch.Tensor)
    held = {"x": x, "index": index} | ({"source": source} if tensor else {})
    like: list[Dim | None] = []
    for other in range(rank):
        names = [name for name in held if name != "x" or other != dim]
        tensors, one = aligned(p, [held[name] for name in names], [other] * len(names))
        held.update(zip(names, tensors, strict=True))
        like.append(one)
    x, index, source = held["x"], held["index"], held.get("source", source)
    base = laid_out(p.pads(x), [None if other == dim else one for other, one in enumerate(like)])
    given = laid_out(p.pads(index), like)
    claims = after_write(p, base, p.pads(source) if tensor else None, val(node).dtype)
    tail = (source, *node.args[4:]) if len(node.args) > 3 else ()
    if not any(d == dim or like[d] is None for d in given.padded_dims):  # pads write to pads only
        node.args = (x, dim, safe_index(p, index, val(x).shape[dim]), *tail)
        p.rewriter.modified = True
        return claims
    index = _dumped_index(p, index, val(x).shape[dim], given)
    written = p.raw(node.target, _dump_row(p, x, dim), dim, index, *tail, **node.kwargs)
    return _dropped(p, written, dim, claims)


def _index_write(p: Padder, node: fx.Node) -> Claims:
    """index_add, index_copy, index_fill: (x, dim, index, src)."""
    rank = val(node).dim()
    dim = wrap(int(operand(node, 1)), rank)
    x: Any = p.compact(operand(node, 0), dim)
    index: Any = operand(node, 2)
    source: Any = operand(node, 3)
    values = p.pads(source)
    given = p.pads(index)
    like: list[Dim | None] = [None] * rank
    if values.dims:
        if given.dims:
            (source, index), one = aligned(p, [source, index], [dim, 0])
            given = laid_out(p.pads(index), [one])
        for other in (i for i in range(rank) if i != dim):
            (x, source), like[other] = aligned(p, [x, source], [other, other])
        values = p.pads(source)
    claims = after_write(p, laid_out(p.pads(x), like), values, val(node).dtype)
    if not p.pads(index).padded_dims:
        node.args = (x, dim, index, source, *node.args[4:])
        p.rewriter.modified = True
        return claims
    if node.target is aten.index_copy.default and val(index).dim() and has_rows(p, x, [dim]):
        places, source = repeat_last(p, x, [*[None] * dim, index], source, given.dims, dim)
        written = p.raw(node.target, x, dim, places[dim], source)
        p.claims[written] = claims
        return p.become(written)
    if node.target is aten.index_add.default and val(index).dim() and has_rows(p, x, [dim]) and _is_finite(node):
        source = _zeroed(p, source, {dim: [factor.size for factor in given.dims[0]]})
        index = safe_index(p, index, val(x).shape[dim])
        written = p.raw(node.target, x, dim, index, source, **node.kwargs)
        p.claims[written] = claims
        return p.become(written)
    index = _dumped_index(p, index, val(x).shape[dim], given)
    written = p.raw(node.target, _dump_row(p, x, dim), dim, index, source, *node.args[4:], **node.kwargs)
    return _dropped(p, written, dim, claims)


def _is_finite(node: fx.Node) -> bool:
    """Whether nothing times what an `index_add` multiplies by is nothing."""
    factor = argument(node, 4, "alpha", 1)
    return isinstance(factor, (int, float)) and math.isfinite(factor)


RULES = (
    Rule(
        (aten.index_put.default,),
        "pads write what the last valid position writes, or add nothing; with a mask it is `where`",
        "the base's, or finite",
        _index_put,
    ),
    Rule(
        (aten.scatter.src, aten.scatter.value, aten.scatter_add.default, aten.scatter_reduce.two),
        "pads of the index write to a row that is dropped; those of other dims to pads",
        "the base's, or finite",
        _scatter,
    ),
    Rule(
        (aten.index_copy.default,),
        "pads write what the last valid position writes",
        "the base's, or finite",
        _index_write,
    ),
    Rule(
        (aten.index_add.default,),
        "pads add nothing",
        "the base's, or finite",
        _index_write,
    ),
    Rule(
        (aten.index_fill.int_Scalar,),
        "pads of the index write to a row that is dropped",
        "the base's, or finite",
        _index_write,
    ),
)
