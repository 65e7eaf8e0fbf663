"""Capture, mending: integer tensors of no dims of which the number is known, or was read: sizes that a model computes with torch.

`torch.div(x.size(1), 8, rounding_mode="trunc")` is a tensor, and its number is a size; `n - m` of a number that was read is
one too. What is computed of such tensors is remembered as a number, so that no size is read that is known already.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from gaudicc.capture.mend.context import Context
from gaudicc.capture.mend.internals import is_data_dependent, known_true, number_read_from
from gaudicc.capture.mend.values import replace

_DIVISIONS = {"div", "divide", "floor_divide", "__floordiv__", "__rfloordiv__"}
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("add", "__add__", "__radd__"), operator.add),
    **dict.fromkeys(("sub", "subtract", "__sub__", "__rsub__"), operator.sub),
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__"), operator.mul),
    **dict.fromkeys(_DIVISIONS, operator.floordiv),
}
_SHAPES = {
    "view", "reshape", "expand", "repeat", "narrow", "unfold", "as_strided", "unflatten", "new_zeros", "new_ones", "new_empty",
}  # fmt: skip
_FACTORIES = {"zeros", "ones", "empty", "arange"}


def with_sizes(context: Context, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of a function that takes sizes, with numbers in place of tensors of no dims."""
    if name not in _SHAPES and name not in _FACTORIES:
        return args, kwargs

    def number(leaf: Any) -> Any:
        if not _is_integer(leaf):
            return leaf
        known = _number(context, leaf)
        return context.numbers.read(leaf.to(torch.int64)) if known is None else known

    kept = 1 if name in _SHAPES else 0
    return (*args[:kept], *replace(args[kept:], number)), replace(kwargs, number)


def with_known(context: Context, *lists: Any) -> tuple[Any, ...]:
    """Lists that are compared, with numbers in place of the tensors of which they are known."""

    def number(leaf: Any) -> Any:
        known = _number(context, leaf) if _is_integer(leaf) else None
        return leaf if known is None else known

    return tuple(replace(items, number) if isinstance(items, (list, tuple)) else items for items in lists)


def note_size(context: Context, name: str, args: Any, kwargs: Any, result: Any) -> None:
    """Remembers the number in the result of arithmetic on sizes, and on tensors of which the number is known."""
    apply = _OPERATORS.get(name)
    if apply is None or not _is_integer(result) or len(args) != 2 or kwargs.keys() - {"rounding_mode"}:
        return
    numbers = [_number(context, arg) if _is_integer(arg) else arg for arg in args]
    if not all(isinstance(number, (int, torch.SymInt)) for number in numbers):
        return
    if not any(isinstance(number, torch.SymInt) for number in numbers):
        return
    left, right = reversed(numbers) if name.startswith("__r") else numbers
    # The two roundings are one where nothing is negative.
    if name in _DIVISIONS and not (known_true(left >= 0) and known_true(right > 0)):
        return
    context.known_sizes[id(result)] = result, result._version, apply(left, right)


def _is_integer(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 0 and value.dtype is torch.int64


def _number(context: Context, tensor: torch.Tensor) -> Any:
    """The number in a tensor as far as it is known, where the current predicate does not hold a harmless one; else None."""
    _, version, number = context.known_sizes.get(id(tensor), (tensor, -1, None))
    number = number if version == tensor._version else number_read_from(tensor)
    return safe_number(context, number) if isinstance(number, torch.SymInt) else number


def safe_number(context: Context, number: torch.SymInt) -> Any:
    """A size that was read from a tensor where the current predicate holds, else 0; others as they are.

    One symbol for each number and predicate, so that equal sizes stay equal.
    """
    pred = context.pred
    if pred is None or not is_data_dependent(number) or not context.numbers.was_read(number):
        return number
    key = (str(number.node.expr), id(pred))
    if key not in context.safe_sizes:
        value = context.numbers.tensor(number)
        safe: Any = context.numbers.read(torch.where(pred, value, torch.zeros_like(value)))
        context.safe_sizes[key] = context.safe_sizes[str(safe.node.expr), id(pred)] = (safe, pred)
    return context.safe_sizes[key][0]
