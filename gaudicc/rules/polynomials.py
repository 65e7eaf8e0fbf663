"""Rules for orthogonal polynomials of a degree that is a tensor: Chebyshev's four kinds, also shifted, and Hermite's two.

Eager's kernels run the three-term recurrence as far as each entry's degree asks. Chebyshev polynomials have closed forms for the
degrees beyond the first few; Hermite polynomials of float32 are NaN beyond degree 128, where the recurrence can stop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gaudicc.pipeline import Numerics
from gaudicc.rules.chebyshev import choose, constant
from gaudicc.rules.rule import Rule

aten = torch.ops.aten
SPELLED_OUT = 8  # up to this degree the recurrence is exact to rounding where the closed form divides by almost nothing
HERMITE_LIMIT = 128  # of float32 in eager's kernel
AT_ONE = {"t": (0, 1), "u": (1, 1), "v": (0, 1), "w": (2, 1)}  # the value at 1: slope and start of a line in the degree


def _within_one(kind: str, n: Tensor, size: Tensor) -> Tensor:
    """Where 0 <= x < 1: cosines and sines of multiples of an angle."""
    angle = aten.acos(aten.clamp(size, 0.0, 1.0))
    if kind == "t":
        plain: Tensor = aten.cos(aten.mul.Tensor(n, angle))
        return plain
    wave, more, part = {"u": (aten.sin, 1, 1), "v": (aten.cos, 0.5, 0.5), "w": (aten.sin, 0.5, 0.5)}[kind]
    above = wave(aten.mul.Tensor(aten.add.Tensor(n, more), angle))
    ratio: Tensor = aten.div.Tensor(above, wave(aten.mul.Tensor(angle, part)))
    return ratio


def _beyond_one(kind: str, n: Tensor, size: Tensor) -> Tensor:
    """Where x > 1: the hyperbolic twin, with `exp(n a)` taken out so that only a result too large overflows."""
    a = aten.acosh(aten.clamp(size, 1.0))
    power = aten.exp(aten.mul.Tensor(n, a))
    twice, once = aten.mul.Tensor(a, -2), aten.mul.Tensor(a, -1)
    rest = aten.mul.Tensor(n, twice)
    if kind == "t":
        ratio = aten.mul.Tensor(aten.add.Tensor(aten.exp(rest), 1), 0.5)
    elif kind == "v":
        above = aten.add.Tensor(aten.exp(aten.add.Tensor(rest, once)), 1)
        ratio = aten.div.Tensor(above, aten.add.Tensor(aten.exp(once), 1))
    else:
        step = twice if kind == "u" else once
        ratio = aten.div.Tensor(aten.expm1(aten.add.Tensor(rest, step)), aten.expm1(step))
    result: Tensor = aten.mul.Tensor(power, ratio)
    return result


def _closed(kind: str, n: Tensor, size: Tensor) -> Tensor:
    """The closed form for x >= 0."""
    beyond = _beyond_one(kind, n, size)
    # The recurrence of eager's kernel meets infinity minus infinity two degrees after its first overflow.
    early = _beyond_one(kind, aten.add.Tensor(n, -2), size)
    beyond = aten.where.self(aten.isinf(early), constant(size, math.nan), beyond)
    slope, first = AT_ONE[kind]
    at_one = aten.add.Tensor(aten.mul.Tensor(n, slope), first)
    found = [(aten.eq.Scalar(size, 1), at_one), (aten.gt.Scalar(size, 1), beyond)]
    return choose(found, _within_one(kind, n, size))


def chebyshev(kind: str, shifted: bool, x: Tensor, n: Tensor) -> Tensor:
    """Chebyshev's polynomial of a kind (`t`, `u`, `v`, `w`), of `2 x - 1` if it is shifted.

    Below zero V and W change places and odd degrees their sign; up to degree 8 the recurrence is spelled out.
    """
    if shifted:
        x = aten.add.Tensor(aten.mul.Tensor(x, 2), -1)
    x, n = torch.broadcast_tensors(x, aten.trunc(n))
    odd = aten.ne.Tensor(aten.mul.Tensor(aten.floor(aten.mul.Tensor(n, 0.5)), 2), n)
    size, below = aten.abs(x), aten.lt.Scalar(x, 0)
    value = _closed(kind, n, size)
    if kind in "vw":
        value = aten.where.self(below, _closed("w" if kind == "v" else "v", n, size), value)
    value = aten.where.self(aten.logical_and(below, odd), aten.mul.Tensor(value, -1), value)
    value = aten.where.self(aten.le.Scalar(n, SPELLED_OUT), _first_chebyshev(kind, x, n), value)
    return choose([(aten.lt.Scalar(n, 0), constant(x, 0.0))], value)


def _first_chebyshev(kind: str, x: Tensor, n: Tensor) -> Tensor:
    twice = aten.mul.Tensor(x, 2)
    second = {"t": x, "u": twice, "v": aten.add.Tensor(twice, -1), "w": aten.add.Tensor(twice, 1)}[kind]
    return _recurrence(second, n, SPELLED_OUT, lambda k, q, p: aten.sub.Tensor(aten.mul.Tensor(twice, q), p))


def _recurrence(second: Tensor, n: Tensor, limit: int, step: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
    """The entry of degree `n` of 1, `second`, and what `step(k, last, the one before)` gives for k from 2 to `limit`."""
    before, last = aten.full_like(second, 1.0), second
    value: Tensor = aten.where.self(aten.eq.Scalar(n, 0), before, last)
    for k in range(2, limit + 1):
        before, last = last, step(k, last, before)
        value = aten.where.self(aten.eq.Scalar(n, k), last, value)
    return value


def hermite(physicists: bool, x: Tensor, n: Tensor) -> Tensor:
    """The physicists' or the probabilists' Hermite polynomial; NaN beyond degree 128, as eager has it."""
    x, n = torch.broadcast_tensors(x, aten.trunc(n))
    factor = 2 if physicists else 1
    first = aten.mul.Tensor(x, factor)

    def step(k: int, last: Tensor, before: Tensor) -> Tensor:
        scaled = aten.mul.Tensor(before, factor * (k - 1))
        result: Tensor = aten.sub.Tensor(aten.mul.Tensor(first, last), scaled)
        return result

    value = _recurrence(first, n, HERMITE_LIMIT, step)
    outside = [(aten.lt.Scalar(n, 0), constant(x, 0.0)), (aten.gt.Scalar(n, HERMITE_LIMIT), constant(x, math.nan))]
    return choose(outside, value)


def _float32(x: Tensor, n: Tensor) -> str | None:
    return None if x.dtype is n.dtype is torch.float32 else "it computes in float32 only"


def _rules() -> list[Rule]:
    rules = []
    for shifted in (False, True):
        for kind in AT_ONE:
            name = f"{'shifted_' if shifted else ''}chebyshev_polynomial_{kind}"
            rules.append(_rule(name, partial(chebyshev, kind, shifted), 70))
    rules.append(_rule("hermite_polynomial_h", partial(hermite, True), 640))
    rules.append(_rule("hermite_polynomial_he", partial(hermite, False), 640))
    return rules


def _rule(name: str, rewrite: Any, ops: int) -> Rule:
    op = getattr(aten, f"special_{name}").default
    return Rule(
        name.replace("_", "-"), (op,), rewrite, check=_float32, numerics=Numerics.ROUNDING,
        cost=f"about {ops} elementwise ops",
    )  # fmt: skip


RULES = tuple(_rules())
