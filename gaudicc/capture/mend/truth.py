"""Capture, mending: what a value says when Python asks whether it is true."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from gaudicc.capture.mend.context import Context, active
from gaudicc.capture.mend.internals import SYMBOLIC, is_constant, is_data_dependent, known_true
from gaudicc.capture.mend.partial import condition, on_each
from gaudicc.capture.mend.values import Choice, Maybe, refuse_partial


def truth(value: Any) -> bool | torch.Tensor:
    """The truth of a value: a bool, or a traced 0-d bool tensor where it depends on data."""
    context = active()
    if context is None:
        return bool(value)
    if isinstance(value, Choice):
        return truth(
            context.choose(value._pred, lambda: _read(context, value._then), lambda: _read(context, value._orelse))
        )
    if isinstance(value, list) and any(isinstance(item, Maybe) for item in value):
        return _decided(context, _any_present(context, value))
    if isinstance(value, (dict, deque)) and condition(value) is not None:
        return truth(on_each(context, value, lambda: bool(value)))
    if isinstance(value, Maybe):
        refuse_partial("a test")
    if isinstance(value, torch.Tensor):
        return _of_tensor(context, value)
    if isinstance(value, SYMBOLIC) and is_data_dependent(value):
        is_bool = isinstance(value, torch.SymBool)
        holds: Any = value if is_bool else value != 0
        if known_true(holds):
            return True
        if known_true(torch.sym_not(value) if is_bool else value == 0):
            return False
        tensor = context.numbers.tensor(value)
        return _decided(context, tensor) if tensor.dtype is torch.bool else _of_tensor(context, tensor)
    return bool(value)


def fresh_test(test: torch.Tensor) -> torch.Tensor:
    """Mark a just computed 0-d bool that only the test at hand holds: it can be the predicate itself."""
    context = active()
    if context is not None and test.dtype is torch.bool and test.dim() == 0:
        context.tests[id(test), test._version] = (test, test)
    return test


def _read(context: Context, value: Any) -> Any:
    decision = truth(value)
    return context.numbers.read(decision) if isinstance(decision, torch.Tensor) else decision


def _of_tensor(context: Context, value: torch.Tensor) -> bool | torch.Tensor:
    if is_constant(value) or value.numel() != 1:
        return bool(value)
    # A copy: the user may change the tensor in place while the predicate is in use.
    key = (id(value), value._version)
    if key not in context.tests:
        context.tests[key] = (value, value.reshape(()).ne(0))
    return _decided(context, context.tests[key][1])


def _decided(context: Context, pred: bool | torch.Tensor) -> bool | torch.Tensor:
    if isinstance(pred, bool):
        return pred
    known = context.predicates.decided(pred, context.pred)
    return pred if known is None else known


def _any_present(context: Context, items: list[Any]) -> bool | torch.Tensor:
    if not all(isinstance(item, Maybe) for item in items):
        return True
    pred: torch.Tensor | None = None
    for item in items:
        pred = context.predicates.either(pred, item.present)
    assert pred is not None
    return pred
