"""Scatter and its kin: pads of an index write to a row that is dropped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import FINITE, GARBAGE, Dim, Pads, join, mapped, normal
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.alignment import aligned, laid_out, relaid
from gaudicc.padding.rules.indexing import broadcast_dims, copies, index_dims, refuse_masks, safe_index
from gaudicc.padding.rules.positions import logical
from gaudicc.padding.rules.rule import Rule, operand, wrap
from gaudicc.padding.sizes import expression, grows, never_below_zero
from gaudicc.rules.match import argument

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


def _after_write(p: Padder, base: Pads, values: Pads | None, dtype: torch.dtype) -> Pads:
    """The base's claims, weakened by what may have been written into its pads."""
    content = FINITE if values is None else copies(p, values)
    return Pads(tuple(normal(mapped(d, lambda c: join(c, content).weak), dtype) for d in base.dims))


def _index_put(p: Padder, node: fx.Node) -> Claims:
    x: Any = operand(node, 0)
    indices: list[Any] = list(operand(node, 1))
    if len(indices) == 1 and val(indices[0]).dtype is torch.bool and not argument(node, 3, "accumulate", False):
        return _masked_write(p, node)
    refuse_masks(p, indices)
    for dim, index in enumerate(indices):
        if index is not None:
            x = p.compact(x, dim)
            indices[dim] = _from_front_any(p, x, dim, index)
    first = next(dim for dim, index in enumerate(indices) if index is not None)
    front = broadcast_dims(p, [index for index in indices if index is not None])
    values: Any = operand(node, 2)
    if p.pads(values).dims:
        values = relaid(p, values, index_dims(p, x, indices, front))
    claims = _after_write(p, p.pads(x), p.pads(values), val(node).dtype)
    if not any(f.content for d in front for f in d):
        p.node.args = (x, indices, values, *node.args[3:])
        p.rewriter.modified = True
        return claims
    # One index that varies along every padded dim names the dump row; the others are merely brought in range.
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
    """Like `_from_front`, for the first index too, whose dim grows by the dump row."""
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
    claims = _after_write(p, base, p.pads(source) if tensor else None, val(node).dtype)
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
    claims = _after_write(p, laid_out(p.pads(x), like), values, val(node).dtype)
    if not p.pads(index).padded_dims:
        node.args = (x, dim, index, source, *node.args[4:])
        p.rewriter.modified = True
        return claims
    index = _dumped_index(p, index, val(x).shape[dim], given)
    written = p.raw(node.target, _dump_row(p, x, dim), dim, index, source, *node.args[4:], **node.kwargs)
    return _dropped(p, written, dim, claims)


def _slice_scatter(p: Padder, node: fx.Node) -> Claims:
    """Only the valid part of the source is written; it begins at the logical start."""
    x: Any = operand(node, 0)
    source: Any = operand(node, 1)
    rank = val(node).dim()
    dim = wrap(int(argument(node, 2, "dim", 0)), rank)
    start, step = argument(node, 3, "start", 0) or 0, argument(node, 5, "step", 1)
    x, source = p.compact(x, dim), p.compact(source, dim)
    p.set_arg(0, x)
    p.set_arg(1, source)
    base, new = p.pads(x), p.pads(source)
    fixed = isinstance(start, int) and start >= 0
    if fixed and not new.padded(dim):
        return _after_write(p, base, new, val(node).dtype)
    whole = expression(val(source).shape[dim]) == expression(val(x).shape[dim])
    if whole and step == 1:
        return p.become(p.emit(aten.clone.default, source))
    if step != 1:
        raise p.refuse("a strided write of a padded source")
    begins: Any = start if fixed else logical(p, start, base, dim)
    extent = expression(val(source).shape[dim])
    if not base.padded(dim) and (not new.padded(dim) or _leaves_a_row(p, x, dim, start, extent)):
        return _write_rows(p, x, source, dim, start, begins)
    place = p.raw(aten.sub.Tensor, p.resources.iota(expression(val(x).shape[dim])), begins)
    length = p.resources.length(extent) if extent.free_symbols else p.resources.scalar(extent)
    inside = p.raw(aten.logical_and.default, p.raw(aten.ge.Scalar, place, 0), p.raw(aten.lt.Tensor, place, length))
    shape = [-1 if i == dim else 1 for i in range(rank)]
    # Of these nothing is claimed: behind the source, valid rows of the base find pads of the source here.
    rows = p.raw(aten.index_select.default, source, dim, p.clamp_to(place, extent))
    mixed = p.raw(aten.where.self, p.raw(aten.view.default, inside, shape), rows, x)
    p.claims[mixed] = _after_write(p, base, new, val(node).dtype)
    p.log("mask", "only the valid part of the source is written")
    return p.become(mixed)


