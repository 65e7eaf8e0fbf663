"""Sizes by way of a real number, as `math.ceil(n / 2)` and `int(n * 0.75)`, in whole numbers alone where that is exact."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import sympy
from torch.utils._sympy.functions import CeilToInt, FloatTrueDiv, FloorDiv, FloorToInt, IntTrueDiv, ToFloat, TruncToInt

_ROUNDINGS = (CeilToInt, FloorToInt, TruncToInt)
_MOST_BITS = 20
"""Of the parts of a factor: its products with sizes are then exact in float64."""


@cache
def whole(expr: sympy.Expr) -> sympy.Expr:
    """The expression with whole numbers in place of each rounded real one that has such a form."""
    return expr.replace(lambda part: isinstance(part, _ROUNDINGS), _rounded) if expr.has(*_ROUNDINGS) else expr


def becomes_whole(real: sympy.Expr) -> bool:
    """Whether `int` of a real number that sizes decide has such a form."""
    return not whole(TruncToInt(real)).has(*_ROUNDINGS)


def _rounded(expr: sympy.Expr) -> sympy.Expr:
    if (found := _quotient(expr.args[0])) is None:
        return expr
    top, bottom = found
    if isinstance(expr, CeilToInt):
        return -FloorDiv(-top, bottom)
    if isinstance(expr, FloorToInt) or top.is_nonnegative:
        return FloorDiv(top, bottom)
    return expr


def _quotient(real: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr] | None:
    """Whole numbers above and below of a real one, exact or with a quotient that rounds to the same whole numbers."""
    if isinstance(real, (IntTrueDiv, FloatTrueDiv)):
        above, below = _quotient(real.args[0]), _quotient(real.args[1])
        if above is None or below is None or below[1] != 1 or not below[0].is_positive:
            return None
        exact = above[1] == 1 or (below[0].is_Integer and int(below[0]).bit_count() == 1)
        return (above[0], above[1] * below[0]) if exact else None
    if isinstance(real, ToFloat) or real.is_integer:
        return (real.args[0] if isinstance(real, ToFloat) else real), sympy.Integer(1)
    if real.is_Float:
        ratio = Fraction(float(real))
        exact = max(abs(ratio.numerator), ratio.denominator).bit_length() <= _MOST_BITS
        return (sympy.Integer(ratio.numerator), sympy.Integer(ratio.denominator)) if exact else None
    if real.is_Mul and len(real.args) == 2:
        factor, size = _quotient(real.args[0]), _quotient(real.args[1])
        if factor is not None and size is not None and size[1] == 1 and real.args[0].is_number:
            return factor[0] * size[0], factor[1]
    return None
