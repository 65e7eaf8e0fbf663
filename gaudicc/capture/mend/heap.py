"""Capture, mending: shallow copies of every mutable Python container that a branch could change.

A branch is run for each outcome from the same state; what it stored into lists, dicts and attributes is undone before
the other side runs, and merged afterwards. The same copies leave no trace of a capture in the user's model.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from gaudicc.capture.mend.values import Choice, Maybe, Undefined

_LEAVES = (
    torch.Tensor, str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device, torch.Size,
    torch.SymInt, torch.SymFloat, torch.SymBool, torch.Generator, range, slice, types.ModuleType, types.FunctionType,
    types.BuiltinFunctionType, types.MethodWrapperType, types.CodeType, torch._ops.OpOverload,
    torch._ops.OpOverloadPacket, Undefined,
)  # fmt: skip


def contents(container: Any) -> Any:
    """A shallow copy of what a container holds."""
    if isinstance(container, (list, deque)):
        return list(container)
    if isinstance(container, dict):
        return dict(container)
    return set(container)


def refill(container: Any, held: Any) -> None:
    """Make a container hold what `contents` returned earlier; a dict with the same keys may be being iterated."""
    if isinstance(container, dict) and list(container) == list(held):
        for key, value in held.items():
            container[key] = value
        return
    container.clear()
    if isinstance(container, (list, deque)):
        container.extend(held)
    else:
        container.update(held)


def same_contents(left: Any, right: Any) -> bool:
    """Whether two copies hold the same objects (identity, not equality: tensors have no cheap equality)."""
    if isinstance(left, list):
        return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(right[key] is value for key, value in left.items())
    return bool(left == right)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, (list, tuple, deque, set, frozenset)):
        return value
    if isinstance(value, types.MethodType):
        return (value.__self__,)
    if isinstance(value, Choice):
        return (value._then, value._orelse)
    if isinstance(value, Maybe):
        return (value.value,)
    return (getattr(value, "__dict__", None),)


def reachable(roots: Iterable[Any]) -> dict[int, Any]:
    """Every list, dict, set and attribute dict reachable from `roots`, by id."""
    found: dict[int, Any] = {}
    seen: set[int] = set()
    pending = list(roots)
    while pending:
        value = pending.pop()
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (list, dict, set, deque)):
            found[id(value)] = value
        pending.extend(_inside(value))
        if isinstance(value, (list, dict)) and type(value) not in (list, dict):
            pending.append(getattr(value, "__dict__", None))
    return found


@dataclass(frozen=True, slots=True)
class Heap:
    """Shallow copies of containers: id -> (the container itself, what it held)."""

    held: dict[int, tuple[Any, Any]]

    @classmethod
    def take(cls, roots: Iterable[Any]) -> Heap:
        """Copy every container reachable from `roots`."""
        return cls({key: (value, contents(value)) for key, value in reachable(roots).items()})

    def restore(self) -> None:
        """Put every container back to what it held."""
        for container, held in self.held.values():
            if not same_contents(contents(container), held):
                refill(container, held)
