"""Capture: expressions over sizes, tried on all sizes there are: what no solver proves of them is seen.

That `s + (8 - s % 8) % 8` is a multiple of 8 no rule of torch's says; of 64 sizes it is quickly looked up.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import sympy
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod

POINTS = 2**18
"""Combinations of sizes that are tried at most."""

Spans = tuple[tuple[str, int, int], ...]
"""Names of sizes with their smallest and largest, inclusive."""

Values = np.ndarray[Any, Any]
"""int64 or bool, one element for each combination of sizes."""

Columns = Mapping[str, Values]
"""Name of a size -> what it is in each combination."""


@lru_cache(maxsize=64)
def every(spans: Spans) -> Columns | None:
    """All combinations of some sizes; None if there are too many."""
    if math.prod(high - low + 1 for _, low, high in spans) > POINTS:
        return None
    grids = np.meshgrid(*(np.arange(low, high + 1) for _, low, high in spans), indexing="ij")
    return {name: grid.reshape(-1) for (name, _, _), grid in zip(spans, grids, strict=True)}


@lru_cache(maxsize=4096)
def only_value(expr: sympy.Basic, spans: Spans) -> int | bool | None:
    """What an expression or a condition is for all sizes, if it is the same for all.

    Args:
        expr: over the names of the spans.
        spans: of its symbols, in any order.
    """
    columns = every(spans)
    values = None if columns is None else tried(expr, columns)
    if values is None or not (values == values.flat[0]).all():
        return None
    value: int | bool = values.flat[0].item()
    return value


def tried(expr: sympy.Basic, columns: Columns) -> Values | None:
    """What an expression or a condition is in each combination: one element for all, or one for each.

    Returns:
        None if it holds what has no form here, as a division by 0.
    """
    try:
        return np.asarray(_values(expr, columns))
    except _NoFormError:
        return None


class Words:
    """Says expressions by what they are for some sizes: two have one word if they are the same for all of these.

    Args:
        columns: the sizes; an expression over others is said as it is written.
        known: words by values, shared by those who compare what they say.
    """

    def __init__(self, columns: Columns, known: dict[bytes, str]) -> None:
        self.columns = columns
        self._known = known
        self._said: dict[sympy.Basic, str] = {}

    def __call__(self, expr: sympy.Basic) -> str:
        """The word for an expression; of one that is one number, the number."""
        if expr not in self._said:
            values = tried(expr, self.columns)
            if values is None:
                self._said[expr] = str(expr)
            elif (values == values.flat[0]).all():
                self._said[expr] = str(values.flat[0])
            else:
                self._said[expr] = self._known.setdefault(values.tobytes(), f"size {len(self._known)}")
        return self._said[expr]


class _NoFormError(Exception):
    """An expression holds an op, a symbol or a division that cannot be tried."""


def _values(expr: Any, columns: Columns) -> Any:
    if expr.is_Integer or expr in (sympy.true, sympy.false):
        return np.asarray(bool(expr) if expr.is_Boolean else int(expr))
    if expr.is_Symbol and str(expr) in columns:
        return columns[str(expr)]
    apply = next((apply for kind, apply in _OPS.items() if isinstance(expr, kind)), None)
    if apply is None:
        raise _NoFormError
    return apply([_values(part, columns) for part in expr.args])


def _folded(step: Callable[[Any, Any], Any]) -> Callable[[Sequence[Values]], Any]:
    return lambda parts: reduce(step, parts)


def _power(parts: Sequence[Values]) -> Any:
    base, exponent = parts
    if exponent.ndim or exponent < 0:
        raise _NoFormError
    return base**exponent


def _divided(step: Callable[[Any, Any], Any]) -> Callable[[Sequence[Values]], Any]:
    def apply(parts: Sequence[Values]) -> Any:
        if not parts[1].all():
            raise _NoFormError
        return step(parts[0], parts[1])

    return apply


_OPS: dict[Any, Callable[[Sequence[Values]], Any]] = {
    sympy.Add: _folded(operator.add),
    sympy.Mul: _folded(operator.mul),
    sympy.Pow: _power,
    FloorDiv: _divided(operator.floordiv),
    (Mod, PythonMod): _divided(operator.mod),
    Max: _folded(np.maximum),
    Min: _folded(np.minimum),
    sympy.Eq: _folded(operator.eq),
    sympy.Ne: _folded(operator.ne),
    sympy.LessThan: _folded(operator.le),
    sympy.StrictLessThan: _folded(operator.lt),
    sympy.GreaterThan: _folded(operator.ge),
    sympy.StrictGreaterThan: _folded(operator.gt),
    sympy.And: _folded(operator.and_),
    sympy.Or: _folded(operator.or_),
    sympy.Not: lambda parts: ~parts[0],
}
