"""Capture, mending: `min`, `max` and look-ups in a dict, where data decides which item is picked."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from gaudicc.capture.mend.context import Context, active
from gaudicc.capture.mend.control import choose, given, invoke
from gaudicc.capture.mend.internals import is_constant, is_data_dependent
from gaudicc.capture.mend.operators import any_of, fail, test_compare
from gaudicc.capture.mend.partial import condition, on_each
from gaudicc.capture.mend.texts import UNKNOWN
from gaudicc.capture.mend.truth import fresh_test, truth
from gaudicc.capture.mend.values import by_key, first_choice


def reads(value: Any) -> bool:
    """Whether converting a value to a Python number would read a tensor."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not is_constant(value)
    return is_data_dependent(value)


def _extreme(better: Callable[[Any, Any], Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    def extreme(*args: Any, **kwargs: Any) -> Any:
        context, items = active(), list(args[0]) if len(args) == 1 else list(args)
        key = kwargs.get("key")
        ranks = items if key is None else [invoke(key, item) for item in items]
        if context is None or not any(reads(rank) for rank in ranks):
            if key is None or not items:
                return plain(*args, **kwargs)
            return items[plain(range(len(items)), key=ranks.__getitem__)]
        best, first = items[0], ranks[0]
        for item, rank in zip(items[1:], ranks[1:], strict=True):
            decision = truth(test_compare(better, rank, first))
            if isinstance(decision, torch.Tensor):
                best = choose(context, decision, given(item), given(best), None)
                first = best if key is None else choose(context, decision, given(rank), given(first), None)
            elif decision:
                best, first = item, rank
        return best

    return extreme


min_ = _extreme(operator.lt, min)
max_ = _extreme(operator.gt, max)


def look_up(context: Context, table: dict[Any, Any], key: Any, *default: Any) -> Any:
    """`table[key]`, or `table.get(key, default)`, by a number that depends on data."""
    at = context.numbers.tensor(key)
    found = [(at.eq(number), value) for number, value in table.items() if isinstance(number, (int, float))]
    if default:
        value = default[0]
    elif not found:
        raise KeyError(UNKNOWN)
    else:
        inside = torch.stack([test for test, _ in found]).any()
        fail(fresh_test(torch.logical_not(inside)), KeyError(UNKNOWN))
        value = found.pop()[1]
    for test, held in reversed(found):
        value = choose(context, test, given(held), given(value), None)
    return value


def get(table: dict[Any, Any], key: Any, default: Any = None) -> Any:
    """`table.get(key, default)`."""
    context = active()
    if context is not None and condition(table) is not None:
        return on_each(context, table, lambda: get(table, key, default))
    if first_choice(key) is not None:
        return by_key(lambda decided: get(table, decided, default), key=key)
    if context is not None and is_data_dependent(key):
        return look_up(context, table, key, default)
    return dict.get(table, key, default)


def is_key(table: dict[Any, Any], key: Any) -> Any:
    """`key in table`, of a number that depends on data."""
    numbers = [number for number in table if isinstance(number, (int, float))]
    return any_of(None, *(lambda number=number: test_compare(operator.eq, key, number) for number in numbers))
