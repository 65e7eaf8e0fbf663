"""Capture, mending: a loop that only data ends is traced as one trip, which carries whether another one follows.

As for loops over a size (`trips.py`), rehearsals on fake values show what a trip changes; then the trip is traced with the
carried values in place, and rehearsed once more to see that it makes the same calls. Paths that leave the loop inside the trip
(break, return, raise) are folded with those that stay: each is a carried flag, and the loop ends with the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.utils import _pytree as pytree

from gaudicc.capture.loop_marks import UNTIL_DATA_ENDS, begin_loop, end_loop
from gaudicc.capture.mend.context import (
    Access,
    Context,
    Exit,
    Kind,
    Return,
    Scope,
    Signal,
    State,
)
from gaudicc.capture.mend.control import Ending
from gaudicc.capture.mend.data_trip import Course, DataTrip, Traced, refuse_data_loop
from gaudicc.capture.mend.internals import SYMBOLIC, is_data_dependent, storage_of
from gaudicc.capture.mend.marks import modes, refuse_modes
from gaudicc.capture.mend.numbers import KINDS
from gaudicc.capture.mend.outcomes import here
from gaudicc.capture.mend.trip_changes import Carried, Changes
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


class DataLoop:
    """One loop, traced under no predicate: its body runs only where it is meant to.

    Args:
        context: the traced run.
        course: how the loop goes on.
        run: one trip, in a scope for the paths that leave the loop.
        access: the variables of the function.
        apart: the place of the loop, if its first trip may be traced by itself.
    """

    def __init__(
        self, context: Context, course: Course, run: Callable[[Scope, Any], Ending], access: Access, apart: str | None
    ) -> None:
        self._context, self._access, self._apart = context, access, apart
        self._trip = DataTrip(context, course, run, access)

    def trace(self, scope: Scope, go: bool | torch.Tensor) -> None:
        """Traces the loop; all paths leave `scope`, the loop's own, with the state that it leaves.

        Args:
            scope: of the loop; paths that broke out of trips before are noted in it.
            go: whether there is a trip at all.
        """
        context, access = self._context, self._access
        before, mode = context.state(access), modes()
        start = torch.ones((), dtype=torch.bool) if isinstance(go, bool) else go
        if context.pred is not None:
            start = torch.logical_and(context.pred, start)
        changes, carried, written, rehearsed = self._changes(before)
        refuse_modes(mode, modes())
        traced, ends, finals = self._trace(before, carried, written, start, rehearsed)
        context.restore(before, access)
        put(access, without(before, changes.lost, self._apart, here()), changes.places, finals)
        self._leave(scope, traced, ends, falls_out=go is not True)

    def _changes(self, before: State) -> tuple[Changes, Carried, list[torch.Tensor], Traced]:
        """Rehearses trips until they change nothing that is not carried yet.

        Returns:
            What they change, what is carried of it, the tensors around the loop that they write to, and the last of them.
        """
        changes, carried, rehearsed = settled_changes(
            self._context,
            self._access,
            before,
            self._trip.once,
            lambda what, hint: refuse_data_loop(f"it {what}", hint),
        )
        if changes.grown:
            refuse_data_loop("its trips append to a list", "write to the rows of a tensor that is long enough")
        written = written_by([traced.recorder for traced in rehearsed], before, self._access)
        return changes, carried, written, rehearsed[-1]

    def _trace(
        self, before: State, carried: Carried, written: list[torch.Tensor], start: torch.Tensor, rehearsed: Traced
    ) -> tuple[Traced, list[torch.Tensor], list[Any]]:
        """One trip between the marks.

        Returns:
            The trip, its signals and the tensors of its result after the loop, and the values at the places after the loop.
        """
        context, access = self._context, self._access
        state = carried.tensors(context, before)
        assert state is not None
        refuse_shared(state, written)
        places = len(state), len(state) + len(written)
        index, _, *given = begin_loop([start, *state, *written, *self._unset(rehearsed)], UNTIL_DATA_ENDS)
        self._write(written, given[places[0] : places[1]])
        entry = given[: places[0]]
        put(access, before, carried.places, carried.values(context, entry))
        noted = tables(context)
        traced = self._trip.once(index, entry)
        traced.recorder.refuse_writes_outside(written)
        new = carried.tensors(context, context.state(access))
        result = _tensors(context, traced.result)
        if new is None or len(result) != len(_leaves(rehearsed.result)):
            self._differs("a value that it hands on changes its type")
        outside, twice = traced.recorder.shared([*new, *result], written, entry)
        again = following_trip(
            context, access, carried, new, lambda given: self._trip.once(torch.empty_like(index), given), noted
        )
        if (difference := traced.recorder.difference(again.recorder)) is not None:
            self._differs(difference)
        _, *ends = end_loop(index, [traced.go, *new, *written, *traced.signals, *result], [], UNTIL_DATA_ENDS)
        self._write(written, ends[places[0] : places[1]])
        assign(context, written)
        kept = [*ends[: places[0]], *ends[places[1] + len(traced.signals) :]]
        context.kept_rows |= outside | {storage_of(kept[i]) for i in twice}
        return traced, ends[places[1] :], carried.values(context, ends[: places[0]])

    def _write(self, tensors: list[torch.Tensor], values: list[torch.Tensor]) -> None:
        """Writes to tensors around the loop, also where no path comes by: they are as they were there."""
        with standing_apart(self._context):
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)

    def _unset(self, rehearsed: Traced) -> list[torch.Tensor]:
        """What the signals and the result of a trip are before the first one."""
        signals = [torch.zeros((), dtype=torch.bool) for _ in rehearsed.signals]
        return [*signals, *map(_unset, _leaves(rehearsed.result))]

    def _differs(self, why: str) -> NoReturn:
        if self._apart is not None:
            raise NeedsFirstTrip(self._apart)
        refuse_data_loop(f"it does something else in other trips: {why}", "carry one state of fixed shapes and dtypes")

    def _leave(self, scope: Scope, traced: Traced, ends: list[torch.Tensor], *, falls_out: bool) -> None:
        """What follows the loop runs for the paths that reach it."""
        context, access = self._context, self._access
        signals, result = ends[: len(traced.signals)], ends[len(traced.signals) :]
        for flag, holds in zip(reversed(traced.flags), reversed(signals), strict=False):
            with context.scope(Kind.BRANCH, holds):
                context.flag(flag.error, flag.source, overflow=flag.overflow)
        if traced.result is not None:
            with context.scope(Kind.BRANCH, signals[traced.breaks]):
                value = _value(context, traced.result, result)
                context.leave(Kind.CALL, Return(value), context.state(access))
        if traced.breaks:
            with context.scope(Kind.BRANCH, signals[0]):
                context.leave(Kind.LOOP, Signal.BREAK, context.state(access))
        if falls_out or traced.falls_out:
            scope.exits.append(Exit(context.pred, None, context.state(access)))


def _leaves(result: Return | None) -> list[Any]:
    """What of a returned value depends on data."""
    leaves = pytree.tree_leaves(None if result is None else result.value)
    return [leaf for leaf in leaves if isinstance(leaf, (torch.Tensor, *SYMBOLIC))]


def _tensors(context: Context, result: Return | None) -> list[torch.Tensor]:
    """The tensors of what a trip returns, numbers that depend on data as tensors of no dims."""
    return [leaf if isinstance(leaf, torch.Tensor) else context.numbers.tensor(leaf) for leaf in _leaves(result)]


def _unset(leaf: Any) -> torch.Tensor:
    """What stands for a part of a returned value before a trip returns it."""
    if not isinstance(leaf, torch.Tensor):
        return torch.zeros((), dtype=KINDS[type(leaf)])
    if any(map(is_data_dependent, leaf.shape)):
        refuse_data_loop("it returns a tensor whose shape depends on data", "return it after the loop")
    return torch.zeros(tuple(leaf.shape), dtype=leaf.dtype, device=leaf.device)


def _value(context: Context, result: Return, tensors: list[torch.Tensor]) -> Any:
    """What is returned, of these tensors."""
    feed = iter(tensors)

    def value(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return next(feed)
        return context.numbers.read(next(feed)) if isinstance(leaf, SYMBOLIC) else leaf

    return pytree.tree_map(value, result.value)
