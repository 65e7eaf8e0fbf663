"""Rules for special functions of float32: Bessel functions, the quantile of the normal distribution.

Each function is split where its nature changes: a polynomial near zero, with the logarithm of the second kind taken out, and
amplitude and phase, or the exponential, taken out far away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gaudicc.pipeline import Numerics
from gaudicc.rules.chebyshev import choose, constant, piece
from gaudicc.rules.rule import Rule

aten = torch.ops.aten
_s = torch.special

# Modified, first kind: near zero exp(-x) I0(x) and exp(-x) I1(x) / x, far away times sqrt(x), in 1 / x.
I0_NEAR = piece(_s.i0e, 0.0, 8.0)
I1_NEAR = piece(lambda x: _s.i1e(x) / x, 0.0, 8.0)
I0_FAR = piece(lambda r: _s.i0e(1 / r) / r.sqrt(), 0.0, 0.125)
I1_FAR = piece(lambda r: _s.i1e(1 / r) / r.sqrt(), 0.0, 0.125)
# Modified, second kind: near zero what is left without the logarithm, in x^2; far away exp(x) sqrt(x) K(x), in 1 / x.
K0_NEAR = piece(lambda z: _s.modified_bessel_k0(z.sqrt()) + (z.sqrt() / 2).log() * _s.i0(z.sqrt()), 0.0, 4.0)
K1_NEAR = piece(
    lambda z: (_s.modified_bessel_k1(z.sqrt()) - (z.sqrt() / 2).log() * _s.i1(z.sqrt())) * z.sqrt(), 0.0, 4.0
)
K0_FAR = piece(lambda r: _s.scaled_modified_bessel_k0(1 / r) / r.sqrt(), 0.0, 0.5)
K1_FAR = piece(lambda r: _s.scaled_modified_bessel_k1(1 / r) / r.sqrt(), 0.0, 0.5)
# Ordinary: near zero in x^2, the second kind without its logarithm and pole.
J0_NEAR = piece(lambda z: _s.bessel_j0(z.sqrt()), 0.0, 64.0)
J1_NEAR = piece(lambda z: _s.bessel_j1(z.sqrt()) / z.sqrt(), 0.0, 64.0)
Y0_NEAR = piece(lambda z: _s.bessel_y0(z.sqrt()) - z.log() / math.pi * _s.bessel_j0(z.sqrt()), 0.0, 64.0)
Y1_NEAR = piece(
    lambda z: (_s.bessel_y1(z.sqrt()) - (z.log() / math.pi * _s.bessel_j1(z.sqrt()) - 2 / math.pi / z.sqrt())) / z.sqrt(),
    0.0, 64.0,
)  # fmt: skip


def _wave(order: int, part: int) -> Callable[[Tensor], Tensor]:
    """Of amplitude and phase: `J = sqrt(2 / pi x) (P cos - Q sin)`, `Y` with sin and cos; P and x Q in 1 / x^2."""
    j, y = (_s.bessel_j0, _s.bessel_y0) if order == 0 else (_s.bessel_j1, _s.bessel_y1)

    def function(z: Tensor) -> Tensor:
        x = z.rsqrt()
        angle = x - (math.pi / 4 if order == 0 else 3 * math.pi / 4)
        size = (x * (math.pi / 2)).sqrt()
        if part == 0:
            wave: Tensor = size * (j(x) * angle.cos() + y(x) * angle.sin())
        else:
            wave = size * (y(x) * angle.cos() - j(x) * angle.sin()) * x
        return wave

    return function


FAR = {order: (piece(_wave(order, 0), 1e-7, 1 / 64), piece(_wave(order, 1), 1e-7, 1 / 64)) for order in (0, 1)}


def bessel_i(order: int, scaled: bool, x: Tensor) -> Tensor:
    """I0 or I1, or these times `exp(-|x|)`."""
    size = aten.abs(x)
    far = aten.clamp(size, 8.0)
    near, beyond = (I0_NEAR, I0_FAR) if order == 0 else (I1_NEAR, I1_FAR)
    inner = near(size) if order == 0 else aten.mul.Tensor(near(size), x)
    outer = aten.mul.Tensor(beyond(aten.reciprocal(far)), aten.rsqrt(far))
    outer = outer if order == 0 else aten.mul.Tensor(outer, aten.sign(x))
    value = aten.where.self(aten.gt.Scalar(size, 8.0), outer, inner)
    value = value if scaled else aten.mul.Tensor(value, aten.exp(size))
    result: Tensor = aten.where.self(aten.isnan(x), x, value)
    return result


def bessel_k(order: int, scaled: bool, x: Tensor) -> Tensor:
    """K0 or K1, or these times `exp(x)`; infinite at 0, NaN below."""
    low = aten.clamp(x, 1e-38, 2.0)
    square = aten.mul.Tensor(low, low)
    logarithm = aten.log(aten.mul.Tensor(low, 0.5))
    first = bessel_i(order, False, low)
    if order == 0:
        near = aten.sub.Tensor(K0_NEAR(square), aten.mul.Tensor(logarithm, first))
    else:
        near = aten.add.Tensor(aten.div.Tensor(K1_NEAR(square), low), aten.mul.Tensor(logarithm, first))
    high = aten.clamp(x, 2.0)
    far = aten.mul.Tensor((K0_FAR if order == 0 else K1_FAR)(aten.reciprocal(high)), aten.rsqrt(high))
    if scaled:
        near = aten.mul.Tensor(near, aten.exp(low))
    else:
        far = aten.mul.Tensor(far, aten.exp(aten.mul.Tensor(high, -1)))
    return _positive_only(x, aten.where.self(aten.gt.Scalar(x, 2.0), far, near), math.inf)


def _positive_only(x: Tensor, value: Tensor, at_zero: float) -> Tensor:
    outside = [(aten.eq.Scalar(x, 0), constant(x, at_zero)), (aten.lt.Scalar(x, 0), constant(x, math.nan))]
    return choose([(aten.isnan(x), x), *outside], value)


def bessel_j(order: int, x: Tensor) -> Tensor:
    """J0 or J1."""
    size = aten.abs(x)
    square = aten.mul.Tensor(size, size)
    near = J0_NEAR(square) if order == 0 else aten.mul.Tensor(J1_NEAR(square), x)
    far = _far(order, size, second=False)
    far = far if order == 0 else aten.mul.Tensor(far, aten.sign(x))
    result: Tensor = aten.where.self(aten.isnan(x), x, aten.where.self(aten.gt.Scalar(size, 8.0), far, near))
    return result


def bessel_y(order: int, x: Tensor) -> Tensor:
    """Y0 or Y1; minus infinity at 0, NaN below."""
    low = aten.clamp(x, 1e-38, 8.0)
    square = aten.mul.Tensor(low, low)
    logarithm = aten.mul.Tensor(aten.log(low), 2 / math.pi)
    if order == 0:
        near = aten.add.Tensor(Y0_NEAR(square), aten.mul.Tensor(logarithm, J0_NEAR(square)))
    else:
        pole = aten.mul.Tensor(aten.reciprocal(low), -2 / math.pi)
        smooth = aten.add.Tensor(aten.mul.Tensor(logarithm, J1_NEAR(square)), Y1_NEAR(square))
        near = aten.add.Tensor(aten.mul.Tensor(smooth, low), pole)
    far = _far(order, x, second=True)
    return _positive_only(x, aten.where.self(aten.gt.Scalar(x, 8.0), far, near), -math.inf)


def _far(order: int, x: Tensor, *, second: bool) -> Tensor:
    large = aten.clamp(x, 8.0)
    inverse = aten.reciprocal(large)
    square = aten.mul.Tensor(inverse, inverse)
    angle = aten.add.Tensor(large, -math.pi / 4 if order == 0 else -3 * math.pi / 4)
    p, q = FAR[order]
    even, odd = p(square), aten.mul.Tensor(q(square), inverse)
    if second:
        wave = aten.add.Tensor(aten.mul.Tensor(even, aten.sin(angle)), aten.mul.Tensor(odd, aten.cos(angle)))
    else:
        wave = aten.sub.Tensor(aten.mul.Tensor(even, aten.cos(angle)), aten.mul.Tensor(odd, aten.sin(angle)))
    result: Tensor = aten.mul.Tensor(aten.mul.Tensor(wave, math.sqrt(2 / math.pi)), aten.rsqrt(large))
    return result


def spherical_j0(x: Tensor) -> Tensor:
    """`sin(x) / x`, 1 at 0, 0 at infinity."""
    zero = aten.eq.Scalar(x, 0)
    safe = aten.where.self(zero, constant(x, 1.0), x)
    value = aten.div.Tensor(aten.sin(safe), safe)
    return choose([(zero, constant(x, 1.0)), (aten.isinf(x), constant(x, 0.0))], value)


MIDDLE = piece(lambda z: _s.ndtri(z.sqrt() + 0.5) / z.sqrt(), 1e-12, (0.5 - math.exp(-2)) ** 2)


def _tail_of(z: Tensor) -> Tensor:
    y = 1 / z
    correction: Tensor = (_s.ndtri((-(y**2) / 2).exp()) + y - y.log() / y) * y
    return correction


TAIL = piece(_tail_of, 1 / 15, 1 / 2)


def ndtri(p: Tensor) -> Tensor:
    """The quantile of the normal distribution: odd around 1/2, and far out a correction of `sqrt(-2 log p)`."""
    upper = aten.gt.Scalar(p, 1 - math.exp(-2))
    tail = aten.where.self(upper, aten.add.Tensor(aten.mul.Tensor(p, -1), 1.0), p)
    centre = aten.add.Tensor(p, -0.5)
    middle = aten.mul.Tensor(MIDDLE(aten.mul.Tensor(centre, centre)), centre)
    y = aten.sqrt(aten.mul.Tensor(aten.log(aten.clamp(tail, 1e-45, math.exp(-2))), -2.0))
    inverse = aten.reciprocal(y)
    far = aten.add.Tensor(aten.sub.Tensor(TAIL(inverse), aten.mul.Tensor(y, y)), aten.log(y))
    far = aten.mul.Tensor(far, inverse)
    far = aten.where.self(upper, aten.mul.Tensor(far, -1), far)
    value = aten.where.self(aten.gt.Scalar(tail, math.exp(-2)), middle, far)
    ends = [(aten.eq.Scalar(p, 0), constant(p, -math.inf)), (aten.eq.Scalar(p, 1), constant(p, math.inf))]
    outside = aten.logical_or(aten.lt.Scalar(p, 0), aten.gt.Scalar(p, 1))
    return choose([(aten.isnan(p), p), *ends, (outside, constant(p, math.nan))], value)


def _float32(x: Tensor) -> str | None:
    return "it computes in float32 only" if x.dtype is not torch.float32 else None


def _rule(name: str, op: Any, rewrite: Callable[..., Tensor], ops: int) -> Rule:
    return Rule(name, (op,), rewrite, check=_float32, numerics=Numerics.ROUNDING, cost=f"about {ops} elementwise ops")


_i, _k, _j, _y = (partial(partial, function) for function in (bessel_i, bessel_k, bessel_j, bessel_y))
RULES = (
    _rule("i0", aten.i0.default, _i(0, False), 110),
    _rule("modified-bessel-i0", aten.special_modified_bessel_i0.default, _i(0, False), 110),
    _rule("i0e", aten.special_i0e.default, _i(0, True), 110),
    _rule("i1", aten.special_i1.default, _i(1, False), 110),
    _rule("modified-bessel-i1", aten.special_modified_bessel_i1.default, _i(1, False), 110),
    _rule("i1e", aten.special_i1e.default, _i(1, True), 110),
    _rule("modified-bessel-k0", aten.special_modified_bessel_k0.default, _k(0, False), 210),
    _rule("modified-bessel-k1", aten.special_modified_bessel_k1.default, _k(1, False), 210),
    _rule("scaled-modified-bessel-k0", aten.special_scaled_modified_bessel_k0.default, _k(0, True), 210),
    _rule("scaled-modified-bessel-k1", aten.special_scaled_modified_bessel_k1.default, _k(1, True), 210),
    _rule("bessel-j0", aten.special_bessel_j0.default, _j(0), 90),
    _rule("bessel-j1", aten.special_bessel_j1.default, _j(1), 90),
    _rule("bessel-y0", aten.special_bessel_y0.default, _y(0), 140),
    _rule("bessel-y1", aten.special_bessel_y1.default, _y(1), 140),
    _rule("spherical-bessel-j0", aten.special_spherical_bessel_j0.default, spherical_j0, 8),
    _rule("ndtri", aten.special_ndtri.default, ndtri, 90),
)
