"""Convolutions and pooling: their own padding lies where pads are."""

from __future__ import annotations

from typing import Any

import sympy
from torch import fx
from torch.utils._sympy.functions import FloorDiv

from gaudicc.nodes import val
from gaudicc.padding.layout import FINITE, GARBAGE, Pads, mapped
from gaudicc.padding.padder import Claims, Padder, aten, lowest
from gaudicc.padding.rules.rule import Rule, operand
from gaudicc.padding.sizes import expression
from gaudicc.rules.match import argument


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
    ends = bool(spatial) and (bool(argument(node, 4, "ceil_mode", False)) or (padded and not counts))
    for dim in spatial:
        x = p.compact(x, dim)
    p.set_arg(0, x)
    pads = p.fill_arg(0, spatial if padded or ends else [], 0, "the padding of the pool lies where pads are")
    dims = tuple(mapped(d, lambda c: GARBAGE) for d in pads.dims[:first])
    claims = Pads((*dims, *(p.dim(s) for s in val(node).shape[first:])))
    if not ends or argument(node, 6, "divisor_override") is not None:
        return claims
    divided = _divided(p, node, list(range(first, rank)))
    p.claims[divided] = claims
    p.log("rewrite", "the divisor of a window is what of it lies before the end of the valid part")
    return p.become(divided)


def _divided(p: Padder, node: fx.Node, spatial: list[int]) -> fx.Node:
    """An average pool as sums, over how many positions the logical sizes leave of each window."""
    x: Any = operand(node, 0)
    kernel, padding = (_each(argument(node, i, name, default), spatial) for i, name, default in _WINDOW)
    stride = _each(argument(node, 2, "stride", None) or kernel, spatial)
    ceil, counts = argument(node, 4, "ceil_mode", False), argument(node, 5, "count_include_pad", True)
    flat = [0] * (2 - len(spatial))  # a pool of one dim is one of a plane of one row
    row = p.raw(aten.unsqueeze.default, x, -2) if flat else x
    ones = [1 for _ in flat]
    made = p.raw(aten.avg_pool2d.default, row, ones + kernel, ones + stride, flat + padding, ceil, counts, 1)
    made = p.raw(aten.squeeze.dim, made, -2) if flat else made
    for dim, reach, step, pad in zip(spatial, kernel, stride, padding, strict=True):
        outside = pad if counts else 0
        first = p.raw(
            aten.sub.Scalar, p.raw(aten.mul.Scalar, p.resources.iota(expression(val(node).shape[dim])), step), pad
        )
        end = p.raw(aten.add.Scalar, first, reach)
        size = expression(val(x).shape[dim])
        if size.free_symbols:
            most: Any = p.raw(aten.add.Scalar, p.resources.length(size), outside)
            end = p.raw(aten.minimum.default, end, most)
        else:
            end = p.raw(aten.clamp.default, end, None, int(size) + outside)
        first = first if counts else p.raw(aten.clamp.default, first, 0)
        count = p.raw(aten.clamp.default, p.raw(aten.sub.Tensor, end, first), 1)
        shape = [1] * val(x).dim()
        shape[dim] = -1
        made = p.raw(aten.div.Tensor, made, p.raw(aten.view.default, count, shape))
    return made


_WINDOW = ((1, "kernel_size", None), (3, "padding", 0))


def _each(value: Any, spatial: list[int]) -> list[int]:
    """A parameter of a pool, for each of its dims."""
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    return given * (len(spatial) // len(given))


def _windows(p: Padder, node: fx.Node) -> Claims:
    """im2col: `[batch, channels * kernel, windows]`, the windows of a plane row by row."""
    x: Any = operand(node, 0)
    rank = val(x).dim()
    kernel, dilation, padding, stride = (list(operand(node, i)) for i in range(1, 5))
    sizes = []
    for i, dim in enumerate((rank - 2, rank - 1)):
        x = p.compact(x, dim)
        steps = expression(val(x).shape[dim]) + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1
        sizes.append((steps if stride[i] == 1 else FloorDiv(steps, stride[i])) + 1)
    p.set_arg(0, x)
    demanded = [rank - 2 + i for i in range(2) if padding[i]]
    pads = p.fill_arg(0, demanded, 0, "the zero padding of the windows lies where pads are")
    if pads.padded(rank - 3):
        raise p.refuse("a dynamic number of channels")
    if sympy.expand(sizes[0] * sizes[1] - expression(val(node).shape[-1])) != 0:
        raise p.refuse(f"{val(node).shape[-1]} windows are not known to be {sizes[0]} x {sizes[1]}")
    places = tuple(factor for size in sizes for factor in p.dim(size) if factor.size != 1)
    lead = tuple(mapped(d, lambda c: GARBAGE) for d in pads.dims[: rank - 3])
    return Pads((*lead, p.dim(val(node).shape[-2]), places or p.dim(1)))


RULES = (
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
    Rule((aten.im2col.default,), "0 on spatial dims that the windows pad", "garbage", _windows),
    Rule(
        (aten.max_pool2d_with_indices.default, aten.max_pool2d.default),
        "lowest value where the pool pads",
        "garbage",
        _max_pool,
    ),
    Rule(
        (aten.avg_pool1d.default, aten.avg_pool2d.default),
        "0 where the pool pads; a divisor that depends on the end is made of the length",
        "garbage",
        _average_pool,
    ),
)
