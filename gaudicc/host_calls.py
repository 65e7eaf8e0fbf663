"""Functions that are run on the host before a call: their results are inputs of the program.

Where the values of a small integer input decide how many tokens a picture has and which of them belong together, no graph can
follow; the tensors that say so can be computed before the graph runs, by the very function that eager PyTorch would call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from gaudicc.errors import InputError, Where


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of a call: which one it is of the leaves of the model's arguments and the tensors of the calls before."""

    leaf: int


@dataclass(frozen=True, slots=True)
class HostCall:
    """One call of a function, in the order in which the model makes them.

    Attributes:
        function: pure: it reads its arguments and nothing else.
        args: its arguments, tensors by place.
        kwargs: likewise.
        names: one keyword of the program for each tensor that it gives.
        result: what it gave, tensors by the number of the keyword.
        lays_out: whether it reads floating-point tensors, so that all sizes of those that it gives may depend on data.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...] = ()
    result: Any = None
    lays_out: bool = False

    def run(self, leaves: Sequence[Any]) -> Any:
        """Calls the function; `leaves`: those of the model's arguments, then the tensors of the calls before."""

        def filled(value: Any) -> Any:
            return leaves[value.leaf] if isinstance(value, Place) else value

        args, kwargs = pytree.tree_map(filled, (self.args, self.kwargs))
        with torch.no_grad():
            return self.function(*args, **kwargs)

    def tensors(self, leaves: Sequence[Any]) -> list[torch.Tensor]:
        """The tensors that the function gives.

        Raises:
            InputError: the rest of its result is another one than when the model was compiled.
        """
        given, expected = pytree.tree_leaves(self.run(leaves)), pytree.tree_leaves(self.result)
        same = len(given) == len(expected) and all(
            isinstance(value, torch.Tensor) if isinstance(known, Place) else value == known
            for value, known in zip(given, expected, strict=True)
        )
        if not same:
            raise InputError(
                f"{self.function.__name__} gives something else than when the model was compiled",
                where=Where(stage="the call"),
                hint="compile for such inputs by themselves",
            )
        return [value for value in given if isinstance(value, torch.Tensor)]

    def made(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The result, with these tensors in it."""
        return pytree.tree_map(lambda value: tensors[value.leaf] if isinstance(value, Place) else value, self.result)


def with_results(calls: Sequence[HostCall], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords of a call in canonical form, those that the host computes among them."""
    names = [name for call in calls for name in call.names]
    computed = operands_of(calls, args, kwargs)[-len(names) :] if names else []
    return dict(sorted({**kwargs, **dict(zip(names, computed, strict=True))}.items()))


def operands_of(calls: Sequence[HostCall], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What a call after these ones may read: the leaves of the model's arguments, then the tensors that they give."""
    leaves: list[Any] = pytree.tree_leaves((args, kwargs))
    for call in calls:
        leaves += call.tensors(leaves)
    return leaves
