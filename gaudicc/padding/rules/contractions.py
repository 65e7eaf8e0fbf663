"""Matrix products, attention, convolutions, pooling and norms."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.kernels import attention, rms_norm
from gaudicc.padding.layout import FINITE, GARBAGE, Dim, Factor, Pads, constant, mapped, normal
from gaudicc.padding.padder import Claims, Padder, aten, lowest
from gaudicc.padding.rules.rule import Rule, operand
from gaudicc.padding.sizes import expression
from gaudicc.program import val
from gaudicc.rules.match import argument

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
        if expression(val(term).shape[-back]) != 1 and tuple(f.size for f in own) != tuple(f.size for f in size):
            raise p.refuse("a term of another layout")
    finite = finite and all(c.finite for d in range(val(term).dim()) for c in p.pads(term).contents(d))
    return _product(dims, finite, val(node).dtype)


def _attention(p: Padder, node: fx.Node) -> Claims:
    """`gaudicc::attention`: a pad key is masked, and its key and value are finite, for a masked NaN is still NaN."""
    q, k, _, mask, causal, _ = node.args
    keys: Any = k
    queries = p.pads(q)
    if p.pads(k).padded(1) or queries.padded(1) or queries.padded(3):
        raise p.refuse("a dynamic number or size of heads")
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


def _convolution(p: Padder, node: fx.Node) -> Claims:
    """The convolution's zero padding lies where pads are: they hold 0, unless no valid output's window meets one."""
    x: Any = operand(node, 0)
    rank = val(x).dim()
    weight = val(operand(node, 1))
    if p.pads(operand(node, 1)).padded_dims or p.pads(x).padded(1):
        raise p.refuse("a dynamic number of channels or size of the kernel")
    padding, transposed = list(operand(node, 4)), bool(operand(node, 6))
    for dim in range(2, rank):
        x = p.compact(x, dim)
    p.set_arg(0, x)
    demanded = []
    for i in range(rank - 2):
        pad = padding[i if len(padding) > 1 else 0]
        reach = transposed and int(weight.shape[2 + i]) > 1
        demanded += [2 + i] if reach or pad > 0 else []
    pads = p.fill_arg(0, demanded, 0, "the zero padding of the convolution lies where pads are")
    result = val(node)
    spatial = tuple(p.dim(size) for size in result.shape[2:])
    batch = mapped(
        pads.dims[0], lambda c: FINITE if c.finite and not any(pads.padded(d) for d in range(2, rank)) else GARBAGE
    )
    return Pads((batch, p.dim(result.shape[1]), *spatial))


def _plain_convolution(p: Padder, node: fx.Node) -> Claims:
    """conv1d, conv2d, conv3d: the general form."""
    spatial = val(operand(node, 0)).dim() - 2
    raw = [
        argument(node, i, name, default)
        for i, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    ]
    stride, padding, dilation = ([v] * spatial if isinstance(v, int) else list(v) * (spatial // len(v)) for v in raw)
    groups = argument(node, 6, "groups", 1)
    bias = argument(node, 2, "bias")
    general = p.emit(
        aten.convolution.default,
        operand(node, 0),
        operand(node, 1),
        bias,
        stride,
        padding,
        dilation,
        False,
        [0] * spatial,
        groups,
    )
    return p.become(general)


def _max_pool(p: Padder, node: fx.Node) -> Claims:
    """The padding of the pool is -inf and lies where pads are."""
    x: Any = operand(node, 0)
    rank = val(x).dim()
    first = rank - 2
    for dim in range(first, rank):
        x = p.compact(x, dim)
    p.set_arg(0, x)
    padding = argument(node, 3, "padding", 0)
    ceil = bool(argument(node, 5, "ceil_mode", False))
    padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
    demanded = list(range(first, rank)) if padded or ceil else []
    pads = p.fill_arg(0, demanded, lowest(val(x).dtype), "the padding of the pool lies where pads are")
    result = val(node)
    values = result[0] if isinstance(result, tuple) else result
    claims = Pads(
        (*(mapped(d, lambda c: GARBAGE) for d in pads.dims[:first]), *(p.dim(s) for s in values.shape[first:]))
    )
    if not isinstance(result, tuple):
        return claims
    inner = any(pads.padded(dim) for dim in range(first + 1, rank))
    if inner and any(user.args[1] == 1 and user.users for user in node.users):
        raise p.refuse("positions in a plane whose rows are padded")
    return claims, claims


def _average_pool(p: Padder, node: fx.Node) -> Claims:
    x: Any = operand(node, 0)
    rank = val(x).dim()
    first = rank - (1 if "1d" in str(node.target) else 2)
    spatial = [dim for dim in range(first, rank) if p.pads(x).padded(dim)]
    padding = argument(node, 3, "padding", 0)
    padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
    counts = bool(argument(node, 5, "count_include_pad", True))
    if spatial and (bool(argument(node, 4, "ceil_mode", False)) or (padded and not counts)):
        raise p.refuse("the divisor depends on where the valid part ends")
    for dim in spatial:
        x = p.compact(x, dim)
    p.set_arg(0, x)
    pads = p.fill_arg(0, spatial if padded else [], 0, "the padding of the pool lies where pads are")
    return Pads(
        (*(mapped(d, lambda c: GARBAGE) for d in pads.dims[:first]), *(p.dim(s) for s in val(node).shape[first:]))
    )


def _norm_last(p: Padder, node: fx.Node) -> Claims:
    """layer_norm, rms_norm: statistics over dims without pads; each row is by itself."""
    pads = p.pads(operand(node, 0))
    over = 1 if node.target is rms_norm else len(operand(node, 1))
    rank = len(pads.dims)
    if any(pads.padded(dim) for dim in range(rank - over, rank)):
        raise p.refuse("statistics over a dynamic dim")
    result = val(node)
    first = result[0] if isinstance(result, tuple) else result
    values = Pads(tuple(normal(mapped(d, lambda c: FINITE if c.finite else GARBAGE), first.dtype) for d in pads.dims))
    if not isinstance(result, tuple):
        return values
    one = (Factor(sympy.Integer(1)),)
    rows = Pads((*values.dims[: rank - over], *([one] * over)))
    return values, rows, rows


def _group_norm(p: Padder, node: fx.Node) -> Claims:
    """Over padded positions: masked mean, then masked variance of the centred values."""
    x: Any = operand(node, 0)
    pads = p.pads(x)
    rank = len(pads.dims)
    spatial = [dim for dim in range(2, rank) if pads.padded(dim)]
    if pads.padded(1):
        raise p.refuse("a dynamic number of channels")
    native = node.target is aten.native_group_norm.default
    if not spatial:
        values = Pads(tuple(mapped(d, lambda c: FINITE if c.finite else GARBAGE) for d in pads.dims))
        return (
            (
                values,
                Pads((pads.dims[0], p.dim(val(node)[1].shape[1]))),
                Pads((pads.dims[0], p.dim(val(node)[1].shape[1]))),
            )
            if native
            else values
        )
    groups = int(operand(node, 6) if native else operand(node, 1))
    weight, bias = (
        (operand(node, 1), operand(node, 2)) if native else (argument(node, 2, "weight"), argument(node, 3, "bias"))
    )
    eps = float(operand(node, 7) if native else argument(node, 4, "eps", 1e-5))
    if native and any(user.args[1] != 0 and user.users for user in node.users):
        raise p.refuse("the statistics of a group norm over padded positions are read")
    value = val(x)
    sizes = [p.size_of(size) for size in value.shape]
    whole = p.emit(aten.clone.default, x, memory_format=torch.contiguous_format)
    split = p.emit(aten.view.default, whole, [sizes[0], groups, int(value.shape[1]) // groups, *sizes[2:]])
    over = list(range(2, rank + 1))
    mean = p.emit(aten.mean.dim, split, over, True)
    centred = p.emit(aten.sub.Tensor, split, mean)
    variance = p.emit(aten.mean.dim, p.emit(aten.mul.Tensor, centred, centred), over, True)
    scaled = p.emit(aten.mul.Tensor, centred, p.emit(aten.rsqrt.default, p.emit(aten.add.Tensor, variance, eps)))
    result = p.emit(aten.view.default, scaled, sizes)
    shape = [1, int(value.shape[1]), *([1] * (rank - 2))]
    if weight is not None:
        result = p.emit(aten.mul.Tensor, result, p.emit(aten.view.default, weight, shape))
    if bias is not None:
        result = p.emit(aten.add.Tensor, result, p.emit(aten.view.default, bias, shape))
    p.log("rewrite", "statistics are over the logical count")
    if native:
        claims = p.claims[result]
        p.rewriter.replace_outputs(node, (result, result, result))
        return claims
    return p.become(result)


def _batch_norm(p: Padder, node: fx.Node) -> Claims:
    """With the statistics of training each row is by itself."""
    if node.target is aten.batch_norm.default and argument(node, 5, "training"):
        raise p.refuse("batch statistics over pads")
    pads = p.pads(operand(node, 0))
    if pads.padded(1):
        raise p.refuse("a dynamic number of channels")
    values = Pads(tuple(mapped(d, lambda c: FINITE if c.finite else GARBAGE) for d in pads.dims))
    result = val(node)
    empty = Pads((p.dim(0),))
    return (values, *([empty] * (len(result) - 1))) if isinstance(result, tuple) else values


RULES = (
    Rule(
        (aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default),
        _PRODUCT + ", unless one is 0 and the other finite",
        "finite if both operands are",
        _matmul,
    ),
    Rule((aten.linear.default,), "the contracted dim has no pads", "finite if the operand's is", _linear),
    Rule((aten.addmm.default, aten.baddbmm.default), "as matmul", "finite if all operands are", _added_product),
    Rule(
        (attention,),
        "pad keys masked, their keys and values finite; causal over equal lengths needs no mask",
        "garbage",
        _attention,
    ),
    Rule(
        (aten.convolution.default,),
        "0 on spatial dims where zero padding or a transposed kernel reaches pads",
        "garbage on spatial dims",
        _convolution,
    ),
    Rule(
        (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
        "as convolution",
        "as convolution",
        _plain_convolution,
    ),
    Rule(
        (aten.max_pool2d_with_indices.default, aten.max_pool2d.default),
        "lowest value where the pool pads",
        "garbage",
        _max_pool,
    ),
    Rule(
        (aten.avg_pool1d.default, aten.avg_pool2d.default),
        "0 where the pool pads; a divisor that depends on the end is refused",
        "garbage",
        _average_pool,
    ),
    Rule(
        (aten.layer_norm.default, aten.native_layer_norm.default, rms_norm, aten.rms_norm.default),
        "the normalised dims have no pads",
        "finite if the operand's is",
        _norm_last,
    ),
    Rule(
        (aten.group_norm.default, aten.native_group_norm.default),
        "over padded positions: masked mean and variance",
        "garbage",
        _group_norm,
    ),
    Rule(
        (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default),
        "none; batch statistics are refused",
        "finite if the operand's is",
        _batch_norm,
    ),
)
