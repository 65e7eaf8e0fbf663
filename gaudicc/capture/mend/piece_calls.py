"""Capture, mending: the torch calls of one trip of a loop over pieces, to be compared with those over other lengths."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from gaudicc.capture.mend.internals import SYMBOLIC, same_expression
from gaudicc.capture.mend.piece_rules import Action, NotApart, action_of
from gaudicc.capture.mend.recorder import tensors_in


@dataclass
class Calls:
    """The torch calls of one trip, sizes of a piece named `L`; stands among the context's recorders.

    Attributes:
        length: of a piece in this run.
        made: name, arguments with tensors by where they come from, and what the call does to rows.
    """

    length: Any
    pieces: list[torch.Tensor]
    expected: Calls | None = None
    same: torch.Tensor | None = None
    made: list[tuple[str, Any]] = field(default_factory=list)
    actions: list[Action | None] = field(default_factory=list)
    zeros: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._alive: list[Any] = list(self.pieces)
        self._names: dict[int, Any] = {id(tensor): ("made", i) for i, tensor in enumerate(self._alive)}
        self.rows: list[Any] = []

    def call(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Notes a call and, where it is known what to expect, that it is this one; returns arguments that hide other pieces."""
        self.made.append((name, self._describe((args, kwargs))))
        self._keywords = kwargs
        at = len(self.made) - 1
        if self.expected is not None and not _alike(self.expected.made[at : at + 1], self.made[at:]):
            raise NotApart(f"does something else where a piece has {self.length} rows ({name})")
        if self.expected is None or self.same is None or at >= len(self.expected.actions):
            return args, kwargs
        action = self.expected.actions[at]
        return (args, kwargs) if action is None else action(self.same, args, kwargs)

    def result(self, args: Any, value: Any, written: list[torch.Tensor]) -> None:
        """Notes what a call gave."""
        for i, tensor in enumerate(tensors_in(value)):
            self._names[id(tensor)] = (
                "made",
                len(self.made),
                i,
            )  # anew: what makes a copy of some pieces gives others as they are
            self._alive.append(tensor)
        if written:
            raise NotApart("writes in place")
        if self.expected is None:
            name = self.made[len(self.actions)][0]
            self.actions.append(action_of(name, args[0], self._keywords, value, self.length, self.zeros))

    def keep(self, values: list[Any]) -> None:
        """Notes what is kept of the trip, which ends it."""
        self.call("kept", (values,), {})
        if self.expected is not None and len(self.made) < len(self.expected.made):
            raise NotApart(f"does less where a piece has {self.length} rows")

    def _describe(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            self._alive.append(value)
            return self._names.get(id(value), ("outside", id(value)))
        if isinstance(value, SYMBOLIC) and same_expression(value, self.length):
            return "L"
        if isinstance(value, (list, tuple)):
            return tuple(self._describe(item) for item in value)
        if isinstance(value, dict):
            return tuple((str(key), self._describe(item)) for key, item in value.items())
        if isinstance(value, slice):
            return "slice", self._describe([value.start, value.stop, value.step])
        return type(value).__name__, str(value)


def _alike(expected: Any, made: Any) -> bool:
    """Whether two descriptions of calls are of one call; a length that is a number in one of them is `L` in the other."""
    if expected == "L" and not isinstance(made, tuple):
        return bool(made == "L")
    if expected == "L":
        return bool(made[0] == "int")
    if isinstance(expected, (tuple, list)) and isinstance(made, (tuple, list)) and len(expected) == len(made):
        return all(map(_alike, expected, made))
    return bool(expected == made)
