"""Matrix products and attention: what is contracted must hold nothing harmful."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.kernels import attention, sink_attention
from gaudicc.nodes import val
from gaudicc.padding.layout import FINITE, GARBAGE, Dim, Factor, Pads, constant, mapped, normal
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.rule import Rule, operand
from gaudicc.padding.sizes import expression

_PRODUCT = "0 on the contracted dim, on both sides (0 x NaN is NaN)"


def _contract(p: Padder, a: Any, b: Any, dim_a: int, dim_b: int) -> tuple[Any, Any, bool]:
    """Both operands with harmless pads on the contracted dim, and whether other pads made of them stay finite."""
    pa, pb = p.pads(a), p.pads(b)
    if pa.sizes(dim_a) != pb.sizes(dim_b) and (pa.padded(dim_a) or pb.padded(dim_b)):
        a, b = p.compact(a, dim_a), p.compact(b, dim_b)
        pa, pb = p.pads(a), p.pads(b)
    if not pa.padded(dim_a):
        return a, b, True
    zero_a = all(c.is_constant(0) for c in pa.contents(dim_a)) and len(pa.contents(dim_a)) == 1
    zero_b = all(c.is_constant(0) for c in pb.contents(dim_b)) and len(pb.contents(dim_b)) == 1
    if not zero_a and not (zero_b and all(p.finite(c) for c in pa.contents(dim_a))):
        a = p.fill(a, [dim_a], 0, _PRODUCT)
        zero_a = True
    if not zero_b and not (zero_a and all(p.finite(c) for c in pb.contents(dim_b))):
        b = p.fill(b, [dim_b], 0, _PRODUCT)
    return a, b, all(c.strong for t, d in ((a, dim_a), (b, dim_b)) for c in p.pads(t).contents(d))


def _product(dims: tuple[Dim, ...], finite: bool, dtype: torch.dtype) -> Pads:
    return Pads(tuple(normal(mapped(d, lambda c: FINITE if finite and c.finite else GARBAGE), dtype) for d in dims))


def _matmul(p: Padder, node: fx.Node) -> Claims:
    """matmul, mm, bmm, mv, dot: the last dim of a with the last but one of b; leading dims broadcast."""
    a, b, finite = _multiplied(p, node, 0, 1)
    pa, pb = p.pads(a), p.pads(b)
    lead = _leading(p, node, pa.dims[:-2], pb.dims[:-2], val(node).dim())
    rows = (pa.dims[-2],) if len(pa.dims) > 1 else ()
    columns = (pb.dims[-1],) if len(pb.dims) > 1 else ()
    return _product((*lead, *rows, *columns), finite, val(node).dtype)


def _multiplied(p: Padder, node: fx.Node, i: int, j: int) -> tuple[Any, Any, bool]:
    a: Any = node.args[i]
    b: Any = node.args[j]
    if p.pads(a).uniform is None and p.pads(b).uniform is None:
        for back in range(3, max(val(a).dim(), val(b).dim()) + 1):
            a, b = _same_dim(p, a, b, back)
    rank_a, rank_b = val(a).dim(), val(b).dim()
    a, b, finite = _contract(p, a, b, rank_a - 1, max(rank_b - 2, 0))
    p.set_arg(i, a)
    p.set_arg(j, b)
    return a, b, finite


def _same_dim(p: Padder, a: Any, b: Any, back: int) -> tuple[Any, Any]:
    if val(a).dim() < back or val(b).dim() < back:
        return a, b
    da, db = val(a).dim() - back, val(b).dim() - back
    one = expression(val(a).shape[da]) == 1 or expression(val(b).shape[db]) == 1
    if one or p.pads(a).sizes(da) == p.pads(b).sizes(db):
        return a, b
    return p.compact(a, da), p.compact(b, db)


def _leading(p: Padder, node: fx.Node, a: tuple[Dim, ...], b: tuple[Dim, ...], rank: int) -> list[Dim]:
    made: list[Dim] = []
    longest = max(len(a), len(b))
    for i in range(longest):
        ours = a[i - longest + len(a)] if i >= longest - len(a) else None
        theirs = b[i - longest + len(b)] if i >= longest - len(b) else None
        made.append(_merge(ours, theirs))
    return made


def _merge(a: Dim | None, b: Dim | None) -> Dim:
    """A dim that both operands have, or one broadcasts."""
    if a is None or b is None:
        only = a if b is None else b
        assert only is not None, "one of the operands has the dim"
        return only
    if all(f.size == 1 for f in a):
        return b
    if all(f.size == 1 for f in b):
        return a
    finite = all(f.content is None or f.content.finite for f in (*a, *b))
    return mapped(a, lambda c: FINITE if finite else GARBAGE)


def _distances(p: Padder, node: fx.Node) -> Claims:
    """cdist: the rows of a with the rows of b; leading dims broadcast."""
    for back in range(3, max(val(operand(node, i)).dim() for i in (0, 1)) + 1):
        for index, aligned in enumerate(_same_dim(p, operand(node, 0), operand(node, 1), back)):
            p.set_arg(index, aligned)
    a, b = (p.fill_arg(i, [val(operand(node, i)).dim() - 1], 0, "features that are pads do not differ") for i in (0, 1))
    lead = _leading(p, node, a.dims[:-2], b.dims[:-2], val(node).dim())
    return _product((*lead, a.dims[-2], b.dims[-2]), False, val(node).dtype)


def _linear(p: Padder, node: fx.Node) -> Claims:
    x: Any = operand(node, 0)
    weight: Any = operand(node, 1)
    if p.pads(weight).padded_dims:
        raise p.refuse("a weight of dynamic size")
    x, weight, finite = _contract(p, x, weight, val(x).dim() - 1, val(weight).dim() - 1)
    p.set_arg(0, x)
    out = p.dim(val(node).shape[-1]) if val(weight).dim() > 1 else None
    return _product((*p.pads(x).dims[:-1], *((out,) if out else ())), finite, val(node).dtype)


def _added_product(p: Padder, node: fx.Node) -> Claims:
    """addmm, baddbmm: a product and a term."""
    a, b, finite = _multiplied(p, node, 1, 2)
    pa, pb = p.pads(a), p.pads(b)
    dims = (*_leading(p, node, pa.dims[:-2], pb.dims[:-2], val(node).dim()), pa.dims[-2], pb.dims[-1])
    term: Any = operand(node, 0)
    for back in range(1, val(term).dim() + 1):
        own, size = p.pads(term).dims[-back], dims[-back]
        other = tuple(f.size for f in own) != tuple(f.size for f in size) and p.pads(term).uniform is None
        if other and expression(val(term).shape[-back]) != 1:
            target = tuple(Factor(f.size, GARBAGE if f.content else None) for f in size)
            term = p.relayout(term, val(term).dim() - back, 1, (target,))
            p.set_arg(0, term)
    finite = finite and all(c.finite for d in range(val(term).dim()) for c in p.pads(term).contents(d))
    return _product(dims, finite, val(node).dtype)


def _attention(p: Padder, node: fx.Node) -> Claims:
    """`gaudicc::attention`: a pad key is masked, and its key and value are finite, for a masked NaN is still NaN."""
    mask, causal = node.args[3:5]
    if node.target is sink_attention and p.pads(operand(node, 6)).padded(0):
        raise p.refuse("a dynamic number of heads that have sinks")
    q, k = _same_heads(p, node)[:2]
    keys: Any = k
    queries = p.pads(q)
    if queries.padded(3):
        raise p.refuse("a dynamic size of heads")
    same = queries.sizes(2) == p.pads(k).sizes(2)
    if p.pads(k).padded(2):
        if causal and not (same and queries.prefix(2)):
            mask = _causal_mask(p, node)
            p.set_arg(3, mask)
            p.set_arg(4, False)
            causal = False
        for i in (1, 2):
            p.fill_arg(i, [2], 0, "keys and values of pads are finite", finite=True)
        if not causal:
            _mask_keys(p, node, p.pads(operand(node, 1)).sizes(2), val(keys).shape[2])
    elif causal and queries.padded(2) and not queries.prefix(2):
        raise p.refuse("causal attention over merged queries")
    pads = p.pads(q)
    return Pads(tuple(mapped(d, lambda c: GARBAGE) for d in (*pads.dims[:3], p.pads(operand(node, 2)).dims[3])))


def _same_heads(p: Padder, node: fx.Node) -> list[Any]:
    """Query, keys and values; a dynamic number of heads is a batch, of which each pad is by itself."""
    parts: list[Any] = list(node.args[:3])
    layouts = {p.pads(part).sizes(1) for part in parts if p.pads(part).padded(1)}
    if not layouts:
        return parts
    if any(expression(val(part).shape[1]) != expression(val(parts[0]).shape[1]) for part in parts):
        raise p.refuse("a dynamic number of heads that share keys")
    mask: Any = operand(node, 3)
    if mask is not None and val(mask).dim() > 2 and p.pads(mask).padded(val(mask).dim() - 3):
        p.set_arg(3, p.compact(mask, val(mask).dim() - 3))
    for i, part in enumerate(parts):
        parts[i] = p.compact(part, 1)
        p.set_arg(i, parts[i])
    return parts


def _causal_mask(p: Padder, node: fx.Node) -> fx.Node:
    """Query i sees keys 0 .. i, written out, for queries and keys of different lengths."""
    q, k = val(operand(node, 0)), val(operand(node, 1))
    rows = p.raw(aten.view.default, p.resources.iota(expression(q.shape[2])), [1, 1, -1, 1])
    columns = p.raw(aten.view.default, p.resources.iota(expression(k.shape[2])), [1, 1, 1, -1])
    made = p.raw(aten.le.Tensor, columns, rows)
    one = p.dim(1)
    garbage = tuple(
        mapped(d, lambda c: GARBAGE) for d in (p.pads(operand(node, 0)).dims[2], p.pads(operand(node, 1)).dims[2])
    )
    p.claims[made] = Pads((one, one, *garbage))
    return made


def _mask_keys(p: Padder, node: fx.Node, sizes: tuple[sympy.Expr, ...], physical: Any) -> None:
    mask: Any = operand(node, 3)
    reason = "pad keys are masked"
    if mask is None:
        made = p.mask(4, {3: sizes})
        p.claims[made] = Pads((*(p.dim(1) for _ in range(3)), _masked(sizes, False)))
        p.log("mask", reason)
        p.set_arg(3, made)
        return
    rank = val(mask).dim()
    floating = val(mask).dtype != torch.bool
    if expression(val(mask).shape[-1]) == 1 and expression(physical) != 1:
        own = p.mask(rank, {rank - 1: sizes})
        wide = p.raw(aten.where.self, own, mask, p.literal(float("-inf") if floating else False, val(mask).dtype))
        rest = (mapped(d, lambda c: GARBAGE) for d in p.pads(mask).dims[:-1])
        p.claims[wide] = Pads((*rest, _masked(sizes, float("-inf") if floating else False)))
        p.log("mask", reason)
        p.set_arg(3, wide)
        return
    if p.pads(mask).sizes(rank - 1) != sizes:
        mask = p.relayout(mask, rank - 1, 1, (tuple(Factor(s, GARBAGE if s.free_symbols else None) for s in sizes),))
        p.set_arg(3, mask)
    p.fill_arg(3, [rank - 1], float("-inf") if floating else False, reason)


def _masked(sizes: tuple[sympy.Expr, ...], value: Any) -> Dim:
    return tuple(Factor(size, constant(value) if size.free_symbols else None) for size in sizes)


RULES = (
    Rule(
        (aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default),
        _PRODUCT + ", unless one is 0 and the other finite",
        "finite if both operands are",
        _matmul,
    ),
    Rule((aten.linear.default,), "the contracted dim has no pads", "finite if the operand's is", _linear),
    Rule((aten.cdist.default,), "0 in features, on both sides", "garbage", _distances),
    Rule((aten.addmm.default, aten.baddbmm.default), "as matmul", "finite if all operands are", _added_product),
    Rule(
        (attention, sink_attention),
        "pad keys masked, their keys and values finite; causal over equal lengths needs no mask",
        "garbage",
        _attention,
    ),
)
