"""Capture, mending: subscripts and `in` of rewritten functions, on containers and by indices that depend on data."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn

from gaudicc.capture.mend.context import Context, active
from gaudicc.capture.mend.control import choose, given
from gaudicc.capture.mend.internals import is_data_dependent
from gaudicc.capture.mend.operators import all_of, any_of, fail, not_, test_compare
from gaudicc.capture.mend.partial import on_each, operate
from gaudicc.capture.mend.picking import is_key, look_up
from gaudicc.capture.mend.rows import last_of
from gaudicc.capture.mend.truth import fresh_test
from gaudicc.capture.mend.values import Choice, Maybe, Rows, by_key, first_choice


def contains(item: Any, container: Any) -> Any:
    """`item in container`."""
    if active() is not None and first_choice(item) is not None and not isinstance(container, (torch.Tensor, Choice)):
        return by_key(_holds, container, key=item)
    if active() is None or (isinstance(container, (str, range)) and not is_data_dependent(item)):
        return item in container
    if isinstance(container, torch.Tensor):
        return (container == item).any()
    if isinstance(container, dict):
        if is_data_dependent(item):
            return is_key(container, item)
        return operate(operator.contains, container, item)
    dynamic = isinstance(item, torch.Tensor) or is_data_dependent(item) or _is_partial(container)
    if not dynamic and not any(isinstance(entry, torch.Tensor) or is_data_dependent(entry) for entry in container):
        return item in container
    return any_of(None, *(lambda entry=entry: _equals(item, entry) for entry in container))


def _holds(container: Any, item: Any) -> Any:
    return contains(item, container)


def _equals(item: Any, entry: Any) -> Any:
    if isinstance(entry, Maybe):
        return all_of(None, lambda: entry.present, lambda: test_compare(operator.eq, item, entry.value))
    return test_compare(operator.eq, item, entry)


def contains_not(item: Any, container: Any) -> Any:
    """`item not in container`."""
    return not_(contains(item, container))


def _is_partial(container: Any) -> bool:
    return isinstance(container, list) and any(isinstance(item, Maybe) for item in container)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple, nn.ModuleList))


def _reads_tensor(index: Any) -> bool:
    return is_data_dependent(index) or (isinstance(index, torch.Tensor) and index.numel() == 1)


def getitem(container: Any, index: Any) -> Any:
    """`container[index]`, also of a Python list by an index that depends on data."""
    context = active()
    if context is not None and first_choice(index) is not None and not isinstance(container, (torch.Tensor, Choice)):
        return by_key(getitem, container, key=index)
    if isinstance(container, list) and any(isinstance(item, Rows) for item in container):
        return last_of(container, index)
    if context is not None and isinstance(container, dict) and is_data_dependent(index):
        return look_up(context, container, index)
    if context is None or not _is_sequence(container) or isinstance(index, slice):
        return operate(operator.getitem, container, index)
    if not _is_partial(container) and not _reads_tensor(index):
        return operator.getitem(container, index)
    return _pick(context, list(container), index)


def _pick(context: Context, items: list[Any], index: Any) -> Any:
    """The item at a position; positions count only the items that are there."""
    at = index.reshape(()).to(torch.int64) if isinstance(index, torch.Tensor) else context.numbers.tensor(index)
    places, count = positions(context, items)
    at = torch.where(at < 0, at + count, at)
    inside = torch.logical_and(at >= 0, at < count)
    fail(fresh_test(torch.logical_not(inside)), IndexError("list index out of range"))
    values = [item.value if isinstance(item, Maybe) else item for item in items]
    if not values:
        raise IndexError("list index out of range")
    picked = values[-1]
    for place, item, value in reversed(list(zip(places[:-1], items[:-1], values[:-1], strict=True))):
        found = at.eq(place)
        found = torch.logical_and(found, item.present) if isinstance(item, Maybe) else found
        picked = choose(context, found, given(value), given(picked), None)
    return picked


def positions(context: Context, items: list[Any]) -> tuple[list[Any], torch.Tensor]:
    """Where each item of a list stands, counting only the items that are there, and how many there are."""
    count, places = context.numbers.tensor(0), []
    for item in items:
        places.append(count)
        count = count + (item.present if isinstance(item, Maybe) else 1)
    return places, count


def store(value: Any, container: Any, index: Any) -> None:
    """`container[index] = value`, also into a Python list by an index that depends on data."""
    context = active()
    if context is not None and first_choice(index) is not None and not isinstance(container, (torch.Tensor, Choice)):
        by_key(store, value, container, key=index)
        return
    if _is_partial(container) and context is not None:
        on_each(context, container, lambda: store(value, container, index))
        return
    if context is None or not isinstance(container, list) or not _reads_tensor(index):
        operator.setitem(container, index, value)
        return
    at = index.reshape(()).to(torch.int64) if isinstance(index, torch.Tensor) else context.numbers.tensor(index)
    at = torch.where(at < 0, at + len(container), at)
    outside = torch.logical_or(at < 0, at >= len(container))
    fail(fresh_test(outside), IndexError("list assignment index out of range"))
    for place, old in enumerate(container):
        container[place] = choose(context, at.eq(place), lambda: value, given(old), None)
