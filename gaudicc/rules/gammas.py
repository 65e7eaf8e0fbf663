"""Rules for the derivatives of the logarithm of the gamma function: digamma, trigamma and polygamma of float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gaudicc.pipeline import Numerics
from gaudicc.rules.chebyshev import choose, constant
from gaudicc.rules.rule import Rule

aten = torch.ops.aten
LARGEST_ORDER = 8
# B(2j) / (2j)!, j = 1, 2, ...: the weights of the Euler-Maclaurin sum.
_WEIGHTS = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160)


def digamma(x: Tensor) -> Tensor:
    """Reflected to the right, moved up to 10, then the asymptotic series, term by term as eager's kernel has it."""
    whole = aten.trunc(x)
    negative = aten.lt.Scalar(x, 0)
    turn = aten.mul.Tensor(aten.sub.Tensor(x, aten.round(x)), math.pi)  # exact, and the tangent has period pi
    safe = aten.where.self(negative, turn, constant(x, 1.0))
    result = aten.where.self(negative, aten.div.Tensor(constant(x, -math.pi), aten.tan(safe)), constant(x, 0.0))
    y = aten.where.self(negative, aten.add.Tensor(aten.mul.Tensor(x, -1), 1.0), x)
    for _ in range(10):
        small = aten.lt.Scalar(y, 10.0)
        result = aten.where.self(small, aten.sub.Tensor(result, aten.reciprocal(y)), result)
        y = aten.where.self(small, aten.add.Tensor(y, 1.0), y)
    square = aten.reciprocal(aten.mul.Tensor(y, y))
    series = aten.full_like(x, 0.0)
    for term in (1 / 12, -691 / 32760, 1 / 132, -1 / 240, 1 / 252, -1 / 120, 1 / 12):
        series = aten.mul.Tensor(aten.add.Tensor(series, term), square)
    tail = aten.sub.Tensor(aten.log(y), aten.add.Tensor(aten.mul.Tensor(aten.reciprocal(y), 0.5), series))
    value = aten.add.Tensor(result, tail)
    pole = aten.logical_and(negative, aten.eq.Tensor(x, whole))
    at_zero = aten.where.self(aten.signbit(x), constant(x, math.inf), constant(x, -math.inf))
    return choose([(aten.eq.Scalar(x, 0), at_zero), (pole, constant(x, math.nan))], value)


def trigamma(x: Tensor) -> Tensor:
    """Reflected where below 1/2, moved up by 6, then the asymptotic series."""
    low = aten.lt.Scalar(x, 0.5)
    sine = aten.sin(aten.mul.Tensor(x, math.pi))
    pole = aten.div.Tensor(constant(x, -(math.pi**2)), aten.mul.Tensor(sine, sine))
    result = aten.where.self(low, pole, constant(x, 0.0))
    y = aten.where.self(low, aten.add.Tensor(aten.mul.Tensor(x, -1), 1.0), x)
    for _ in range(6):
        result = aten.add.Tensor(result, aten.reciprocal(aten.mul.Tensor(y, y)))
        y = aten.add.Tensor(y, 1.0)
    inverse = aten.reciprocal(y)
    square = aten.mul.Tensor(inverse, inverse)
    series = aten.mul.Tensor(square, 1 / 42)
    for term in (1 / 30, 1 / 6):
        series = aten.mul.Tensor(aten.add.Tensor(aten.mul.Tensor(series, -1), term), square)
    tail = aten.mul.Tensor(aten.add.Tensor(aten.add.Tensor(series, 1.0), aten.mul.Tensor(inverse, 0.5)), inverse)
    value = aten.add.Tensor(result, tail)
    reflected: Tensor = aten.where.self(low, aten.mul.Tensor(value, -1), value)
    return reflected


