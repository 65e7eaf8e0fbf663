"""Fourier transforms: over a padded dim they are products with the matrix of the logical length."""

from __future__ import annotations

import math
from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.nodes import val
from gaudicc.padding.layout import FINITE, GARBAGE, Pads, mapped
from gaudicc.padding.padder import Claims, Padder, aten
from gaudicc.padding.rules.rule import Rule, operand, wrap

LONGEST = 4096
"""Points of a transform that is a product with a matrix."""


def _transform(p: Padder, node: fx.Node) -> Claims:
    """`_fft_c2c`, `_fft_r2c`, `_fft_c2r`: over dims without pads as they are."""
    x: Any = operand(node, 0)
    pads = p.pads(x)
    dims = [wrap(int(dim), len(pads.dims)) for dim in operand(node, 1)]
    padded = [dim for dim in dims if pads.padded(dim)]
    if not padded:
        made = (mapped(d, lambda c: FINITE if c.finite else GARBAGE) for d in pads.dims)
        return Pads(tuple(p.dim(val(node).shape[i]) if i in dims else d for i, d in enumerate(made)))
    if node.target is not aten._fft_c2c.default:
        raise p.refuse("a real transform over a padded dim; transform a complex tensor")
    normalization, forward = operand(node, 2), operand(node, 3)
    if rest := [dim for dim in dims if dim not in padded]:
        x = p.emit(aten._fft_c2c.default, x, rest, normalization, forward)
    pair = p.emit(aten.view_as_real.default, x)
    parts = [p.emit(aten.select.int, pair, -1, i) for i in range(2)]
    for dim in padded:
        parts = _product(p, parts, dim, normalization, -1 if forward else 1)
    p.log("rewrite", "a transform over the logical length is a product with a matrix")
    joined = p.emit(aten.stack.default, parts, -1)
    return p.become(p.emit(aten.view_as_complex.default, joined))


def _product(p: Padder, parts: list[fx.Node], dim: int, normalization: int, sign: int) -> list[fx.Node]:
    """The transform of a pair of reals along a dim."""
    rank = val(parts[0]).dim()
    order = [*(i for i in range(rank) if i != dim), dim]
    back = [order.index(i) for i in range(rank)]
    real, imag = (p.emit(aten.permute.default, p.compact(part, dim), order) for part in parts)
    cosine, sine = _waves(p, sympy.Mul(*p.pads(real).sizes(rank - 1)), normalization, val(real).dtype)
    (rc, rs), (ic, is_) = (
        [p.emit(aten.matmul.default, part, wave) for wave in (cosine, sine)] for part in (real, imag)
    )
    if sign < 0:
        both = p.emit(aten.add.Tensor, rc, is_), p.emit(aten.sub.Tensor, ic, rs)
    else:
        both = p.emit(aten.sub.Tensor, rc, is_), p.emit(aten.add.Tensor, ic, rs)
    return [p.emit(aten.permute.default, part, back) for part in both]


def _waves(p: Padder, size: sympy.Expr, normalization: int, dtype: torch.dtype) -> list[fx.Node]:
    """Cosines and sines of `2 pi j k / n` for the logical length n, scaled; j k is taken modulo n as an integer."""
    largest = size.xreplace({s: sympy.Integer(p.ranges[str(s)][1]) for s in size.free_symbols})
    if largest > LONGEST:
        raise p.refuse(f"a transform of up to {largest} points needs a matrix of {largest**2} entries")
    place, length = p.resources.iota(size), p.resources.length(size)
    turns = p.emit(aten.mul.Tensor, p.emit(aten.unsqueeze.default, place, 1), place)
    some = p.emit(aten.clamp.default, length, 1)
    turns = p.emit(aten.remainder.Tensor, turns, some)
    count = p.emit(aten._to_copy.default, some, dtype=dtype)
    share = p.emit(aten.reciprocal.default, count)
    turn = p.emit(aten.mul.Tensor, share, 2 * math.pi)
    angle = p.emit(aten.mul.Tensor, p.emit(aten._to_copy.default, turns, dtype=dtype), turn)
    waves = [p.emit(op, angle) for op in (aten.cos.default, aten.sin.default)]
    if normalization == 0:
        return waves
    scale = p.emit(aten.rsqrt.default, count) if normalization == 1 else share
    return [p.emit(aten.mul.Tensor, wave, scale) for wave in waves]


RULES = (
    Rule(
        (aten._fft_c2c.default, aten._fft_r2c.default, aten._fft_c2r.default),
        "over a padded dim: a product with the matrix of the logical length, 0 in the pads; a real one is refused there",
        "finite if the operand's is",
        _transform,
    ),
)
