"""Capture, mending: operations on lists and dicts whose elements depend on data.

A list has conditional items (`Maybe`), a dict values that are missing on some paths. What mending has no direct form for
runs once for every set of elements that the container can have, from the same state, and the results are merged as
those of a branch are. Every condition doubles the runs, so that only a few are taken.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinMethodType
from typing import Any

import torch

from gaudicc.capture.mend.context import Access, Context, active
from gaudicc.capture.mend.heap import contents, refill
from gaudicc.capture.mend.values import (
    Choice,
    Maybe,
    Missing,
    by_key,
    distribute,
    first_choice,
    holds_missing,
    refuse_partial,
)

_LIMIT = 4
_KEEPS: dict[type, frozenset[str]] = {
    list: frozenset({"append", "extend", "clear", "copy"}),
    dict: frozenset({"clear"}),
    deque: frozenset({"append", "extend", "clear", "copy"}),
}
"""Methods that are right on conditional elements as they are."""
_HELPERS = "gaudicc.capture.mend.builtin"
_LIST_HELPERS = frozenset({"len_", "sum_", "any_", "all_", "enumerate_", "list_", "bool_", "isinstance_"})
_JOINS = (torch.stack, torch.cat, torch.concat, torch.hstack, torch.vstack)
_TENSORS = (torch.tensor, torch.as_tensor)


def condition(container: object) -> torch.Tensor | None:
    """One of the predicates that decide which elements a container has, or None."""
    if isinstance(container, (list, deque)):
        return next((item.present for item in container if isinstance(item, Maybe)), None)
    if isinstance(container, dict):
        return next(
            (value._pred for value in container.values() if isinstance(value, Choice) and holds_missing(value)), None
        )
    return None


def on_each(context: Context, container: Any, run: Callable[[], Any], *touched: Any, depth: int = 0) -> Any:
    """The merged value of `run`, which reads or changes `container`, over all sets of elements that it can have.

    Args:
        context: of the traced run.
        container: a list or dict.
        run: the operation, on the container itself.
        touched: other objects that it may change.
        depth: how many conditions are decided already.

    Raises:
        DynamicControlFlowError: the elements depend on too many conditions.
    """
    _resolve(context, container)
    test = condition(container)
    if test is None:
        return _stored(run())
    if depth == _LIMIT:
        refuse_partial("an operation that needs to know which elements there are")
    again = lambda: on_each(context, container, run, *touched, depth=depth + 1)  # noqa: E731
    return context.choose(test, again, again, Access(lambda: (container, *touched), lambda _: None))


def _stored(value: Any) -> Any:
    """A result as something that can be merged: iterators and views of dicts as lists."""
    if isinstance(value, (zip, map, filter, reversed, enumerate, *_VIEWS)) or type(value) in _ITERATORS:
        return list(value)
    return value


_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_ITERATORS = frozenset(map(type, (iter([]), iter(()), iter({}), reversed([]), iter({}.items()), iter({}.values()))))


def _resolve(context: Context, container: Any) -> None:
    """Drops elements that the present predicate excludes, and makes those that it implies unconditional."""
    held = contents(container)
    if isinstance(held, list):
        new: Any = list(_items(context, held))
        same = len(new) == len(held) and all(a is b for a, b in zip(new, held, strict=True))
    else:
        resolved = {key: _value(context, value) for key, value in held.items()}
        new = {key: value for key, value in resolved.items() if not isinstance(value, Missing)}
        same = len(new) == len(held) and all(new[key] is held[key] for key in held)
    if not same:
        refill(container, new)


def _items(context: Context, held: list[Any]) -> Iterator[Any]:
    for item in held:
        known = context.predicates.decided(item.present, context.pred) if isinstance(item, Maybe) else None
        if known is None:
            yield item
        elif known:
            yield item.value


def _value(context: Context, value: Any) -> Any:
    while isinstance(value, Choice) and holds_missing(value):
        known = context.predicates.decided(value._pred, context.pred)
        if known is None:
            return value
        value = value._then if known else value._orelse
    return value


def on_spread(
    context: Context, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[], Any] | None:
    """How to make a call whose arguments themselves are there on some paths only (`f(*items)`), or None."""
    if any(isinstance(arg, Maybe) for arg in args):
        items = list(args)
        return lambda: on_each(context, items, lambda: function(*items, **kwargs))
    if condition(kwargs) is not None:
        return lambda: on_each(context, kwargs, lambda: function(*args, **kwargs))
    return None


def on_containers(
    context: Context, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[], Any] | None:
    """How to call code that does not know conditional elements with a container that has some, or None."""
    owner = function.__self__ if isinstance(function, BuiltinMethodType) else None
    if owner is not None and function.__name__ in _KEEPS.get(type(owner), frozenset()):
        args_given: tuple[Any, ...] = tuple(arg for arg in args if isinstance(arg, dict))
    elif _takes_lists(function) or (function in _TENSORS and kwargs.get("dtype") is not None):
        args_given = tuple(arg for arg in args if isinstance(arg, (dict, deque)))
    else:
        args_given = (owner, *args, *kwargs.values())
    for container in args_given:
        if condition(container) is not None:
            return lambda: on_each(context, container, lambda: function(*args, **kwargs), owner, *args)
    return None


def _takes_lists(function: Any) -> bool:
    own = getattr(function, "__module__", None) == _HELPERS and function.__name__ in _LIST_HELPERS
    return own or function in _JOINS


def operate(function: Callable[..., Any], *operands: Any) -> Any:
    """An operator on values of which some may be containers with conditional elements."""
    context = active()
    if context is not None:
        fills_in = function is operator.mod and isinstance(operands[0], str) and first_choice(operands) is not None
        if fills_in or (function in _COMPARISONS and any(map(_holds_choice, operands))):
            return distribute(partial(operate, function), operands, {})
        for container in operands:
            if condition(container) is not None and not _concatenates(function, operands):
                return on_each(context, container, lambda: operate(function, *operands), *operands)
    return function(*operands)


_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)


def _holds_choice(operand: Any) -> bool:
    """Whether a list or tuple has an item that differs from path to path, which Python would ask whether it is equal."""
    return isinstance(operand, (list, tuple)) and first_choice(operand) is not None


def _concatenates(function: Callable[..., Any], operands: tuple[Any, ...]) -> bool:
    return function in (operator.add, operator.iadd) and all(isinstance(item, list) for item in operands)


def unpack(value: Any) -> Any:
    """A value whose items are assigned to several names."""
    context = active()
    if context is None or condition(value) is None:
        return value
    return on_each(context, value, lambda: tuple(value))


def text(function: Callable[..., str], *parts: Any) -> Any:
    """A formatted string of some parts: one for each value that they can have."""
    return function(*parts) if active() is None else distribute(function, parts, {})


def spread(value: Any) -> Any:
    """A dict whose entries become part of another."""
    if active() is not None and condition(value) is not None:
        refuse_partial("`**` in a dict")
    return value


def delete(container: Any, index: Any) -> None:
    """`del container[index]`."""
    if active() is not None and first_choice(index) is not None:
        by_key(operator.delitem, container, key=index)
    else:
        operate(operator.delitem, container, index)


def delete_attribute(owner: Any, name: str) -> None:
    """`del owner.name`."""
    if active() is not None and holds_missing(getattr(owner, "__dict__", {}).get(name)):
        refuse_partial("`del` of an attribute that is set on some paths only")
    delattr(owner, name)
