"""Capture, mending: a loop over a dynamic size is traced as one trip, between the marks of `loop_marks.py`.

The trip runs three times. A rehearsal, which leaves no nodes, shows what a trip changes: variables, entries of containers
and tensors written in place are carried from trip to trip, a list that gets one more tensor is stacked. Then the trip is
traced with the carried values in place. A last rehearsal goes on from there, and must make the same calls on the same
operands: otherwise the trips are not all alike. Then capture starts again with the first trip traced by itself, where
there always is one; if the others still differ, the loop is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import nn
from torch.utils import _pytree as pytree

from gaudicc.capture.fixed_sizes import stopping_at_loops
from gaudicc.capture.loop_marks import begin_loop, end_loop
from gaudicc.capture.mend.context import Access, Context, Kind, State, active
from gaudicc.capture.mend.heap import contents, refill
from gaudicc.capture.mend.internals import known_true, storage_of, untraced
from gaudicc.capture.mend.loops import Step, trip
from gaudicc.capture.mend.marks import modes, refuse_changes, refuse_modes
from gaudicc.capture.mend.outcomes import NeedsRewrite, here, is_user_file
from gaudicc.capture.mend.recorder import Recorder
from gaudicc.capture.mend.trip_changes import Changes, Place, changes_of, flat, refuse_loop, same_type, unflat
from gaudicc.capture.mend.values import Rows, Undefined
from gaudicc.errors import DynamicControlFlowError, Where


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


class NeedsFirstTrip(BaseException):
    """The first trip of the loop at a line (`file:line`) is unlike the others, and has to be traced by itself."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place


def keeping_loops(keep: bool) -> AbstractContextManager[None]:
    """Stops capture where code that is not rewritten is about to list the numbers, or the rows, of a dynamic size."""
    if not keep:
        return nullcontext()

    def stop(frame: FrameType) -> None:
        context = active()
        rewritten = context is not None and context.is_rewritten(frame.f_code)
        if not rewritten and is_user_file(frame.f_code.co_filename):
            raise NeedsRewrite(frame)

    return stopping_at_loops(stop)


def run_trips(context: Context, items: SizeRange, body: Callable[[Any], Any], access: Access) -> None:
    """A `for` over a range of dynamic length, of a rewritten function."""
    if context.pred is not None:
        refuse_loop("stands in a branch on a tensor", "move the loop out of the branch")
    apart = None if here() in context.first_apart or not known_true(items.span >= 1) else here()
    if here() in context.first_apart:
        _one_trip(context, items.start, body, access)
        items = SizeRange(items.start + items.step, items.stop, items.step)
    _Trips(context, items, body, access, apart).run()


def _one_trip(context: Context, item: Any, body: Callable[[Any], Any], access: Access) -> None:
    with context.scope(Kind.LOOP) as scope:
        ending = trip(context, scope, Step(True, item), body, access)
    if ending is not None or scope.exits:
        refuse_loop("is left early, by break or return", "compute all trips and select afterwards")


