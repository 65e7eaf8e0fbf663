"""Capture, mending: `list(range(n))` of a dynamic size, and what slices and sums make of it.

Such a list is kept as the ranges it is made of. Its length and its items are sizes; what Python has to know to cut it, as
whether it has an item at all, is a decision on sizes like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import torch

from gaudicc.capture.mend.outcomes import NeedsRewrite, here
from gaudicc.capture.mend.trips import SizeRange
from gaudicc.capture.mend.values import OfSizes
from gaudicc.errors import DynamicControlFlowError, Where

_Part = SizeRange | list[Any]


class SizeList(OfSizes):
    """A list of numbers, as long as sizes say.

    Args:
        parts: ranges and lists of numbers, one behind the other.
    """

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.parts = [part for part in parts if _count(part) > 0]

    @property
    def length(self) -> Any:
        """How many numbers it holds: an int or a size."""
        return sum(map(_count, self.parts))

    def tensor(self, dtype: torch.dtype | None = None, device: Any = None) -> torch.Tensor:
        """The numbers as a tensor `[length]`, int64 by default."""
        runs = [
            torch.arange(part.start, part.stop, part.step, dtype=dtype or torch.int64, device=device)
            if isinstance(part, SizeRange)
            else torch.tensor(part, dtype=dtype, device=device)
            for part in self.parts
        ]
        return torch.cat(runs) if runs else torch.tensor([], dtype=dtype, device=device)

    def refuse(self, use: str) -> NoReturn:
        """Refuses a use that needs every number by itself."""
        raise DynamicControlFlowError(
            f"a list that is as long as a dynamic size {use}",
            where=Where(source=here()),
            hint="loop over it with a `for` statement, or make a tensor of it",
        )

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._slice(index)
        at = index if index >= 0 else index + self.length
        if at < 0:
            raise IndexError("list index out of range")
        for part in self.parts:
            count = _count(part)
            if at < count:
                return part.start + at * part.step if isinstance(part, SizeRange) else part[_plain(at, len(part))]
            at = at - count
        raise IndexError("list index out of range")

    def _slice(self, index: slice) -> SizeList:
        step = 1 if index.step is None else index.step
        if step < 0:
            last = self.length - 1
            start, stop = (None if end is None else last - _end(end, last + 1, -1) for end in (index.start, index.stop))
            backwards = [reversed(part) if isinstance(part, SizeRange) else part[::-1] for part in self.parts[::-1]]
            return SizeList(backwards)._slice(slice(start, stop, -step))
        start = _end(0 if index.start is None else index.start, self.length, 0)
        stop = self.length if index.stop is None else _end(index.stop, self.length, 0)
        kept = SizeList(list(self._between(start, stop)))
        if step == 1 or not kept.parts:
            return kept
        (part, *others) = kept.parts
        if others:
            self.refuse("and was joined with another is cut with a step")
        if isinstance(part, list):
            return SizeList([part[::step]])
        return SizeList([SizeRange(part.start, part.stop, part.step * step)])

    def _between(self, start: Any, stop: Any) -> Iterator[_Part]:
        for part in self.parts:
            count = _count(part)
            first, last = _end(start, count, 0, counts_back=False), _end(stop, count, 0, counts_back=False)
            if isinstance(part, SizeRange):
                yield SizeRange(part.start + first * part.step, part.start + last * part.step, part.step)
            else:
                yield part[_plain(first, len(part)) : _plain(last, len(part))]
            start, stop = start - count, stop - count

    def __add__(self, other: Any) -> SizeList:
        return SizeList([*self.parts, *_parts(other)])

    def __radd__(self, other: Any) -> SizeList:
        return SizeList([*_parts(other), *self.parts])

    def __reversed__(self) -> SizeList:
        return self._slice(slice(None, None, -1))

    def __bool__(self) -> bool:
        return bool(self.parts)

    def __len__(self) -> int:
        raise NeedsRewrite

    def __iter__(self) -> Iterator[Any]:
        self.refuse("is listed where no `for` statement or comprehension does")

    def __contains__(self, item: Any) -> bool:
        self.refuse("is searched")

    def __eq__(self, other: object) -> bool:
        self.refuse("is compared")

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.refuse(f"is asked for `{name}`")


def _parts(other: Any) -> list[_Part]:
    return other.parts if isinstance(other, SizeList) else [list(other)]


def _count(part: _Part) -> Any:
    if isinstance(part, list):
        return len(part)
    return part.trips if part.span >= 1 else 0


def _end(at: Any, length: Any, least: int, *, counts_back: bool = True) -> Any:
    """An end of a slice, counted from the front, from `least` up to the length (or, backwards, one less)."""
    if at < 0 and counts_back:
        at = at + length
    if at < least:
        return least
    return length + least if at > length + least else at


def _plain(at: Any, most: int) -> int:
    """A position from 0 to `most` as a plain number."""
    return next(number for number in range(most + 1) if at <= number)
