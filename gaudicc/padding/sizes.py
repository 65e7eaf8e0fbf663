"""Size expressions: what may appear, how they print for the host, how they are computed in a graph."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import CleanDiv, FloorDiv, Max, Min, Mod, PythonMod

from gaudicc.errors import PaddingError
from gaudicc.whole_sizes import whole

_FLOORS = (FloorDiv, CleanDiv)
_MODS = (Mod, PythonMod)


def expression(size: Any) -> sympy.Expr:
    """The expression of a size, in whole numbers if it can be: an int, a SymInt of any trace, or an expression already."""
    if isinstance(size, sympy.Expr):
        return whole(size)
    return whole(size.node.expr) if isinstance(size, torch.SymInt) else sympy.Integer(int(size))


Ranges = Mapping[str, tuple[int, int]]
"""Symbol -> its smallest and its largest value, inclusive."""

_POINTS = 2**18
"""Sizes that a form without a rule is tried on at most."""


def grows(expr: sympy.Expr, ranges: Ranges) -> bool:
    """Whether an expression never shrinks when a symbol grows: its physical value bounds the logical one.

    Args:
        expr: the expression.
        ranges: of its symbols; what no rule proves, as `s + (-s) % 64`, is tried on all of them.
    """
    if _grows(expr):
        return True
    factored = sympy.factor(expr)
    if factored.is_Mul and factored.args[0].is_negative is not True and all(grows(f, ranges) for f in factored.args):
        unsigned = [factor for factor in factored.args if not _never_negative(factor)]
        if len(unsigned) <= 1:  # one is: sizes are not negative
            return True
    return _never_falls(expr, _bounds(expr, ranges))


def _never_negative(factor: sympy.Expr) -> bool:
    return bool(factor.is_nonnegative) or all(part.is_nonnegative for part in sympy.Add.make_args(factor))


def never_below_zero(expr: sympy.Expr, ranges: Ranges) -> bool:
    """Whether an expression is 0 or more at every length."""
    return bool(expr.is_nonnegative) or _least(expr, _bounds(expr, ranges)) >= 0


def only_value(expr: sympy.Expr, ranges: Ranges) -> int | None:
    """The number that an expression is at every length, if there is one."""
    return _only_value(expr, _bounds(expr, ranges))


Bounds = tuple[tuple[str, int, int], ...]


def _bounds(expr: sympy.Expr, ranges: Ranges) -> Bounds:
    return tuple((str(symbol), *ranges[str(symbol)]) for symbol in sorted(expr.free_symbols, key=str))


def _tried(expr: sympy.Expr, bounds: Bounds) -> tuple[Callable[..., int], list[range]] | None:
    """An expression as a function, and the values of its symbols; None if there are too many, or it has no form."""
    spans = [range(low, high + 1) for _, low, high in bounds]
    names = {name: f"n{i}" for i, (name, _, _) in enumerate(bounds)}
    if math.prod(map(len, spans)) > _POINTS:
        return None
    try:
        return eval(f"lambda {', '.join(names.values())}: {text(expr, names)}"), spans  # as printed here
    except PaddingError:
        return None


@cache
def _never_falls(expr: sympy.Expr, bounds: Bounds) -> bool:
    """Whether an expression never shrinks from one size to the next, on all there are."""
    if (tried := _tried(expr, bounds)) is None:
        return False
    size, spans = tried
    for point in product(*spans):
        here = size(*point)
        for i, span in enumerate(spans):
            if point[i] + 1 in span and size(*point[:i], point[i] + 1, *point[i + 1 :]) < here:
                return False
    return True


@cache
def _least(expr: sympy.Expr, bounds: Bounds) -> float:
    if (tried := _tried(expr, bounds)) is None:
        return -math.inf
    size, spans = tried
    return min(size(*point) for point in product(*spans))


@cache
def _only_value(expr: sympy.Expr, bounds: Bounds) -> int | None:
    if (tried := _tried(expr, bounds)) is None:
        return None
    size, spans = tried
    first = size(*(span[0] for span in spans))
    return first if all(size(*point) == first for point in product(*spans)) else None


def _grows(expr: sympy.Expr, *, up: bool = True) -> bool:
    """Whether rules say that an expression never shrinks when a symbol grows; `up=False` asks whether it never grows."""
    if expr.is_number:
        return True
    if expr.is_symbol:
        return up
    if expr.is_Add or isinstance(expr, (Max, Min)):
        return all(_grows(arg, up=up) for arg in expr.args)
    if expr.is_Mul:
        number, rest = expr.as_coeff_Mul()
        if number.is_negative:
            return _grows(rest, up=not up)
        factors = sympy.Mul.make_args(rest)
        if len(factors) == 1:
            return _grows(factors[0], up=up)
        unsigned = [factor for factor in factors if not factor.is_nonnegative]  # one is: sizes are not negative
        return up and len(unsigned) <= 1 and all(_grows(factor) for factor in factors)
    if expr.is_Pow:
        return up and bool(
            expr.exp.is_integer and expr.exp.is_positive and _grows(expr.base) and expr.base.is_nonnegative
        )
    return (
        isinstance(expr, _FLOORS) and _grows(expr.args[0], up=up) and bool(expr.args[1].is_number and expr.args[1] > 0)
    )


def text(expr: sympy.Expr, names: Mapping[str, str]) -> str:
    """Python for an expression over dimension names: `+ - * // %`, `min`, `max`.

    Raises:
        PaddingError: the expression holds anything else.
    """
    if expr.is_Integer:
        return str(int(expr))
    if expr.is_symbol:
        if str(expr) not in names:
            raise PaddingError(f"size {expr} is known from data only", hint="give the op that makes it a bound")
        return names[str(expr)]
    parts = [text(arg, names) for arg in expr.args] if not expr.is_Pow else []
    if expr.is_Add:
        return f"({' + '.join(parts)})"
    if expr.is_Mul:
        return f"({' * '.join(parts)})"
    if expr.is_Pow and expr.exp.is_Integer and expr.exp > 0:
        return f"({' * '.join([text(expr.base, names)] * int(expr.exp))})"
    if isinstance(expr, _FLOORS):
        return f"({parts[0]} // {parts[1]})"
    if isinstance(expr, _MODS):
        return f"({parts[0]} % {parts[1]})"
    if isinstance(expr, (Max, Min)):
        return f"{'max' if isinstance(expr, Max) else 'min'}({', '.join(parts)})"
    raise PaddingError(f"size {expr} has no form in graph arithmetic", hint="write the size with + - * // % min max")


class Arithmetic:
    """Builds an expression out of values of its symbols, step by step.

    Args:
        leaf: the value of a symbol.
        apply: one binary step; the word is `+ - * // % min max`.
    """

    def __init__(self, leaf: Callable[[sympy.Symbol], Any], apply: Callable[[str, Any, Any], Any]) -> None:
        self.leaf = leaf
        self.apply = apply

    def build(self, expr: sympy.Expr) -> Any:
        """The value of an expression; integers stay plain.

        Raises:
            PaddingError: the expression holds anything but `+ - * // % min max`.
        """
        if expr.is_Integer:
            return int(expr)
        if expr.is_symbol:
            return self.leaf(expr)
        if expr.is_Pow and expr.exp.is_Integer and expr.exp > 0:
            return self._chain("*", [expr.base] * int(expr.exp))
        for kinds, word in (
            ((sympy.Add,), "+"),
            ((sympy.Mul,), "*"),
            (_FLOORS, "//"),
            (_MODS, "%"),
            ((Min,), "min"),
            ((Max,), "max"),
        ):
            if isinstance(expr, kinds):
                return self._chain(word, expr.args)
        raise PaddingError(
            f"size {expr} has no form in graph arithmetic", hint="write the size with + - * // % min max"
        )

    def _chain(self, word: str, parts: Any) -> Any:
        # Integers last: a number on the left would need the reversed form of every op.
        ordered = sorted(parts, key=lambda part: part.is_Integer) if word in ("+", "*", "min", "max") else list(parts)
        value = self.build(ordered[0])
        for part in ordered[1:]:
            value = self.apply(word, value, self.build(part))
        return value


SIZE_OPS: dict[str, Callable[..., Any]] = {
    "+": operator.add,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "min": torch.sym_min,
    "max": torch.sym_max,
}
