"""Ops that count positions from an end, shift them or join dims: they count logical positions."""

from __future__ import annotations

from typing import Any

import sympy
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import FINITE, GARBAGE, Content, Dim, Factor, Pads, constant, join, mapped, normal, total
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.rule import Rule, operand, wrap
from gaudicc.padding.sizes import expression, never_below_zero
from gaudicc.rules.match import argument


def _slice(p: Padder, node: fx.Node) -> Claims:
    x = operand(node, 0)
    result, source = val(node), val(x)
    dim = wrap(int(argument(node, 1, "dim", 0)), result.dim())
    start, step = argument(node, 2, "start", None), argument(node, 4, "step", 1)
    pads = p.pads(x)
    if pads.uniform is not None:
        return Pads(
            (*pads.dims[:dim], p.dim(result.shape[dim], constant(pads.uniform, strong=True)), *pads.dims[dim + 1 :]),
            pads.uniform,
        )
    begins_at_size = isinstance(start, fx.Node) and bool(expression(val(start)).free_symbols)
    if not pads.padded(dim) and not begins_at_size:
        behind = (
            constant(0, strong=True) if pads.zeros == (dim, expression(result.shape[dim])) and not start else GARBAGE
        )
        return Pads((*pads.dims[:dim], p.dim(result.shape[dim], behind), *pads.dims[dim + 1 :]))
    if expression(result.shape[dim]) == expression(source.shape[dim]) and step == 1:
        return pads
    if not pads.prefix(dim):
        x = p.compact(x, dim)
        p.set_arg(0, x)
        pads = p.pads(x)
    first = 0 if start is None else start
    if isinstance(first, int) and first >= 0 and isinstance(step, int):
        return Pads((*pads.dims[:dim], _prefix(p, node, pads, dim, first, step), *pads.dims[dim + 1 :]))
    begins = slice_start(p, first, pads, dim)
    index = p.raw(aten.mul.Tensor, p.resources.iota(expression(result.shape[dim])), step)
    index = p.clamp_to(p.raw(aten.add.Tensor, index, begins), expression(source.shape[dim]))
    p.log("relayout", "a slice that starts at a size, or counts from the end, starts at the logical position")
    return p.become(p.select_rows(x, dim, index, p.dim(result.shape[dim])))


def _prefix(p: Padder, node: fx.Node, pads: Pads, dim: int, start: int, step: int) -> Dim:
    """A slice from a fixed start: what is valid comes first. Cut short by another size, valid data becomes pad."""
    size = expression(val(node).shape[dim])
    contents = pads.contents(dim)
    content: Content = contents[0].weak
    for other in contents[1:]:
        content = join(content, other.weak)
    whole = expression(val(operand(node, 0)).shape[dim])
    end = argument(node, 3, "end", None)
    open_end = end is None or (isinstance(end, int) and end >= 2**31)
    to_end = open_end or (step == 1 and sympy.expand(whole - start - size) == 0)
    if not to_end or len(pads.dims[dim]) > 1:
        content = join(FINITE, content) if content.finite else GARBAGE
    return normal(p.dim(size, content), val(node).dtype)


def logical(p: Padder, position: Any, pads: Pads, dim: int) -> Any:
    """A position counted from the end, or given as a size, as a tensor."""
    size = sympy.Mul(*pads.sizes(dim))
    length = p.resources.length(size) if size.free_symbols else p.resources.scalar(size)
    if isinstance(position, int):
        return p.raw(aten.add.Tensor, length, position) if position < 0 else position
    expr = expression(val(position))
    value = p.value(position)
    if expr.is_nonnegative or expr.is_symbol:
        return value
    if not isinstance(value, fx.Node):
        return logical(p, int(value), pads, dim)
    if never_below_zero(-1 - expr, p.ranges):
        return p.raw(aten.add.Tensor, value, length)
    negative = p.raw(aten.lt.Scalar, value, 0)
    return p.raw(aten.where.self, negative, p.raw(aten.add.Tensor, value, length), value)


def slice_start(p: Padder, start: Any, pads: Pads, dim: int) -> Any:
    """Where a slice begins, as a tensor: at 0 where it would begin before, as the last six of four."""
    begins, size = logical(p, start, pads, dim), sympy.Mul(*pads.sizes(dim))
    place = expression(val(start)) if isinstance(start, fx.Node) else sympy.Integer(start)
    if not isinstance(begins, fx.Node) or never_below_zero(place, p.ranges) or never_below_zero(size + place, p.ranges):
        return begins
    return p.raw(aten.clamp.default, begins, 0)


