"""Rounded real sizes are written in whole numbers only where both are the same, for all sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import sympy
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._sympy.functions import CeilToInt, FloatTrueDiv, FloorToInt, IntTrueDiv, ToFloat, TruncToInt

from gaudicc.whole_sizes import whole

S = sympy.Symbol("s", integer=True, nonnegative=True)
ROUNDINGS: dict[Any, Callable[[float], int]] = {CeilToInt: math.ceil, FloorToInt: math.floor, TruncToInt: math.trunc}
sizes = st.integers(0, 2**31)
roundings = st.sampled_from(list(ROUNDINGS))


@given(roundings, sizes, st.integers(-5, 5), st.integers(1, 4096))
def test_quotients(rounding: Any, size: int, more: int, divisor: int) -> None:
    form = whole(rounding(IntTrueDiv(S + abs(more), sympy.Integer(divisor))))
    assert not form.has(IntTrueDiv)
    assert int(form.xreplace({S: sympy.Integer(size)})) == ROUNDINGS[rounding]((size + abs(more)) / divisor)


@given(roundings, sizes, st.integers(1, 2**10), st.integers(0, 9))
def test_exact_factors(rounding: Any, size: int, top: int, bits: int) -> None:
    factor = top / 2**bits
    form = whole(rounding(sympy.Float(factor) * ToFloat(S)))
    assert not form.has(ToFloat)
    assert int(form.xreplace({S: sympy.Integer(size)})) == ROUNDINGS[rounding](size * factor)


@given(sizes, st.integers(1, 2**10), st.integers(0, 9), st.integers(0, 9))
def test_factors_over_powers_of_two(size: int, top: int, bits: int, more: int) -> None:
    factor, divisor = top / 2**bits, 2.0**more
    form = whole(TruncToInt(FloatTrueDiv(sympy.Float(factor) * ToFloat(S), sympy.Float(divisor))))
    assert not form.has(ToFloat)
    assert int(form.xreplace({S: sympy.Integer(size)})) == math.trunc(size * factor / divisor)


def test_other_factors_stay() -> None:
    assert math.trunc(10 * 0.7) == 7  # of the fraction that is 0.7 here it would be 6
    expr = TruncToInt(sympy.Float(0.7) * ToFloat(S))
    assert whole(expr) == expr
