"""Capture, mending: what a trip of a loop over a dynamic size changes in Python's state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch.utils import _pytree as pytree

from gaudicc.capture.mend.context import Context, State
from gaudicc.capture.mend.heap import contents, same_contents
from gaudicc.capture.mend.internals import same_sizes
from gaudicc.capture.mend.numbers import KINDS
from gaudicc.capture.mend.outcomes import here
from gaudicc.errors import DynamicControlFlowError, Where


def refuse_loop(what: str, hint: str) -> NoReturn:
    """Refuses a loop over a dynamic size at the line that runs."""
    raise DynamicControlFlowError(f"a loop over a dynamic size {what}", where=Where(source=here()), hint=hint)


@dataclass(frozen=True, slots=True)
class Place:
    """Where Python keeps a carried value: the variable of a number, or the entry of a container."""

    container: Any
    key: Any

    def of(self, state: State) -> Any:
        """The value in a state."""
        if self.container is None:
            return state.variables[self.key]
        return state.heap.held[id(self.container)][1][self.key]


@dataclass(frozen=True, slots=True)
class Grown:
    """A list to which each trip appends so many values."""

    container: Any
    count: int

    def appended(self) -> list[Any]:
        """What the trip that ran last appended."""
        return list(contents(self.container)[-self.count :])


@dataclass(frozen=True, slots=True)
class Changes:
    """What a trip changes.

    Attributes:
        places: hold values of one type before and after.
        grown: lists that have more values.
        lost: variables that hold something else after each trip, so that they mean nothing after the loop.
    """

    places: list[Place]
    grown: list[Grown]
    lost: list[int]

    def within(self, others: Changes) -> bool:
        """Whether all that changes is among what changes there."""
        return self._keys() <= others._keys()

    def _keys(self) -> set[tuple[int, Any]]:
        keys = {(id(place.container), place.key) for place in self.places}
        lists = {(id(grown.container), ("appended", grown.count)) for grown in self.grown}
        return keys | lists | {(id(None), index) for index in self.lost}


def changes_of(before: State, after: State, refuse: Callable[[str, str], NoReturn] = refuse_loop) -> Changes:
    """What differs between the states before and after a trip.

    Args:
        before: a trip.
        after: a trip.
        refuse: says what cannot be carried, and what to do instead.

    Raises:
        DynamicControlFlowError: a container changes in a way that no later trip can take up.
    """
    places, grown, lost = [], [], []
    for index, (old, new) in enumerate(zip(before.variables, after.variables, strict=True)):
        if old is not new:
            (places.append(Place(None, index)) if same_type(old, new) else lost.append(index))
    for container, held in before.heap.held.values():
        now = contents(container)
        if same_contents(held, now):
            continue
        if isinstance(held, list) and len(now) > len(held) and same_contents(held, now[: len(held)]):
            grown.append(Grown(container, len(now) - len(held)))
            continue
        keys = range(len(held)) if isinstance(held, list) else list(held) if isinstance(held, dict) else []
        if type(held) is set or len(held) != len(now) or (isinstance(held, dict) and list(held) != list(now)):
            refuse("changes which entries a list, dict or object has", "set them before the loop")
        for key in keys:
            if held[key] is not now[key]:
                if not same_type(held[key], now[key]):
                    refuse(f"changes {key!r} of a list, dict or object to another type", "keep its shape and dtype")
                places.append(Place(container, key))
    return Changes(places, grown, lost)


def same_type(old: Any, new: Any) -> bool:
    """Whether two values differ in nothing but what their tensors hold, and their numbers."""
    (leaves, spec), (others, other_spec) = pytree.tree_flatten(old), pytree.tree_flatten(new)
    if spec != other_spec or not any(isinstance(leaf, torch.Tensor) or _kind(leaf) for leaf in leaves):
        return False
    return all(map(_same_leaf, leaves, others))


def _kind(leaf: Any) -> torch.dtype | None:
    return KINDS.get(type(leaf))


def _same_leaf(old: Any, new: Any) -> bool:
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        return old.dtype == new.dtype and old.device == new.device and same_sizes(old, new)
    return _unchanged(old, new) or (_kind(old) is not None and _kind(old) == _kind(new))


def _unchanged(old: Any, new: Any) -> bool:
    """Whether a value that is no tensor is the same; bits of floats, so that 0.0 and -0.0 stay apart."""
    if old is new or type(old) is not type(new):
        return old is new
    if isinstance(old, float):
        return bool(old.hex() == new.hex())
    return isinstance(old, (int, str)) and bool(old == new)


@dataclass(frozen=True, slots=True)
class Carried:
    """What of the values at some places one trip hands to the next: their tensors, and the numbers that change.

    Attributes:
        places: where the values are.
        leaves: of all values: the type of a carried number, `torch.Tensor`, or a constant.
        moving: which of the leaves are carried.
        specs: the structure of each value.
    """

    places: list[Place]
    leaves: list[Any]
    moving: list[bool]
    specs: list[Any]

    @classmethod
    def of(cls, places: list[Place], before: State, after: State) -> Carried:
        """What is carried, from the states around a trip."""
        (old, specs), (new, _) = (_flat(places, state) for state in (before, after))
        moving = [isinstance(a, torch.Tensor) or not _unchanged(a, b) for a, b in zip(old, new, strict=True)]
        return cls(places, old, moving, specs)

    def tensors(self, context: Context, state: State) -> list[torch.Tensor] | None:
        """The carried values of a state, numbers as tensors of no dims; None if a value there is of another type."""
        leaves, specs = _flat(self.places, state)
        if specs != self.specs or not all(map(_same_leaf, self.leaves, leaves)):
            return None
        pairs = list(zip(self.leaves, leaves, self.moving, strict=True))
        if not all(moving or _unchanged(old, new) for old, new, moving in pairs):
            return None
        return [
            leaf if isinstance(leaf, torch.Tensor) else context.numbers.tensor(leaf)
            for leaf, moving in zip(leaves, self.moving, strict=True)
            if moving
        ]

    def values(self, context: Context, tensors: list[torch.Tensor]) -> list[Any]:
        """The values at the places, of these carried ones."""
        feed = iter(tensors)
        leaves = [
            leaf if not moving else next(feed) if isinstance(leaf, torch.Tensor) else context.numbers.read(next(feed))
            for leaf, moving in zip(self.leaves, self.moving, strict=True)
        ]
        parts = iter(leaves)
        return [pytree.tree_unflatten([next(parts) for _ in range(spec.num_leaves)], spec) for spec in self.specs]


def _flat(places: list[Place], state: State) -> tuple[list[Any], list[Any]]:
    """The leaves of the values at some places, and the structure of each value."""
    parts = [pytree.tree_flatten(place.of(state)) for place in places]
    return [leaf for leaves, _ in parts for leaf in leaves], [spec for _, spec in parts]