def _select(p: Padder, node: fx.Node) -> Claims:
    x, index = operand(node, 0), operand(node, 2)
    rank = val(x).dim()
    dim = wrap(int(operand(node, 1)), rank)
    pads = p.pads(x)
    rest = tuple(mapped(d, lambda c: c.weak) for i, d in enumerate(pads.dims) if i != dim)
    if pads.uniform is not None or not pads.padded(dim):
        if isinstance(index, fx.Node) and expression(val(index)).free_symbols:
            raise p.refuse("a position that is a size, in a dim without pads")
        return Pads(rest, pads.uniform)
    x = p.compact(x, dim)
    p.set_arg(0, x)
    pads = p.pads(x)
    if isinstance(index, int) and index >= 0:
        return Pads(rest)
    position = p.raw(aten.view.default, p.clamp_to(logical(p, index, pads, dim), sympy.Mul(*pads.sizes(dim))), [1])
    picked = p.select_rows(x, dim, position, (Factor(sympy.Integer(1)),))
    p.log("relayout", "a position counted from the end, or given as a size, is the logical one")
    return p.become(p.emit(aten.squeeze.dim, picked, dim))


def _flip(p: Padder, node: fx.Node) -> Claims:
    x: Any = operand(node, 0)
    rank = val(node).dim()
    dims = [wrap(int(d), rank) for d in operand(node, 1)]
    pads = p.pads(x)
    padded = [dim for dim in dims if pads.padded(dim)]
    if not padded:
        return Pads(tuple(mapped(d, lambda c: c.weak) for d in pads.dims), pads.uniform)
    for dim in padded:
        x = p.compact(x, dim)
        size = sympy.Mul(*p.pads(x).sizes(dim))
        last = p.raw(aten.sub.Tensor, p.resources.length(size), 1)
        x = p.select_rows(
            x, dim, p.clamp_to(p.raw(aten.sub.Tensor, last, p.resources.iota(size)), size), p.pads(x).dims[dim]
        )
    p.log("relayout", "the last valid element comes first")
    static = [dim for dim in dims if dim not in padded]
    return p.become(p.emit(aten.flip.default, x, static) if static else x)


def _roll(p: Padder, node: fx.Node) -> Claims:
    x: Any = operand(node, 0)
    rank = val(node).dim()
    shifts = operand(node, 1) if isinstance(operand(node, 1), (list, tuple)) else [operand(node, 1)]
    given = argument(node, 2, "dims", [])
    dims = [wrap(int(d), rank) for d in (given if isinstance(given, (list, tuple)) else [given])]
    pads = p.pads(x)
    if not dims and pads.padded_dims:
        raise p.refuse("a roll over all dims")
    if not any(pads.padded(dim) for dim in dims):
        return Pads(tuple(mapped(d, lambda c: c.weak) for d in pads.dims), pads.uniform)
    for dim, shift in zip(dims, shifts, strict=True):
        x = p.compact(x, dim)
        size = sympy.Mul(*p.pads(x).sizes(dim))
        if not size.free_symbols:
            x = p.emit(aten.roll.default, x, [shift], [dim])
            continue
        length = p.raw(aten.clamp.default, p.resources.length(size), 1)
        index = p.raw(aten.remainder.Tensor, p.raw(aten.sub.Tensor, p.resources.iota(size), p.value(shift)), length)
        x = p.select_rows(x, dim, p.clamp_to(index, size), p.pads(x).dims[dim])
    p.log("relayout", "positions wrap at the logical length")
    return p.become(x)