def polygamma(n: int, x: Tensor) -> Tensor:
    """The n-th derivative of digamma: reflected where below 1/2, nine terms of its sum, and the rest of it by Euler-Maclaurin."""
    if n < 2:
        return digamma(x) if n == 0 else trigamma(x)
    low = aten.lt.Scalar(x, 0.5)
    y = aten.where.self(low, aten.add.Tensor(aten.mul.Tensor(x, -1), 1.0), x)
    sign = 1 if n % 2 else -1
    right = aten.mul.Tensor(_zeta(n + 1, y), sign * math.factorial(n))
    mirrored = aten.mul.Tensor(right, -1) if n % 2 else right
    left = aten.sub.Tensor(mirrored, _cotangent_derivative(n, x))
    pole = aten.logical_and(aten.le.Scalar(x, 0), aten.eq.Tensor(x, aten.floor(x)))
    endless = aten.eq.Scalar(x, math.inf)  # where eager's kernel multiplies zero by infinity
    ends = [(pole, constant(x, sign * math.inf)), (endless, constant(x, math.nan))]
    return choose(ends, aten.where.self(low, left, right))


def _zeta(s: int, y: Tensor) -> Tensor:
    """The sum of `(y + k) ** -s` over k = 0, 1, ...; y is at least 1/2."""
    total = aten.pow.Tensor_Scalar(y, -s)
    for _ in range(8):
        y = aten.add.Tensor(y, 1.0)
        total = aten.add.Tensor(total, aten.pow.Tensor_Scalar(y, -s))
    y = aten.add.Tensor(y, 1.0)
    power, inverse = aten.pow.Tensor_Scalar(y, -s), aten.reciprocal(y)
    tail = aten.add.Tensor(aten.mul.Tensor(aten.mul.Tensor(power, y), 1 / (s - 1)), aten.mul.Tensor(power, 0.5))
    rising = float(s)
    for j, weight in enumerate(_WEIGHTS):
        power = aten.mul.Tensor(power, inverse)
        tail = aten.add.Tensor(tail, aten.mul.Tensor(power, weight * rising))
        power = aten.mul.Tensor(power, inverse)
        rising *= (s + 2 * j + 1) * (s + 2 * j + 2)
    result: Tensor = aten.add.Tensor(total, tail)
    return result


def _cotangent_derivative(n: int, x: Tensor) -> Tensor:
    """The n-th derivative of `cot(pi x)` times pi: a polynomial in the cotangent, each step `-pi (1 + c^2) d/dc`."""
    coefficients = [0.0, math.pi]
    for _ in range(n):
        slopes = [k * value for k, value in enumerate(coefficients)][1:]
        padded = [*slopes, 0.0, 0.0]
        coefficients = [-math.pi * (value + (padded[k - 2] if k > 1 else 0)) for k, value in enumerate(padded)]
    cotangent = _cotangent(aten.sub.Tensor(x, aten.round(x)))  # exact, and the cotangent has period pi
    result: Tensor = aten.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = aten.mul.Tensor(result, cotangent)
        result = aten.add.Tensor(result, coefficient) if coefficient else result
    return result


def _cotangent(turn: Tensor) -> Tensor:
    """`cot(pi x)` of |x| <= 1/2, from the angle to the nearer of 0 and 1/2, so that it is 0 at 1/2."""
    size = aten.abs(turn)
    rest = aten.add.Tensor(aten.mul.Tensor(size, -1), 0.5)
    near = aten.tan(aten.mul.Tensor(rest, math.pi))
    far = aten.reciprocal(aten.tan(aten.mul.Tensor(size, math.pi)))
    result: Tensor = aten.mul.Tensor(aten.where.self(aten.gt.Scalar(size, 0.25), near, far), aten.sign(turn))
    return result


def _known_order(n: int, x: Tensor) -> str | None:
    if n > LARGEST_ORDER:
        return f"orders above {LARGEST_ORDER} are not spelled out"
    return _float32(x)


def _float32(x: Tensor) -> str | None:
    return "it computes in float32 only" if x.dtype is not torch.float32 else None


RULES = (
    Rule(
        "digamma", (aten.digamma.default,), digamma, check=_float32, numerics=Numerics.ROUNDING,
        cost="about 70 elementwise ops",
    ),
    Rule(
        "polygamma", (aten.polygamma.default,), polygamma, check=_known_order, numerics=Numerics.ROUNDING,
        cost="about 70 elementwise ops",
    ),
)  # fmt: skip
