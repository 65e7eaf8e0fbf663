"""Capture, mending: what a trip of a loop over a dynamic size changes in Python's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch.utils import _pytree as pytree

from gaudicc.capture.mend.context import State
from gaudicc.capture.mend.heap import contents, same_contents
from gaudicc.capture.mend.internals import same_sizes
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
class Changes:
    """What a trip changes.

    Attributes:
        places: hold values of one type before and after.
        grown: lists with one more tensor.
        lost: variables that hold something else after each trip, so that they mean nothing after the loop.
    """

    places: list[Place]
    grown: list[Any]
    lost: list[int]


def changes_of(before: State, after: State) -> Changes:
    """What differs between the states before and after a trip.

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
        if isinstance(held, list) and same_contents(held, now[:-1]) and isinstance(now[-1], torch.Tensor):
            grown.append(container)
            continue
        keys = range(len(held)) if isinstance(held, list) else list(held) if isinstance(held, dict) else []
        if type(held) is set or len(held) != len(now) or (isinstance(held, dict) and list(held) != list(now)):
            refuse_loop("changes which entries a list, dict or object has", "set them before the loop")
        for key in keys:
            if held[key] is not now[key]:
                if not same_type(held[key], now[key]):
                    refuse_loop(
                        f"changes {key!r} of a list, dict or object to another type", "keep its shape and dtype"
                    )
                places.append(Place(container, key))
    return Changes(places, grown, lost)


def same_type(old: Any, new: Any) -> bool:
    """Whether two values differ in nothing but what their tensors hold."""
    (leaves, spec), (others, other_spec) = pytree.tree_flatten(old), pytree.tree_flatten(new)
    if spec != other_spec or not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
        return False
    return all(map(_same_leaf, leaves, others))


def _same_leaf(old: Any, new: Any) -> bool:
    if not isinstance(old, torch.Tensor) or not isinstance(new, torch.Tensor):
        return old is new or (type(old) is type(new) and isinstance(old, (int, float, str)) and old == new)
    return old.dtype == new.dtype and old.device == new.device and same_sizes(old, new)


def flat(values: list[Any]) -> tuple[list[Any], list[Any]]:
    """The leaves of some values, and the structure of each value."""
    parts = [pytree.tree_flatten(value) for value in values]
    return [leaf for leaves, _ in parts for leaf in leaves], [spec for _, spec in parts]


def unflat(leaves: list[Any], specs: list[Any], tensors: list[torch.Tensor]) -> list[Any]:
    """Values of these structures, their tensors replaced in order."""
    feed = iter(tensors)
    replaced = iter([next(feed) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves])
    return [pytree.tree_unflatten([next(replaced) for _ in range(spec.num_leaves)], spec) for spec in specs]
