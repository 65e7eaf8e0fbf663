"""slice_scatter and select_scatter: windows and rows are written at their logical positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import FINITE, GARBAGE, Pads, join, mapped, normal
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.indexing import copies
from gaudicc.padding.rules.positions import slice_start
from gaudicc.padding.rules.repeats import has_rows, repeat_last
from gaudicc.padding.rules.rule import Rule, operand, wrap
from gaudicc.padding.sizes import expression, grows, never_below_zero
from gaudicc.rules.match import argument


def after_write(p: Padder, base: Pads, values: Pads | None, dtype: torch.dtype) -> Pads:
    """The base's claims, weakened by what may have been written into its pads."""
    content = FINITE if values is None else copies(p, values)
    return Pads(tuple(normal(mapped(d, lambda c: join(c, content).weak), dtype) for d in base.dims))


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
        return after_write(p, base, new, val(node).dtype)
    whole = expression(val(source).shape[dim]) == expression(val(x).shape[dim])
    if whole and step == 1:
        return p.become(p.emit(aten.clone.default, source))
    if step != 1:
        raise p.refuse("a strided write of a padded source")
    begins: Any = start if fixed else slice_start(p, start, base, dim)
    extent = expression(val(source).shape[dim])
    if not base.padded(dim) and (not new.padded(dim) or _leaves_a_row(p, x, dim, start, extent)):
        return _write_rows(p, x, source, dim, start, begins)
    if not base.padded(dim) and has_rows(p, x, [dim]):
        rows = p.raw(aten.add.Tensor, p.resources.iota(extent), begins)
        p.claims[rows] = Pads((mapped(new.dims[dim], lambda c: GARBAGE),))
        places, source = repeat_last(p, x, [*[None] * dim, rows], source, [new.dims[dim]], dim)
        written = p.raw(aten.index_copy.default, x, dim, places[dim], source)
        p.claims[written] = after_write(p, base, new, val(node).dtype)
        return p.become(written)
    place = p.raw(aten.sub.Tensor, p.resources.iota(expression(val(x).shape[dim])), begins)
    length = p.resources.length(extent) if extent.free_symbols else p.resources.scalar(extent)
    inside = p.raw(aten.logical_and.default, p.raw(aten.ge.Scalar, place, 0), p.raw(aten.lt.Tensor, place, length))
    shape = [-1 if i == dim else 1 for i in range(rank)]
    # Of these nothing is claimed: behind the source, valid rows of the base find pads of the source here.
    rows = p.raw(aten.index_select.default, source, dim, p.clamp_to(place, extent))
    mixed = p.raw(aten.where.self, p.raw(aten.view.default, inside, shape), rows, x)
    p.claims[mixed] = after_write(p, base, new, val(node).dtype)
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
    claims = after_write(p, p.pads(x), p.pads(source), val(p.node).dtype)
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
    claims = after_write(p, p.pads(x), p.pads(source), val(node).dtype)
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
