"""Expressions over sizes, tried on all sizes, are what Python computes; nothing is known of what has no form."""

from __future__ import annotations

from itertools import product
from typing import Any

import sympy
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod

from gaudicc.capture.size_trials import POINTS, Words, every, only_value, tried

A, B = sympy.symbols("a b", integer=True, nonnegative=True)
SPANS = (("a", 0, 6), ("b", 1, 5))
LEAVES = st.sampled_from([A, B, *map(sympy.Integer, range(1, 5))])
BINARY = [
    lambda x, y: x + y,
    lambda x, y: x - y,
    lambda x, y: x * y,
    lambda x, y: FloorDiv(x, y),
    lambda x, y: Mod(x, y),
    Max,
    Min,
]
SIZES = st.recursive(
    LEAVES, lambda inner: st.builds(lambda op, x, y: (op, x, y), st.sampled_from(BINARY), inner, inner)
)
RELATIONS = st.sampled_from([sympy.Eq, sympy.Ne, sympy.Lt, sympy.Le])


def expression(tree: Any) -> sympy.Basic | None:
    """The expression of a tree; None where its parts divide by 0 for all sizes."""
    if not isinstance(tree, tuple):
        return tree
    op, *parts = tree
    made = [expression(part) for part in parts]
    try:
        return None if None in made else op(*made)
    except (ZeroDivisionError, AssertionError, ValueError):  # what sympy says of a division by 0
        return None


def at(expr: sympy.Basic, a: int, b: int) -> Any:
    value = expr.xreplace({A: sympy.Integer(a), B: sympy.Integer(b)})
    return bool(value) if value.is_Boolean else int(value)


@given(tree=SIZES, other=SIZES, relation=RELATIONS)
def test_what_is_tried_is_what_python_computes(tree: Any, other: Any, relation: Any) -> None:
    left, right = expression(tree), expression(other)
    if left is None or right is None:
        return
    for expr in (left, relation(left, right)):
        columns = every(SPANS)
        assert columns is not None
        values = tried(expr, columns)
        if values is None:  # it divides by 0 somewhere
            assert expr.has(FloorDiv, Mod)
            assert only_value(expr, SPANS) is None
            continue
        expected = [at(expr, a, b) for a, b in product(range(7), range(1, 6))]
        assert [int(value) for value in (values.tolist() if values.ndim else [values.item()] * 35)] == expected
        assert only_value(expr, SPANS) == (expected[0] if len(set(expected)) == 1 else None)


@given(one=SIZES, two=SIZES)
def test_sizes_have_one_word_where_they_are_alike(one: Any, two: Any) -> None:
    left, right = expression(one), expression(two)
    columns = every(SPANS)
    assert columns is not None
    if left is None or right is None or tried(left, columns) is None or tried(right, columns) is None:
        return
    words = Words(columns, {})
    alike = all(at(left, a, b) == at(right, a, b) for a, b in product(range(7), range(1, 6)))
    assert (words(left) == words(right)) == alike


def test_of_too_many_sizes_nothing_is_known() -> None:
    assert every((("a", 0, POINTS),)) is None
    assert only_value(sympy.Le(A, 2 * A + 1), (("a", 0, POINTS),)) is None
    assert only_value(sympy.Integer(3), ()) == 3


def test_other_sizes_are_said_as_they_are_written() -> None:
    c = sympy.Symbol("c", integer=True)
    assert Words(every((("a", 0, 6),)) or {}, {})(c + 1) == "c + 1"
