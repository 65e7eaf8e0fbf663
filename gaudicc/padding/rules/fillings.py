"""`constant_pad_nd`: new positions before or after those of a dim, as many as a number or a size says."""

from __future__ import annotations

from typing import Any

import sympy
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import FINITE, GARBAGE, Pads, constant, join, mapped, normal
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.rule import Rule, operand
from gaudicc.padding.sizes import expression, never_below_zero
from gaudicc.rules.match import argument


def _constant_pad(p: Padder, node: fx.Node) -> Claims:
    """New positions after the valid ones lie where pads are: they hold the value, and so must the pads."""
    x: Any = operand(node, 0)
    widths, value = list(operand(node, 1)), argument(node, 2, "value", 0)
    if isinstance(value, fx.Node):
        raise p.refuse("a value that is a size; concatenate instead")
    if any(isinstance(width, fx.Node) for width in widths[::2]):
        return _begun_by_sizes(p, node, widths, value)
    rank = val(node).dim()
    demanded = []
    for i in range(len(widths) // 2):
        dim = rank - 1 - i
        if p.pads(x).padded(dim):
            x = p.compact(x, dim)
            if isinstance(widths[2 * i + 1], fx.Node) or widths[2 * i + 1] > 0:
                demanded.append(dim)
    p.set_arg(0, x)
    pads = p.fill_arg(0, demanded, value, "new positions after the valid ones hold the padding value")
    dims = list(pads.dims)
    for i in range(len(widths) // 2):
        dim = rank - 1 - i
        if isinstance(widths[2 * i + 1], fx.Node):  # what a larger size adds holds the value, as the pads do
            adds = never_below_zero(expression(val(widths[2 * i + 1])), p.ranges)
            dims[dim] = p.dim(val(node).shape[dim], constant(value) if adds else GARBAGE)
        elif widths[2 * i] or widths[2 * i + 1]:
            old = pads.contents(dim)
            kept = old[0].weak if old else GARBAGE
            cut = widths[2 * i + 1] < 0
            dims[dim] = normal(
                p.dim(val(node).shape[dim], (FINITE if kept.finite else GARBAGE) if cut else kept), val(node).dtype
            )
    if any(isinstance(width, fx.Node) or width > 0 for width in widths):
        # Where one dim is pad, the others' new positions hold the value; of those that were pads before nothing is known.
        known = all(c.strong for dim in demanded for c in pads.contents(dim))
        join_value = lambda c: join(c, constant(value))  # noqa: E731
        unclaimed = lambda _: GARBAGE  # noqa: E731
        changes = [join_value if known or dim in demanded else unclaimed for dim in range(len(dims))]
        dims = [normal(mapped(d, change), val(node).dtype) for d, change in zip(dims, changes, strict=True)]
    return Pads(tuple(mapped(d, lambda c: c.weak) for d in dims))


def _begun_by_sizes(p: Padder, node: fx.Node, widths: list[Any], value: Any) -> Claims:
    """Dims that begin with as many new positions as a size: what was there moves to its logical positions."""
    x: Any = operand(node, 0)
    for i in range(0, len(widths), 2):
        if isinstance(widths[i], fx.Node):
            x = _moved(p, node, x, val(node).dim() - 1 - i // 2, widths[i : i + 2], value)
            widths[i : i + 2] = 0, 0
    p.log("relayout", "the first element comes behind as many new positions as a size is long")
    more = any(isinstance(width, fx.Node) or width for width in widths)
    return p.become(p.emit(aten.constant_pad_nd.default, x, widths, value) if more else x)


def _moved(p: Padder, node: fx.Node, x: Any, dim: int, widths: list[Any], value: Any) -> fx.Node:
    x = p.compact(x, dim) if p.pads(x).padded(dim) else x
    source, size = sympy.Mul(*p.pads(x).sizes(dim)), val(node).shape[dim]
    index = p.raw(aten.sub.Tensor, p.resources.iota(expression(size)), p.value(widths[0]))
    length = p.resources.length(source) if source.free_symbols else p.resources.scalar(source)
    inside = p.raw(aten.logical_and.default, p.raw(aten.ge.Scalar, index, 0), p.raw(aten.lt.Tensor, index, length))
    rank, dtype = val(node).dim(), val(node).dtype
    inside = p.raw(aten.view.default, inside, [-1 if d == dim else 1 for d in range(rank)])
    # Of these nothing is claimed: where new positions are, valid ones find pads of the source here.
    picked = p.raw(aten.index_select.default, x, dim, p.clamp_to(index, source))
    made = p.raw(aten.where.self, inside, picked, p.literal(value, dtype))
    dims = [normal(mapped(d, lambda c: join(c, constant(value)).weak), dtype) for d in p.pads(x).dims]
    adds = never_below_zero(expression(val(widths[1]) if isinstance(widths[1], fx.Node) else widths[1]), p.ranges)
    dims[dim] = p.dim(size, constant(value) if adds else GARBAGE)
    p.claims[made] = Pads(tuple(dims))
    return made


RULES = (
    Rule(
        (aten.constant_pad_nd.default,),
        "the padding value, where positions are added behind the valid ones; after a size of new ones, moved to its place",
        "kept",
        _constant_pad,
    ),
)