class _Trips:
    """One loop; `apart`: its place, if its first trip may be traced by itself."""

    def __init__(
        self, context: Context, items: SizeRange, body: Callable[[Any], Any], access: Access, apart: str | None
    ) -> None:
        self._context, self._items, self._body, self._access = context, items, body, access
        self._apart = apart
        trips = items.trips
        self._trips = trips if known_true(trips >= 0) else torch.sym_max(trips, 0)

    def run(self) -> None:
        """Traces one trip, and leaves the state that the last one leaves."""
        context, access = self._context, self._access
        before, mode = context.state(access), modes()
        with self._rehearsal():
            first = self._once(torch.empty((), dtype=torch.int64))
        after = context.state(access)
        refuse_changes(before.heap.marks, after.heap.marks)
        refuse_modes(mode, modes())
        changes = changes_of(before, after)
        written = first.written_outside(_tensors_of(before, access))
        context.restore(before, access)
        self._refuse_shared(before, changes, written)
        finals, rows = self._trace(before, changes, written)
        context.restore(before, access)
        self._leave(before, changes, finals, rows)

    def _trace(self, before: State, changes: Changes, written: list[torch.Tensor]) -> tuple[list[Any], list[Any]]:
        """One trip between the marks; returns the values at the places after the loop, and the stacked rows."""
        context, access = self._context, self._access
        leaves, specs = flat([place.of(before) for place in changes.places])
        carried = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        index, *given = begin_loop([*carried, *written], self._trips)
        for tensor, value in zip(written, given[len(carried) :], strict=True):
            tensor.copy_(value)
        entry = given[: len(carried)]
        self._put(before, changes.places, unflat(leaves, specs, entry))
        tables = _tables(context)
        flags = len(context.flags)
        traced = self._once(index, entry)
        if len(context.flags) > flags:
            refuse_loop("raises an exception that depends on data", "test the whole tensor before or after the loop")
        traced.refuse_writes_outside(written)
        left = context.state(access)
        values, new_specs = flat([place.of(left) for place in changes.places])
        if new_specs != specs or not all(map(same_type, leaves, values)):
            self._differs("a value that it hands on changes its type")
        new = [value for value in values if isinstance(value, torch.Tensor)]
        rows = [contents(grown)[-1] for grown in changes.grown]
        outside, twice = traced.shared([*new, *rows], written, entry)
        noted = _tables(context)
        _set_tables(context, tables)
        with self._rehearsal():
            again = self._once(torch.empty_like(index), new)
        _set_tables(context, noted)
        if (difference := traced.difference(again)) is not None:
            self._differs(difference)
        ends = end_loop(index, [*new, *written], rows, self._trips)
        for tensor, value in zip(written, ends[len(new) :], strict=False):
            tensor.copy_(value)
        self._assign(written)
        kept = [*ends[: len(new)], *ends[len(new) + len(written) :]]
        context.kept_rows |= outside | {storage_of(kept[i]) for i in twice}
        return unflat(leaves, specs, ends[: len(new)]), ends[len(new) + len(written) :]

    def _assign(self, written: list[torch.Tensor]) -> None:
        """Tells torch.export, which notes what is assigned to a buffer last, what the buffers hold after the loop."""
        for owner in self._context.roots:
            for module in owner.modules() if isinstance(owner, nn.Module) else ():
                for name, buffer in module._buffers.items():
                    if any(buffer is tensor for tensor in written):
                        setattr(module, name, buffer)

    def _differs(self, why: str) -> NoReturn:
        if self._apart is not None:
            raise NeedsFirstTrip(self._apart)
        hint = "let all trips do the same; one that differs goes before the loop"
        refuse_loop(f"does something else in other trips: {why}", hint)

    def _once(self, index: torch.Tensor, carried: list[torch.Tensor] | None = None) -> Recorder:
        """One trip; notes what it does."""
        context, items = self._context, self._items
        number: Any = context.numbers.read(index)
        plain = isinstance(items.start, int) and (items.start, items.step) == (0, 1)
        item = number if plain else items.start + number * items.step
        if item is not number:
            context.numbers.remember(item, index * items.step + context.numbers.tensor(items.start))
        recorder = Recorder(carried or [], [index, context.numbers.tensor(item)], number)
        context.trip_counts[str(number.node.expr)] = items
        context.recorders.append(recorder)
        rows = list(context.rows_of)
        try:
            _one_trip(context, item, self._body, self._access)
            recorder.rows = context.rows_of[len(rows) :]
        finally:
            context.recorders.remove(recorder)
            context.rows_of[:] = rows
        return recorder

    @contextmanager
    def _rehearsal(self) -> Iterator[None]:
        """Runs code on fake values: no nodes, and no memory of it but what it does to Python's state."""
        tables = _tables(self._context)
        size = next(size for size in (self._items.stop, self._items.start) if isinstance(size, torch.SymInt))
        with untraced(size):
            yield
        _set_tables(self._context, tables)

    def _put(self, state: State, places: list[Place], values: list[Any]) -> None:
        """Puts values in their places; all variables are those of `state` besides."""
        variables = list(state.variables)
        for place, value in zip(places, values, strict=True):
            if place.container is None:
                variables[place.key] = value
            else:
                held = contents(place.container)
                held[place.key] = value
                refill(place.container, held)
        self._access.write(tuple(variables))

    def _refuse_shared(self, before: State, changes: Changes, written: list[torch.Tensor]) -> None:
        """What is both replaced and written in place is another tensor from the second trip on."""
        leaves, _ = flat([place.of(before) for place in changes.places])
        storages = {storage_of(tensor) for tensor in leaves if isinstance(tensor, torch.Tensor)}
        if any(storage_of(tensor) in storages for tensor in written):
            refuse_loop("writes in place to what it carries", "compute a new tensor, `h = h * 2` for `h.mul_(2)`")

    def _leave(self, before: State, changes: Changes, finals: list[Any], rows: list[Any]) -> None:
        """The state after the loop."""
        lost = list(before.variables)
        for index in changes.lost:
            lost[index] = AfterLoop(here(), self._apart)
        self._put(State(tuple(lost), before.heap), changes.places, finals)
        for grown, stacked in zip(changes.grown, rows, strict=True):
            list.append(grown, Rows(stacked))


class AfterLoop(Undefined):
    """A variable of a trip, after the loop."""

    def __init__(self, source: str, apart: str | None) -> None:
        super().__init__(DynamicControlFlowError, "")
        self._source, self._apart = source, apart

    def _fail(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        if self._apart is not None:  # what the first trip gives it is carried
            raise NeedsFirstTrip(self._apart)
        raise DynamicControlFlowError(
            "a variable that only the trips of a loop over a dynamic size assign is used after the loop",
            where=Where(source=self._source),
            hint="give it a value of the same shape and dtype before the loop, or append it to a list",
        )


def _tensors_of(state: State, access: Access) -> list[torch.Tensor]:
    """The tensors that the code around a loop can reach."""
    held = [list(value.values()) if isinstance(value, dict) else list(value) for _, value in state.heap.held.values()]
    leaves = pytree.tree_leaves([*state.variables, *access.reach(), *held])
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


_Tables = list[tuple[Any, str, Any]]


def _tables(context: Context) -> _Tables:
    """What a traced run has noted of its tensors and numbers so far."""
    owners = (context, context.predicates, context.numbers)
    kinds = (dict, list, set)
    return [
        (owner, name, copy.copy(value))
        for owner in owners
        for name, value in vars(owner).items()
        if isinstance(value, kinds) and name not in ("scopes", "recorders")
    ]


def _set_tables(context: Context, tables: _Tables) -> None:
    for owner, name, value in tables:
        setattr(owner, name, copy.copy(value))
