"""Cumulative ops and sorting: pads come last."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.extremes import fill_extreme
from gaudicc.padding.layout import FINITE, GARBAGE, Pads, mapped, normal
from gaudicc.padding.padder import Claims, Padder, aten, highest, lowest
from gaudicc.padding.rules.rule import Rule, operand, wrap
from gaudicc.rules.match import argument


def _cumulative(keeps_finite: bool) -> Callable[[Padder, fx.Node], Claims]:
    """Prefix ops look back only, and pads come last."""

    def claims(p: Padder, node: fx.Node) -> Claims:
        x = operand(node, 0)
        rank = val(x).dim()
        if rank == 0:
            return (Pads(()), Pads(())) if isinstance(val(node), tuple) else Pads(())
        dim = wrap(int(operand(node, 1)), rank)
        p.set_arg(0, p.compact(x, dim))
        pads = p.pads(operand(node, 0))
        result = val(node)
        first = result[0] if isinstance(result, tuple) else result
        dims = tuple(
            normal(mapped(d, lambda c: FINITE if keeps_finite and c.finite else GARBAGE), first.dtype)
            for d in pads.dims
        )
        values = Pads(dims)
        if isinstance(result, tuple):
            return values, Pads(tuple(mapped(d, lambda c: GARBAGE) for d in dims))
        return values

    return claims


def _sort(p: Padder, node: fx.Node) -> Claims:
    """Pads go last: stable, with the value that sorts last. NaN sorts as the largest."""
    x = operand(node, 0)
    source = val(x)
    dim = node.kwargs.get("dim", argument(node, 2 if node.target is aten.sort.stable else 1, "dim", -1))
    descending = node.kwargs.get(
        "descending", argument(node, 3 if node.target is aten.sort.stable else 2, "descending", False)
    )
    if source.dim() == 0:
        return (Pads(()), Pads(()))
    dim = wrap(int(dim), source.dim())
    pads = p.pads(x)
    if not pads.padded(dim):
        made = tuple(mapped(d, lambda c: c.weak if c.finite else GARBAGE) for d in pads.dims)
        indices = tuple(mapped(d, lambda c: GARBAGE) for d in pads.dims)
        return (Pads(made), Pads(indices)) if isinstance(val(node), tuple) else Pads(indices)
    values, indices_node = sorted_last(p, x, dim, bool(descending))
    if isinstance(val(node), tuple):
        return p.become_all((values, indices_node))
    return p.become(indices_node)


def sorted_last(p: Padder, x: Any, dim: int, descending: bool) -> tuple[fx.Node, fx.Node]:
    """A stable sort of a padded dim with the pads last."""
    dtype = val(x).dtype
    x = p.compact(x, dim)
    last = lowest(dtype) if descending else (float("nan") if dtype.is_floating_point else highest(dtype))
    filled, pads = fill_extreme(p, x, [dim], last, f"its pads hold {last}, which sorts last, stably")
    both = p.raw(aten.sort.stable, filled, stable=True, dim=dim, descending=descending)
    made = Pads(tuple(d if i == dim else mapped(d, lambda c: GARBAGE) for i, d in enumerate(pads.dims)))
    indices = Pads(tuple(mapped(d, lambda c: GARBAGE) for d in pads.dims))
    p.claims[both] = (made, indices)
    first = p.raw(operator.getitem, both, 0)
    second = p.raw(operator.getitem, both, 1)
    p.claims[first] = Pads(tuple(normal(mapped(d, lambda c: c.weak), dtype) for d in made.dims))
    p.claims[second] = indices
    return first, second


def _topk(p: Padder, node: fx.Node) -> Claims:
    x, k = operand(node, 0), operand(node, 1)
    source = val(x)
    if source.dim() == 0:
        return (Pads(()), Pads(()))
    dim = wrap(int(argument(node, 2, "dim", -1)), source.dim())
    pads = p.pads(x)
    if not pads.padded(dim):
        size = p.dim(val(node)[0].shape[dim])
        made = tuple(
            size if i == dim else normal(mapped(d, lambda c: FINITE if c.finite else GARBAGE), source.dtype)
            for i, d in enumerate(pads.dims)
        )
        indices = tuple(size if i == dim else mapped(d, lambda c: GARBAGE) for i, d in enumerate(pads.dims))
        return Pads(made), Pads(indices)
    values, indices_node = sorted_last(p, x, dim, bool(argument(node, 3, "largest", True)))
    results = tuple(p.emit(aten.slice.Tensor, part, dim, 0, k) for part in (values, indices_node))
    p.log("rewrite", "the k largest are the first k of a stable sort with the pads last")
    return p.become_all(results)


RULES = (
    Rule((aten.cumsum.default,), "none: a prefix never meets a pad", "finite if the operand's is", _cumulative(True)),
    Rule(
        (aten.cumprod.default, aten.cummax.default, aten.cummin.default, aten.logcumsumexp.default),
        "none: a prefix never meets a pad",
        "garbage",
        _cumulative(False),
    ),
    Rule(
        (aten.sort.default, aten.sort.stable, aten.argsort.default, aten.argsort.stable),
        "the value that sorts last, stably",
        "that value; garbage positions",
        _sort,
    ),
    Rule((aten.topk.default,), "over a padded dim: stable sort with the pads last, then the first k", "as sort", _topk),
)
