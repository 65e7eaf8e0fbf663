"""Capture, mending: shallow copies of every mutable Python container that a branch could change.

A branch is run for each outcome from the same state; what it stored into lists, dicts and attributes is undone before
the other side runs, and merged afterwards. The same copies leave no trace of a capture in the user's model.
"""

from __future__ import annotations

import functools
import gc
import logging
import types
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from gaudicc.capture.mend.marks import Marks, mark_of
from gaudicc.capture.mend.outcomes import is_installed, is_user_file
from gaudicc.capture.mend.source import nested_codes
from gaudicc.capture.mend.values import Choice, Many, Maybe, Undefined

_LEAVES = (
    torch.Tensor, str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size, torch.SymInt,
    torch.SymFloat, torch.SymBool, torch.Generator, range, slice, types.ModuleType, logging.Logger,
    types.BuiltinFunctionType, types.MethodWrapperType, types.CodeType, torch._ops.OpOverload,
    torch._ops.OpOverloadPacket, Undefined, Many,
)  # fmt: skip


_PLAIN: dict[type, Any] = {}


def _plain(container: Any) -> Any:
    """Python's own class of a container: a user's `__getitem__` may make something of what is held, and must not be asked."""
    kind = type(container)
    if kind not in _PLAIN:
        _PLAIN[kind] = next(base for base in kind.__mro__ if base.__module__ in ("builtins", "collections"))
    return _PLAIN[kind]


def contents(container: Any) -> Any:
    """A shallow copy of what a container holds."""
    plain = _plain(container)
    if issubclass(plain, dict):
        return dict(plain.items(container))
    return (list if issubclass(plain, (list, deque)) else set)(plain.__iter__(container))


def refill(container: Any, held: Any) -> None:
    """Make a container hold what `contents` returned earlier; a dict with the same keys may be being iterated."""
    plain = _plain(container)
    if not issubclass(plain, dict):
        plain.clear(container)
        (plain.extend if issubclass(plain, (list, deque)) else plain.update)(container, held)
        return
    if list(plain.keys(container)) != list(held):
        plain.clear(container)
    for key, value in held.items():
        plain.__setitem__(container, key, value)


def same_contents(left: Any, right: Any) -> bool:
    """Whether two copies hold the same objects (identity, not equality: tensors have no cheap equality)."""
    if isinstance(left, list):
        return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))
    if isinstance(left, dict):
        return list(left) == list(right) and all(right[key] is value for key, value in left.items())
    return bool(left == right)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return list(_plain(value).values(value))
    if isinstance(value, (list, tuple, deque, set, frozenset)):
        return list(_plain(value).__iter__(value))
    if isinstance(value, types.MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, types.FunctionType):
        return _named(value)
    if isinstance(value, functools.partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, Choice):
        return (value._then, value._orelse)
    if isinstance(value, Maybe):
        return (value.value,)
    if isinstance(value, type):
        held = vars(value).values() if mark_of(value) is not None else ()
        return [item for item in held if isinstance(item, (list, dict, set, deque))]
    if isinstance(value, Iterator):
        return gc.get_referents(value)
    return (type(value), getattr(value, "__dict__", None), getattr(value, "__wrapped__", None))


def _named(function: types.FunctionType) -> list[Any]:
    """What a function of the user's can change when it is called: its cells and defaults, what it names, its attributes."""
    filename = function.__code__.co_filename
    if not is_user_file(filename):
        return []
    if is_installed(filename):  # what a library keeps for itself is no state of the model
        return [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
    cells = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
    names = [function.__globals__.get(name) for code in nested_codes(function.__code__) for name in code.co_names]
    kinds = (list, dict, set, deque, types.FunctionType, type)
    named = [value for value in names if isinstance(value, kinds)]
    return [*cells, *named, function.__defaults__, function.__kwdefaults__, function.__dict__ or None]


def _is_empty(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False


@dataclass(slots=True)
class Reached:
    """What is reachable from some objects.

    Attributes:
        containers: every list, dict, set and attribute dict, by id.
        marks: of the objects that cannot be merged.
        owners: id of an attribute dict -> the object whose attributes it holds.
    """

    containers: dict[int, Any] = field(default_factory=dict)
    marks: Marks = field(default_factory=dict)
    owners: dict[int, Any] = field(default_factory=dict)


def reach(roots: Iterable[Any], *, marked: bool = True) -> Reached:
    """Everything that is reachable from `roots` and can change; `marked`: also what only marks are taken of."""
    found = Reached()
    seen: set[int] = set()
    pending = list(roots)
    while pending:
        value = pending.pop()
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, (list, dict, set, deque)):
            found.containers[id(value)] = value
        else:
            mark = mark_of(value) if marked else None
            if mark is not None:
                found.marks[id(value)] = (value, mark)
            attributes = None if isinstance(value, type) else getattr(value, "__dict__", None)
            if type(attributes) is dict:
                found.owners[id(attributes)] = value
        if marked or not isinstance(value, type):
            pending.extend(_inside(value))
        if isinstance(value, (list, dict)) and type(value) not in (list, dict):
            pending.append(getattr(value, "__dict__", None))
    return found


def reachable(roots: Iterable[Any]) -> dict[int, Any]:
    """Every list, dict, set and attribute dict reachable from `roots`, by id."""
    return reach(roots).containers


def plainly_held(roots: Iterable[Any]) -> set[int]:
    """The ids of the containers that are roots, or inside such lists, tuples and dicts: no other code can see them."""
    found: set[int] = set()
    pending = list(roots)
    while pending:
        value = pending.pop()
        if type(value) in (list, tuple, dict, deque) and id(value) not in found:
            found.add(id(value))
            pending.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, (Choice, Maybe)):
            pending.extend(_inside(value))
    return found


@dataclass(frozen=True, slots=True)
class Heap:
    """Shallow copies of containers: id -> (the container itself, what it held), and marks of what is not copied."""

    held: dict[int, tuple[Any, Any]]
    marks: Marks = field(default_factory=dict)
    owners: dict[int, Any] = field(default_factory=dict)

    @classmethod
    def take(cls, roots: Iterable[Any], *, marked: bool = True) -> Heap:
        """Copy every container reachable from `roots`."""
        found = reach(roots, marked=marked)
        held = {key: (value, contents(value)) for key, value in found.containers.items()}
        return cls(held, found.marks, found.owners)

    def restore(self) -> None:
        """Put every container back to what it held."""
        for container, held in self.held.values():
            if not same_contents(contents(container), held):
                refill(container, held)
