"""`reflection_pad` and `replication_pad`: new positions hold what is at valid ones, so that those are counted logically."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import Pads, mapped
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.rule import Rule, operand
from gaudicc.padding.sizes import expression


def _repeats(mirrored: bool) -> Callable[[Padder, fx.Node], Claims]:
    """Padding with what is there, mirrored at the ends or the last of it repeated."""

    def claims(p: Padder, node: fx.Node) -> Claims:
        x: Any = operand(node, 0)
        widths, rank = list(operand(node, 1)), val(node).dim()
        before = {rank - 1 - i: width for i, width in enumerate(widths[::2])}
        pads = p.pads(x)
        if not any(pads.padded(dim) for dim in before):
            made = [p.dim(size) if i in before else mapped(pads.dims[i], lambda c: c.weak) for i, size in _sizes(node)]
            return Pads(tuple(made), pads.uniform)
        for dim, width in before.items():
            if isinstance(width, fx.Node):
                raise p.refuse("as many new positions as a size")
            x = _picked(p, p.compact(x, dim), dim, width, val(node).shape[dim], mirrored)
        p.log("relayout", "the ends are those of the logical positions")
        return p.become(x)

    return claims


def _sizes(node: fx.Node) -> list[tuple[int, Any]]:
    return list(enumerate(val(node).shape))


def _picked(p: Padder, x: fx.Node, dim: int, before: int, size: Any, mirrored: bool) -> fx.Node:
    """The rows of one dim: of every position of the result, the valid one of the operand that it repeats."""
    source = sympy.Mul(*p.pads(x).sizes(dim))
    length = p.resources.length(source) if source.free_symbols else p.resources.scalar(source)
    last = p.raw(aten.sub.Tensor, length, 1)
    index = p.raw(aten.sub.Tensor, p.resources.iota(expression(size)), before)
    if mirrored:
        index = p.raw(aten.sub.Tensor, last, p.raw(aten.abs.default, index))
        index = p.raw(aten.sub.Tensor, last, p.raw(aten.abs.default, index))
    index = p.raw(aten.minimum.default, index, last)
    return p.select_rows(x, dim, p.clamp_to(index, source), p.dim(size))


RULES = (
    Rule(
        (aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default),
        "the ends are those of the logical positions",
        "finite or garbage",
        _repeats(mirrored=True),
    ),
    Rule(
        (aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default),
        "the ends are those of the logical positions",
        "finite or garbage",
        _repeats(mirrored=False),
    ),
)
