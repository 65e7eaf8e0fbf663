"""Capture, mending: `while` and `for` of rewritten functions, and the iterables that depend on data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gaudicc.capture.mend.context import Access, Context, Return, Signal, active
from gaudicc.capture.mend.control import Block, Ending
from gaudicc.capture.mend.data_trip import Course
from gaudicc.capture.mend.internals import is_data_dependent, is_fixed, symbol_name
from gaudicc.capture.mend.loops import Step, loop
from gaudicc.capture.mend.outcomes import here
from gaudicc.capture.mend.partial import condition, on_each
from gaudicc.capture.mend.piece_trip import run_pieces
from gaudicc.capture.mend.size_lists import SizeList
from gaudicc.capture.mend.trips import SizeRange, run_trips
from gaudicc.capture.mend.truth import truth
from gaudicc.capture.mend.values import Maybe
from gaudicc.errors import DynamicControlFlowError, Where


@dataclass(frozen=True, slots=True)
class SymbolicRange:
    """`range` whose bounds depend on data."""

    start: Any
    stop: Any
    step: int

    def __iter__(self) -> Iterator[Any]:
        raise DynamicControlFlowError(
            "code that was not rewritten loops over a range whose length depends on data",
            where=Where(source=here()),
            hint="loop over it with a `for` statement",
        )


@dataclass(frozen=True, slots=True)
class Enumerated:
    """`enumerate` of an iterable whose length depends on data."""

    items: Any
    start: int


def while_(test: Callable[[], Any], body: Block, orelse: Block | None, access: Access) -> Ending:
    """A `while` statement of a rewritten function."""
    if active() is None:
        while truth(test()):
            ending = body()
            if ending is Signal.BREAK:
                return None
            if isinstance(ending, Return):
                return ending
        return orelse() if orelse else None

    def steps() -> Iterator[Step]:
        while True:
            yield Step(truth(test()))

    course = Course(lambda _number: None, lambda _number: truth(test()))
    return loop(steps(), lambda _item: body(), orelse, access, course)


def for_(items: Any, body: Callable[[Any], Any], orelse: Block | None, access: Access) -> Ending:
    """A `for` statement of a rewritten function."""
    context = active()
    if context is not None:
        if isinstance(items, dict) and condition(items) is not None:
            items = on_each(context, items, lambda: list(items))
        if run_pieces(context, items, body, access):
            return orelse() if orelse else None
        if (trips := _size_trips(items)) is not None:
            return run_trips(context, trips[0], lambda t: body(trips[1](t)), orelse, access)
        course = _range_course(context, items) if isinstance(items, SymbolicRange) else None
        return loop(_steps(context, items), body, orelse, access, course)
    for item in items:
        ending = body(item)
        if ending is Signal.BREAK:
            return None
        if isinstance(ending, Return):
            return ending
    return orelse() if orelse else None


def _size_trips(items: Any) -> tuple[SizeRange, Callable[[Any], Any]] | None:
    """The numbers of the trips over a dynamic size, and the item of each; None for anything else."""
    if isinstance(items, SizeList) and len(items.parts) == 1:
        items = items.parts[0]
    if isinstance(items, SizeRange):
        return items, lambda t: t
    if has_dynamic_rows(items):
        return SizeRange(0, items.shape[0], 1), lambda t: items[t]
    if isinstance(items, Enumerated) and has_dynamic_rows(items.items):
        return SizeRange(0, items.items.shape[0], 1), lambda t: (t + items.start, items.items[t])
    return None


def has_dynamic_rows(items: Any) -> bool:
    """Whether a value is a tensor with as many rows as a size says that is dynamic, but known before the program runs."""
    rows = items.shape[0] if isinstance(items, torch.Tensor) and items.dim() else 0
    context = active()
    return not is_fixed(rows) and not is_data_dependent(rows) and context is not None and context.keeps_loops


def has_unknown_length(items: Any) -> bool:
    """Whether only data says how many items there are."""
    if isinstance(items, list):
        return any(isinstance(item, Maybe) for item in items)
    if isinstance(items, torch.Tensor):
        return items.dim() > 0 and is_data_dependent(items.shape[0])
    return isinstance(items, SymbolicRange)


def _steps(context: Context, items: Any) -> Iterator[Step]:
    if isinstance(items, SymbolicRange):
        yield from _range_steps(context, items)
    elif isinstance(items, torch.Tensor) and items.dim() and is_data_dependent(items.shape[0]):
        yield from _row_steps(context, items)
    elif isinstance(items, Enumerated):
        yield from _enumerated(context, items)
    else:
        for item in items:
            yield Step(True, item.value, item.present) if isinstance(item, Maybe) else Step(True, item)
    yield Step(False)


def _range_steps(context: Context, items: SymbolicRange) -> Iterator[Step]:
    numbers, at = context.numbers, items.start
    stop = numbers.tensor(items.stop)
    while True:
        now = numbers.tensor(at)
        yield Step(truth(now < stop if items.step > 0 else now > stop), at)
        at = numbers.read(now + items.step) if is_data_dependent(at) else at + items.step


def _range_course(context: Context, items: SymbolicRange) -> Course:
    numbers = context.numbers

    def at(number: torch.Tensor) -> torch.Tensor:
        return number * items.step + numbers.tensor(items.start)

    def more(number: torch.Tensor) -> bool | torch.Tensor:
        following, stop = at(number + 1), numbers.tensor(items.stop)
        return truth(following < stop if items.step > 0 else following > stop)

    return Course(lambda number: numbers.read(at(number)), more)


def _row_steps(context: Context, rows: torch.Tensor) -> Iterator[Step]:
    origin = context.nonzero_of.get(id(rows))
    if origin is not None:
        yield from _nonzero_steps(rows, origin[1])
        return
    count: Any = rows.shape[0]
    padded = torch.cat([rows, rows.new_zeros((1, *rows.shape[1:]))])
    length = context.numbers.tensor(count)
    for index in range(bound_of(context, count)):
        at = length.clamp(max=index).reshape(1)
        yield Step(truth(length > index), padded.index_select(0, at).squeeze(0))


def _nonzero_steps(rows: torch.Tensor, mask: torch.Tensor) -> Iterator[Step]:
    """The rows of `nonzero(mask)` one by one: every position, there where the mask holds. The order is the same."""
    flat = mask.reshape(-1).ne(0)
    strides = [int(torch.Size(mask.shape[dim + 1 :]).numel()) for dim in range(mask.dim())]
    for index in range(flat.shape[0]):
        position = [index // stride % size for stride, size in zip(strides, mask.shape, strict=True)]
        yield Step(True, torch.tensor(position, dtype=torch.int64, device=rows.device), flat[index])


def _enumerated(context: Context, items: Enumerated) -> Iterator[Step]:
    """Pairs of index and item; the index counts only the items that are there."""
    count: Any = items.start
    for step in _steps(context, items.items):
        if step.go is False:
            return
        yield Step(step.go, (count, step.item), step.present)
        present = step.present
        count = count + 1 if present is None else context.numbers.read(context.numbers.tensor(count) + present)


def bound_of(context: Context, size: torch.SymInt) -> int:
    """The most elements that a data-dependent size can have.

    Raises:
        DynamicControlFlowError: the program implies no bound and the user declared none.
    """
    bound = context.bounds.get(symbol_name(size), context.max_trips)
    if bound is None:
        raise DynamicControlFlowError(
            "this loop runs over a tensor whose length depends on data",
            where=Where(source=here()),
            hint="declare the most trips it can make: max_trips=...",
        )
    return bound


def as_items(context: Context, values: torch.Tensor) -> list[Any]:
    """The rows of a tensor as a Python list, conditional ones where the length depends on data."""
    steps: Iterable[Step] = _steps(context, values)
    items = []
    for step in steps:
        if step.go is False:
            break
        present = step.go if isinstance(step.go, torch.Tensor) else step.present
        items.append(step.item if present is None else Maybe(present, step.item))
    return items
