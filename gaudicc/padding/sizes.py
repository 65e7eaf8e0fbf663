"""Size expressions: what may appear, how they print for the host, how they are computed in a graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import CleanDiv, FloorDiv, Max, Min, Mod, PythonMod

from gaudicc.errors import PaddingError

_FLOORS = (FloorDiv, CleanDiv)
_MODS = (Mod, PythonMod)


def expression(size: Any) -> sympy.Expr:
    """The expression of a size: an int, a SymInt of any trace, or an expression already."""
    if isinstance(size, sympy.Expr):
        return size
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(int(size))


def grows(expr: sympy.Expr, *, up: bool = True) -> bool:
    """Whether an expression provably never shrinks when a symbol grows: its physical value bounds the logical one.

    Args:
        expr: the expression.
        up: False asks whether it never grows.
    """
    if expr.is_number:
        return True
    if expr.is_symbol:
        return up
    if expr.is_Add or isinstance(expr, (Max, Min)):
        return all(grows(arg, up=up) for arg in expr.args)
    if expr.is_Mul:
        number, rest = expr.as_coeff_Mul()
        if number.is_negative:
            return grows(rest, up=not up)
        factors = sympy.Mul.make_args(rest)
        if len(factors) == 1:
            return grows(factors[0], up=up)
        unsigned = [factor for factor in factors if not factor.is_nonnegative]  # one is: sizes are not negative
        return up and len(unsigned) <= 1 and all(grows(factor) for factor in factors)
    if expr.is_Pow:
        return up and bool(
            expr.exp.is_integer and expr.exp.is_positive and grows(expr.base) and expr.base.is_nonnegative
        )
    return (
        isinstance(expr, _FLOORS) and grows(expr.args[0], up=up) and bool(expr.args[1].is_number and expr.args[1] > 0)
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