def _cat(p: Padder, node: fx.Node) -> Claims:
    parts: list[Any] = list(operand(node, 0))
    rank = val(node).dim()
    dim = wrap(int(argument(node, 1, "dim", 0)), rank)
    parts = [part for part in parts if val(part).dim() == rank]
    parts = [p.compact(part, dim) if p.pads(part).uniform is None else part for part in parts]
    _same_layouts(p, parts, dim)
    p.set_arg(0, parts)
    pads = [p.pads(part) for part in parts]
    others = _joined(pads, dim, val(node))
    size = val(node).shape[dim]
    if not any(pad.padded(dim) for pad in pads[:-1]):
        last = pads[-1].contents(dim)
        return Pads((*others[:dim], p.dim(size, last[0].weak if last else GARBAGE), *others[dim + 1 :]))
    index = _offsets(p, [p.pads(part) for part in parts], dim, expression(size))
    joined = p.raw(aten.cat.default, parts, dim)
    finite = all(c.finite for pad in pads for c in pad.contents(dim))
    middle = p.dim(size, FINITE if finite else GARBAGE)
    p.claims[joined] = Pads((*others[:dim], middle, *others[dim + 1 :]))
    p.log("relayout", "each operand begins where the valid part of the one before ends")
    picked = p.select_rows(joined, dim, index, middle)
    p.claims[joined] = None  # its valid positions are not its first ones
    return p.become(picked)


def _same_layouts(p: Padder, parts: list[Any], dim: int) -> None:
    for other in range(val(parts[0]).dim()):
        layouts = {p.pads(part).sizes(other) for part in parts if p.pads(part).uniform is None}
        if other != dim and len(layouts) > 1:
            for i, part in enumerate(parts):
                parts[i] = p.compact(part, other)


def _joined(pads: list[Pads], dim: int, result: Any) -> list[Dim]:
    """The other dims' claims: what all operands have in common."""
    made = []
    real = [pad for pad in pads if pad.uniform is None] or pads
    for i, first in enumerate(real[0].dims):
        if i == dim:
            made.append(first)
            continue
        sizes = [[factor.size for factor in pad.dims[i]] for pad in real]
        whole = any(each != sizes[0] for each in sizes)  # they are compact, so that the first factor says all
        factors = []
        for position, factor in enumerate((Factor(total([first]), first[0].content),) if whole else first):
            content = factor.content
            for pad in pads:
                other = pad.dims[i][position].content if pad.uniform is None else constant(pad.uniform)
                content = None if content is None else join(content, other if other is not None else GARBAGE).weak
            factors.append(Factor(factor.size, content))
        made.append(normal(tuple(factors), result.dtype))
    return made


def _offsets(p: Padder, pads: list[Pads], dim: int, size: sympy.Expr) -> fx.Node:
    """For each position of a concatenation, the physical position it comes from."""
    place = p.resources.iota(size)
    index: fx.Node = place
    logical: sympy.Expr = sympy.Integer(0)
    physical: sympy.Expr = sympy.Integer(0)
    for pad in pads[:-1]:
        part = sympy.Mul(*pad.sizes(dim))
        logical, physical = logical + part, physical + part
        begins = p.resources.length(logical) if logical.free_symbols else p.resources.scalar(logical)
        skipped = p.raw(aten.sub.Tensor, p.resources.physical(physical), begins) if logical.free_symbols else 0
        moved = p.raw(aten.add.Tensor, place, skipped)
        index = p.raw(aten.where.self, p.raw(aten.lt.Tensor, place, begins), index, moved)
    return p.clamp_to(index, size)


def _stack(p: Padder, node: fx.Node) -> Claims:
    parts: list[Any] = list(operand(node, 0))
    rank = val(node).dim()
    dim = wrap(int(argument(node, 1, "dim", 0)), rank)
    lifted = [p.emit(aten.unsqueeze.default, part, dim) for part in parts]
    return p.become(p.emit(aten.cat.default, lifted, dim))


RULES = (
    Rule(
        (aten.slice.Tensor,),
        "none from a fixed start; otherwise moved to the logical position",
        "kept to the end of the dim; finite where valid data becomes pad",
        _slice,
    ),
    Rule(
        (aten.select.int,),
        "none for a position from the front; otherwise the logical position is gathered",
        "the dim goes",
        _select,
    ),
    Rule((aten.flip.default,), "moved: the last valid element comes first", "copies", _flip),
    Rule((aten.roll.default,), "moved: positions wrap at the logical length", "copies", _roll),
    Rule(
        (aten.cat.default,),
        "none if only the last operand is padded there; otherwise moved to running offsets",
        "as the last operand; copies if moved",
        _cat,
    ),
    Rule((aten.stack.default,), "as unsqueeze and cat", "as cat", _stack),
)
