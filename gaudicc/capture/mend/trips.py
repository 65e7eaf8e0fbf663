"""Capture, mending: a loop over a dynamic size is traced as one trip, between the marks of `loop_marks.py`.

The trip runs three times. A rehearsal, which leaves no nodes, shows what a trip changes: variables, entries of containers
and tensors written in place are carried from trip to trip, a list that gets one more tensor is stacked. Then the trip is
traced with the carried values in place. A last rehearsal goes on from there, and must make the same calls on the same
operands: otherwise the trips are not all alike. Then capture starts again with the first trip traced by itself, where
there always is one; if the others still differ, the loop is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import torch

from gaudicc.capture.fixed_sizes import stopping_at_numbers
from gaudicc.capture.loop_marks import begin_loop, end_loop
from gaudicc.capture.mend.context import Access, Context, Exit, Kind, Return, Scope, State, active
from gaudicc.capture.mend.control import Block, Ending
from gaudicc.capture.mend.data_loops import DataLoop
from gaudicc.capture.mend.data_trip import Course
from gaudicc.capture.mend.internals import known_true, same_sizes, storage_of
from gaudicc.capture.mend.loops import Step, after_loop, trip
from gaudicc.capture.mend.marks import modes, refuse_modes
from gaudicc.capture.mend.outcomes import NeedsRewrite, here, is_user_file
from gaudicc.capture.mend.recorder import Recorder
from gaudicc.capture.mend.trip_changes import Carried, Changes, changes_of, refuse_loop
from gaudicc.capture.mend.trip_state import (
    NeedsFirstTrip,
    assign,
    following_trip,
    put,
    refuse_shared,
    settled_changes,
    standing_apart,
    tables,
    without,
    written_by,
)
from gaudicc.capture.mend.values import Lost, Rows


@dataclass(frozen=True, slots=True)
class SizeRange:
    """`range` whose length depends on a dynamic size."""

    start: Any
    stop: Any
    step: int

    @property
    def span(self) -> Any:
        """How far it reaches: it has a number at all if this is 1 or more."""
        return self.stop - self.start if self.step > 0 else self.start - self.stop

    @property
    def trips(self) -> Any:
        """How many numbers it has, if it has any."""
        return (self.span + abs(self.step) - 1) // abs(self.step)

    def __reversed__(self) -> SizeRange:
        last = self.start + (self.trips - 1) * self.step
        return SizeRange(last, self.start - (1 if self.step > 0 else -1), -self.step)

    def __iter__(self) -> Iterator[Any]:
        refuse_loop("stands where no `for` statement or comprehension does", "loop over it with a `for` statement")


def keeping_loops(keep: bool) -> AbstractContextManager[None]:
    """Stops capture where code that is not rewritten is about to list a dynamic size, or to take its `int`."""
    if not keep:
        return nullcontext()

    def stop(frame: FrameType) -> None:
        context = active()
        rewritten = context is not None and context.is_rewritten(frame.f_code)
        if not rewritten and is_user_file(frame.f_code.co_filename):
            raise NeedsRewrite(frame)

    return stopping_at_numbers(stop)


def run_trips(
    context: Context, items: SizeRange, body: Callable[[Any], Any], orelse: Block | None, access: Access
) -> Ending:
    """A `for` over a range of dynamic length, of a rewritten function."""
    apart = None if here() in context.first_apart or not known_true(items.span >= 1) else here()
    with context.scope(Kind.LOOP) as scope:
        ending: Ending = None
        if here() in context.first_apart:
            ending = trip(context, scope, Step(True, items.start), body, access)
            items = SizeRange(items.start + items.step, items.stop, items.step)
        if ending is None:
            _all_trips(context, scope, items, body, access, apart)
    if isinstance(ending, Return):
        return ending
    return after_loop(context, scope.exits, orelse, access)


def _all_trips(
    context: Context, scope: Scope, items: SizeRange, body: Callable[[Any], Any], access: Access, apart: str | None
) -> None:
    """The trips of a loop: as many as the size says, unless a trip can leave the loop, or it stands in a branch."""
    if context.pred is None:
        try:
            _Trips(context, items, body, access, apart).run()
        except _LeftEarly:
            pass
        else:
            scope.exits.append(Exit(context.pred, None, context.state(access)))
            return
    trips = context.numbers.tensor(items.trips)

    def item(index: torch.Tensor) -> Any:
        return _item(context, items, index)[1]

    def run(loop: Scope, item: Any) -> Ending:
        return trip(context, loop, Step(True, item), body, access)

    go: Any = True if known_true(items.span >= 1) else trips > 0
    course = Course(item, lambda index: index + 1 < trips)
    DataLoop(context, course, run, access, apart).trace(scope, go)


def _item(context: Context, items: SizeRange, index: torch.Tensor) -> tuple[torch.SymInt, Any]:
    """The number of a trip, and its item."""
    number: Any = context.numbers.read(index)
    context.trip_counts[str(number.node.expr)] = items
    plain = isinstance(items.start, int) and (items.start, items.step) == (0, 1)
    item = number if plain else items.start + number * items.step
    if item is not number:
        context.numbers.remember(item, index * items.step + context.numbers.tensor(items.start))
    return number, item


class _LeftEarly(Exception):
    """A trip can leave the loop, by break, return or an exception that depends on data."""


class _Trips:
    """One loop; `apart`: its place, if its first trip may be traced by itself."""

    def __init__(
        self, context: Context, items: SizeRange, body: Callable[[Any], Any], access: Access, apart: str | None
    ) -> None:
        self._context, self._items, self._body, self._access = context, items, body, access
        self._apart, self._early = apart, False
        trips = items.trips
        self._trips = trips if known_true(trips >= 0) else torch.sym_max(trips, 0)

    def run(self) -> None:
        """Traces one trip, and leaves the state that the last one leaves."""
        context, access = self._context, self._access
        before, mode = context.state(access), modes()
        try:
            changes, carried, rehearsed = settled_changes(context, access, before, self._rehearsed)
        except _LeftEarly:
            context.restore(before, access)
            raise
        refuse_modes(mode, modes())
        written = written_by(rehearsed, before, access)
        finals, rows = self._trace(before, changes, carried, written)
        context.restore(before, access)
        put(access, without(before, changes.lost, self._apart, here()), changes.places, finals)
        for grown, stacked in zip(changes.grown, rows, strict=True):
            list.append(grown.container, Lost() if stacked is None else Rows(stacked))

    def _trace(
        self, before: State, changes: Changes, carried: Carried, written: list[torch.Tensor]
    ) -> tuple[list[Any], list[torch.Tensor | None]]:
        """One trip between the marks; returns the values at the places after the loop, and the rows of each list that grew."""
        context, access = self._context, self._access
        start = carried.tensors(context, before) or []
        refuse_shared(start, written)
        index, *given = begin_loop([*start, *written], self._trips)
        for tensor, value in zip(written, given[len(start) :], strict=True):
            tensor.copy_(value)
        entry = given[: len(start)]
        put(access, before, changes.places, carried.values(context, entry))
        entered, noted = context.state(access), tables(context)
        traced = self._once(index, entry)
        if not changes_of(entered, context.state(access)).within(changes):
            self._differs("it changes more than the first")
        if self._early:
            refuse_loop("is left early in some trips only", "let all trips test for it")
        traced.refuse_writes_outside(written)
        new = carried.tensors(context, context.state(access))
        if new is None:
            self._differs("a value that it hands on changes its type")
        appended = [_alike(grown.appended()) for grown in changes.grown]
        kept = [*range(len(new)), *(len(new) + i for i, items in enumerate(filter(None, appended)) for _ in items)]
        outside, twice = traced.shared([*new, *(item for items in appended for item in items)], written, entry)
        again = following_trip(
            context, access, carried, new, lambda given: self._once(torch.empty_like(index), given), noted
        )
        if (difference := traced.difference(again)) is not None:
            self._differs(difference)
        rows = [items[0] if len(items) == 1 else torch.stack(items) for items in appended if items]
        ends = end_loop(index, [*new, *written], rows, self._trips)
        for tensor, value in zip(written, ends[len(new) :], strict=False):
            tensor.copy_(value)
        assign(context, written)
        finals, stacks = ends[: len(new)], ends[len(new) + len(written) :]
        context.kept_rows |= outside | {storage_of([*finals, *stacks][kept[i]]) for i in twice}
        stacked = iter(stacks)
        rows_of = [None if not items else next(stacked).flatten(0, int(len(items) > 1)) for items in appended]
        return carried.values(context, finals), rows_of

    def _rehearsed(self, index: torch.Tensor, carried: list[torch.Tensor]) -> Recorder:
        recorder = self._once(index, carried)
        if self._early:
            raise _LeftEarly
        return recorder

    def _differs(self, why: str) -> NoReturn:
        if self._apart is not None:
            raise NeedsFirstTrip(self._apart)
        hint = "let all trips do the same; one that differs goes before the loop"
        refuse_loop(f"does something else in other trips: {why}", hint)

    def _once(self, index: torch.Tensor, carried: list[torch.Tensor]) -> Recorder:
        """One trip; notes what it does."""
        context = self._context
        number, item = _item(context, self._items, index)
        recorder = Recorder(carried, [index, context.numbers.tensor(item)], number)
        context.recorders.append(recorder)
        rows, flags = list(context.rows_of), len(context.flags)
        try:
            with standing_apart(context) as around, context.scope(Kind.LOOP) as scope:
                ending = trip(context, scope, Step(True, item), self._body, self._access)
            self._early = ending is not None or bool(scope.exits or around.exits) or len(context.flags) > flags
            recorder.rows = context.rows_of[len(rows) :]
        finally:
            context.recorders.remove(recorder)
            context.rows_of[:] = rows
        return recorder


def _alike(appended: list[Any]) -> list[torch.Tensor]:
    """What a trip appends to one list, if it makes one tensor; otherwise nothing."""
    first = appended[0]
    alike = isinstance(first, torch.Tensor) and all(
        isinstance(item, torch.Tensor) and item.dtype == first.dtype and same_sizes(item, first) for item in appended
    )
    return appended if alike else []