def _leaves_a_row(p: Padder, x: fx.Node, dim: int, start: Any, extent: sympy.Expr) -> bool:
    """Whether no call writes the last row of a dim without pads."""
    begin = expression(val(start) if isinstance(start, fx.Node) else start)
    end = extent + begin
    if not never_below_zero(begin, p.ranges):
        return False
    highs = {symbol: p.ranges[str(symbol)][1] for symbol in end.free_symbols}
    if any(high < 0 for high in highs.values()) or not grows(end, p.ranges):
        return False
    most = end.xreplace({symbol: sympy.Integer(high) for symbol, high in highs.items()})
    return bool(most < expression(val(x).shape[dim]))


def _write_rows(p: Padder, x: fx.Node, source: fx.Node, dim: int, start: Any, begins: Any) -> Claims:
    """Writes rows of a dim without pads, and copies no others: pads write back what is there.

    They follow the valid rows; those that would lie behind the end all name the last row, which no valid one does.
    Where all was 0 from the first row written on, it is so from behind the last one.
    """
    extent, last = expression(val(source).shape[dim]), val(x).shape[dim] - 1
    claims = _after_write(p, p.pads(x), p.pads(source), val(p.node).dtype)
    rows = p.raw(aten.add.Tensor, p.resources.iota(extent), begins)
    if p.pads(source).padded(dim):
        rows = p.raw(aten.clamp.default, rows, None, last)
        kept = p.raw(aten.index_select.default, x, dim, rows)
        mask = p.mask(val(source).dim(), {dim: p.pads(source).sizes(dim)})
        source = p.raw(aten.where.self, mask, source, kept)
        p.log("mask", "pads write back what is there")
    written = p.raw(aten.index_copy.default, x, dim, rows, source)
    behind = (dim, expression(val(start) if isinstance(start, fx.Node) else start))
    p.claims[written] = replace(claims, zeros=(dim, behind[1] + extent) if p.pads(x).zeros == behind else None)
    return p.become(written)


def _select_scatter(p: Padder, node: fx.Node) -> Claims:
    """A row is written at a position; one that depends on sizes is that of the logical ones."""
    x: Any = operand(node, 0)
    source: Any = operand(node, 1)
    rank = val(node).dim()
    dim, index = wrap(int(operand(node, 2)), rank), operand(node, 3)
    x = p.compact(x, dim)
    for other in (i for i in range(rank) if i != dim):
        own = other - (other > dim)
        if p.pads(x).sizes(other) != p.pads(source).sizes(own):
            x, source = p.compact(x, other), p.compact(source, own)
    p.set_arg(0, x)
    p.set_arg(1, source)
    claims = _after_write(p, p.pads(x), p.pads(source), val(node).dtype)
    size = expression(val(x).shape[dim])
    if isinstance(index, int) and (index >= 0 or not size.free_symbols):
        return claims
    length, at = p.resources.length(size) if size.free_symbols else int(size), p.value(index)
    if isinstance(index, int):
        at = p.raw(aten.add.Tensor, length, index)
    else:
        at = p.raw(aten.where.self, p.raw(aten.lt.Scalar, at, 0), p.raw(aten.add.Tensor, at, length), at)
    here = p.raw(aten.eq.Tensor, p.resources.iota(size), at)
    shape = [-1 if i == dim else 1 for i in range(rank)]
    written = p.raw(
        aten.where.self, p.raw(aten.view.default, here, shape), p.raw(aten.unsqueeze.default, source, dim), x
    )
    p.claims[written] = claims
    p.log("rewrite", "the row is written at its logical position")
    return p.become(written)


RULES = (
    Rule(
        (aten.index_put.default,),
        "pads of the index write to a row that is dropped; with a mask it is `where`",
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
        (aten.index_add.default, aten.index_copy.default, aten.index_fill.int_Scalar),
        "pads of the index write to a row that is dropped",
        "the base's, or finite",
        _index_write,
    ),
    Rule(
        (aten.slice_scatter.default,),
        "only the valid part of the source is written; in a dim without pads by row, pads write back what is there",
        "the base's, or finite",
        _slice_scatter,
    ),
    Rule(
        (aten.select_scatter.default,),
        "a position that depends on sizes is that of the logical ones",
        "the base's, or finite",
        _select_scatter,
    ),
)
