"""Capture, mending: one trip of a loop that only data ends: how it goes on, and what becomes of the paths that leave it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch

from gaudicc.capture.mend.context import Access, Context, Exit, Flag, Kind, Return, Scope, Unreachable
from gaudicc.capture.mend.control import Ending, end, raised, returned
from gaudicc.capture.mend.merge import fold, install
from gaudicc.capture.mend.outcomes import here, is_path_outcome
from gaudicc.capture.mend.recorder import Recorder
from gaudicc.capture.mend.trip_state import standing_apart
from gaudicc.capture.mend.values import is_undecided
from gaudicc.errors import DynamicControlFlowError, Where

REGION_AFTER = 8
"""Trips after which a loop that data can end is one region: Python ends some by then, which are unrolled."""


@dataclass(frozen=True, slots=True)
class Course:
    """How a loop goes on that data ends.

    Attributes:
        item: the item of a trip, from its number (int64 `[]`, from 0).
        more: whether another trip follows the one of this number; a path that is still in the loop asks.
    """

    item: Callable[[torch.Tensor], Any]
    more: Callable[[torch.Tensor], bool | torch.Tensor]

    def after(self, trips: int) -> Course:
        """The course of the trips that follow so many."""
        return replace(self, item=lambda number: self.item(number + trips), more=lambda n: self.more(n + trips))


class NeedsRegion(BaseException):
    """The loop at a line (`file:line`) is ended by nothing but data, and cannot be unrolled."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place


class NeedsUnrolling(BaseException):
    """The loop at a line cannot be traced as one trip, for this reason; Python may end it."""

    def __init__(self, place: str, why: DynamicControlFlowError) -> None:
        super().__init__()
        self.place, self.why = place, why


def refuse_data_loop(what: str, hint: str) -> NoReturn:
    """Refuses a loop that only data ends, at the line that runs."""
    raise DynamicControlFlowError(f"nothing but data ends this loop, and {what}", where=Where(source=here()), hint=hint)


@dataclass(frozen=True, slots=True)
class Traced:
    """What one trip did.

    Attributes:
        recorder: its calls.
        go: whether another trip follows.
        falls_out: whether a path may leave the loop by its test.
        signals: bool `[]` each: the path broke out, returned, raised this or that; one of them holds at most.
        breaks: whether the first signal is that the path broke out.
        result: what it returns, if the next signal is that it returned.
        flags: what it raises, one for each of the other signals.
    """

    recorder: Recorder
    go: torch.Tensor
    falls_out: bool
    signals: list[torch.Tensor]
    breaks: bool
    result: Return | None
    flags: list[Flag]


class DataTrip:
    """Runs one trip, under no predicate: the body of the loop runs only where it is meant to.

    Args:
        context: the traced run.
        course: how the loop goes on.
        run: runs the body, in a scope for the paths that leave the loop.
        access: the variables of the function.
    """

    def __init__(self, context: Context, course: Course, run: Callable[[Scope, Any], Ending], access: Access) -> None:
        self._context, self._course, self._run, self._access = context, course, run, access

    def once(self, index: torch.Tensor, carried: list[torch.Tensor]) -> Traced:
        """One trip; leaves the state that the next one finds, or that the loop leaves."""
        context = self._context
        recorder = Recorder(carried, [index])
        context.recorders.append(recorder)
        rows, flags, context.flags = list(context.rows_of), context.flags, {}
        try:
            with standing_apart(context) as around, context.scope(Kind.LOOP) as loop:
                more = self._run_once(loop, index)
                stays = None if more is None else Exit(context.pred, None, context.state(self._access))
            with standing_apart(context):
                traced = self._folded(recorder, loop.exits, around.exits, stays, more)
            recorder.rows = context.rows_of[len(rows) :]
        finally:
            context.recorders.remove(recorder)
            context.rows_of[:] = rows
            context.flags = flags
        return traced

    def _run_once(self, loop: Scope, index: torch.Tensor) -> bool | torch.Tensor | None:
        """The trip itself; returns whether another follows, or None if all paths left the loop."""
        context, access = self._context, self._access
        try:
            ending = self._run(loop, self._course.item(index))
            return self._course.more(index) if end(context, ending, access) else None
        except Unreachable:
            return None
        except Exception as error:
            if not is_path_outcome(error):
                raise
            if context.pred is None:
                refuse_data_loop(f"every trip of it raises {type(error).__name__}", "raise it before the loop")
            raised(context, error)
            return None

    def _folded(
        self, recorder: Recorder, left: list[Exit], around: list[Exit], stays: Exit | None, more: Any
    ) -> Traced:
        """Makes one state of those that the paths of a trip left."""
        context = self._context
        returns = sorted((exit_ for exit_ in around if exit_.state is not None), key=_always)
        exits = [*sorted([*left, *returns], key=_always), *([] if stays is None else [stays])]
        if not exits:
            refuse_data_loop("every trip of it raises", "raise before the loop")
        install(context, fold(context, exits), self._access)
        result = Return(returned(context, returns)) if returns else None
        if is_undecided(result and result.value):
            refuse_data_loop("it returns values of different types or shapes", "return one type and shape")
        raises = list(context.flags.values())
        signals = [_any(context, paths) for paths in (left, returns) if paths]
        go = torch.zeros((), dtype=torch.bool)
        if stays is not None and more is not False:
            parts = [part for part in (stays.pred, more) if isinstance(part, torch.Tensor)]
            go = torch.logical_and(parts[0], parts[-1]) if parts else torch.ones((), dtype=torch.bool)
        falls_out = stays is not None and more is not True
        signals += [pred for _, pred in raises]
        return Traced(recorder, go, falls_out, signals, bool(left), result, [flag for flag, _ in raises])


def _always(exit_: Exit) -> bool:
    return exit_.pred is None


def _any(context: Context, exits: list[Exit]) -> torch.Tensor:
    """Whether a path left by one of some exits."""
    holds: torch.Tensor | None = None
    for exit_ in exits:
        pred = torch.ones((), dtype=torch.bool) if exit_.pred is None else exit_.pred
        holds = context.predicates.either(holds, pred)
    assert holds is not None
    return holds
