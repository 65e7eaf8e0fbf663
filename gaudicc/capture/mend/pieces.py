"""Capture, mending: `torch.split(x, lengths.tolist())` and a loop over the pieces, as one trip over the whole.

Pieces of one tensor whose lengths are data have no shapes that a graph could hold. What a loop does to each piece, a product
here, an attention there, is done to the whole instead, where rows of one piece must not see those of another:

    for q, k, v in zip(*splits): outs.append(attention(q, k, v))    ->    attention(q, k, v, rows of one piece see each other)

Here are the lists; `piece_trip` does the trip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from gaudicc.capture.mend.context import Context, active
from gaudicc.capture.mend.outcomes import here
from gaudicc.capture.mend.values import Pieces
from gaudicc.errors import DynamicControlFlowError, Where


class Listed:
    """A sequence that is made when it is used otherwise than to split a tensor or to loop over the pieces.

    Args:
        make: makes it; None: it is as long as a dynamic size.
    """

    def __init__(self, make: Callable[[], Any] | None = None) -> None:
        self._make = make

    @cached_property
    def made(self) -> Any:
        """The sequence itself.

        Raises:
            DynamicControlFlowError: it is as long as a dynamic size.
        """
        if self._make is None:
            raise DynamicControlFlowError(
                "a list that is as long as a dynamic size is used otherwise than to split a tensor and to loop over the pieces",
                where=Where(source=here()),
                hint="keep the tensor, and compute on all of its elements at once",
            )
        return self._make()

    @property
    def is_endless(self) -> bool:
        """Whether it cannot be made."""
        return self._make is None

    def __iter__(self) -> Iterator[Any]:
        return iter(self.made)

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: Any) -> Any:
        return self.made[index]


@dataclass(frozen=True, slots=True)
class Split:
    """What `torch.split` was given.

    Attributes:
        whole: what was split.
        lengths: int64 `[pieces]`.
        dim: along which.
    """

    whole: torch.Tensor
    lengths: torch.Tensor
    dim: int


@dataclass(frozen=True, slots=True)
class Zipped:
    """`zip` of the pieces of several tensors, split alike."""

    splits: tuple[Split, ...]
    pieces: tuple[Any, ...]

    def __iter__(self) -> Iterator[Any]:
        return zip(*self.pieces, strict=False)


def listed(context: Context, numbers: torch.Tensor, as_list: Any) -> Any:
    """Remembers which tensor a list of numbers was read from."""
    context.listed[id(as_list)] = (as_list, numbers)
    return as_list


def split(context: Context, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any | None:
    """`torch.split` by a list that was read from a tensor; None for any other call."""
    if name not in ("split", "split_with_sizes"):
        return None
    given = [*args, *kwargs.values()]
    sizes = next((item for item in given if id(item) in context.listed), None)
    if sizes is None:
        return None
    whole, rest = args[0], [item for item in given[1:] if item is not sizes]
    dim = (rest[0] if rest else 0) % whole.dim()
    pieces = Listed(None if isinstance(sizes, Listed) else lambda: function(whole, list(sizes), dim))
    context.splits[id(pieces)] = (pieces, Split(whole, context.listed[id(sizes)][1], dim))
    return pieces


def zip_(*items: Any, **kwargs: Any) -> Any:
    """`zip(...)`: the pieces of several tensors that were split by one tensor of lengths stay known as such."""
    context = active()
    found = _zipped(context, items) if context is not None else None
    return zip(*items, **kwargs) if found is None else found  # noqa: B905  # as it was written


def _zipped(context: Context, items: tuple[Any, ...]) -> Zipped | None:
    splits = [context.splits[id(item)][1] for item in items if id(item) in context.splits]
    alike = len(splits) == len(items) > 0 and all(entry.lengths is splits[0].lengths for entry in splits)
    return Zipped(tuple(splits), items) if alike else None


def join_pieces(name: str, items: list[Any], dim: int) -> torch.Tensor:
    """`torch.cat` of what a loop over pieces filled: the whole.

    Raises:
        DynamicControlFlowError: any other function, dim or list.
    """
    (first, *others) = items
    joins = name in ("cat", "concat", "concatenate") and isinstance(first, Pieces) and not others
    if not joins or dim % first.value.dim() != first.dim:
        raise DynamicControlFlowError(
            f"torch.{name} joins pieces whose lengths depend on data otherwise than they were split",
            where=Where(source=here(), op=name),
            hint="use torch.cat along the dim of the pieces, with nothing beside them",
        )
    whole: torch.Tensor = first.value
    return whole
