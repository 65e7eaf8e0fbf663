"""Capture, mending: the trips of a loop of a rewritten function while a model is being captured.

Trips are unrolled, unless nothing but data ends them (`data_loops.py`). A path that leaves the loop early takes its state
along, and the loop's end folds all of them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gaudicc.capture.mend.context import (
    UNROLL_LIMIT,
    Access,
    Context,
    Exit,
    Kind,
    Return,
    Scope,
    Signal,
    State,
    Unreachable,
    active,
)
from gaudicc.capture.mend.control import Block, Ending, branch, end, raised
from gaudicc.capture.mend.data_loops import DataLoop
from gaudicc.capture.mend.data_trip import REGION_AFTER, Course, NeedsRegion, NeedsUnrolling
from gaudicc.capture.mend.merge import fold, install
from gaudicc.capture.mend.outcomes import here
from gaudicc.capture.mend.trip_state import plain_part
from gaudicc.errors import DynamicControlFlowError, LoopOverflowError, Where


@dataclass(frozen=True, slots=True)
class Step:
    """One trip of a loop: whether it happens at all, whether its item is there, and the item."""

    go: bool | torch.Tensor
    item: Any = None
    present: torch.Tensor | None = None


def loop(
    steps: Iterator[Step], body: Callable[[Any], Any], orelse: Block | None, access: Access, course: Course | None
) -> Ending:
    """A `while` or `for` of a rewritten function, during capture; `course`: how it goes on, unless Python ends it at last."""
    context = active()
    assert context is not None
    with context.scope(Kind.LOOP) as scope:
        ending: Ending = Signal.DEAD
        trips = 0
        place, made, entered = here(), 0, scope.pred
        plain: Any = None
        while (step := _next(context, scope, steps)) is not None:
            if course is not None and place in context.regions and (made or place not in context.first_apart):
                _as_one_trip(context, scope, step, course.after(made) if made else course, body, access)
                break
            if isinstance(step.go, torch.Tensor):
                with context.scope(Kind.BRANCH, context.predicates.negate(step.go)):
                    context.leave(Kind.LOOP, None, context.state(access))
            elif not step.go:
                scope.exits.append(Exit(context.pred, None, context.state(access)))
                break
            if isinstance(step.go, torch.Tensor) or (course is not None and scope.pred is not entered):
                trips += 1
                if course is not None and context.max_trips is None:
                    before, plain = plain, plain_part(context.state(access))
                    if place in context.unrolled:
                        if plain == before:
                            raise context.unrolled[place]
                    elif plain == before or trips > REGION_AFTER:
                        raise NeedsRegion(place)
                if _exhausted(context, trips, context.unrolled.get(place)):
                    break
            made += 1
            ending = trip(context, scope, step, body, access)
            if ending is not None:
                break
    if isinstance(ending, Return):
        return ending
    return after_loop(context, scope.exits, orelse, access)


def _as_one_trip(
    context: Context, scope: Scope, step: Step, course: Course, body: Callable[[Any], Any], access: Access
) -> None:
    """The trips of a loop from here on, traced as one."""
    if step.go is False:
        scope.exits.append(Exit(context.pred, None, context.state(access)))
        return
    apart = here() if step.go is True and here() not in context.first_apart else None

    def run(loop: Scope, item: Any) -> Ending:
        return trip(context, loop, Step(True, item), body, access)

    try:
        DataLoop(context, course, run, access, apart).trace(scope, step.go)
    except DynamicControlFlowError as error:
        raise NeedsUnrolling(here(), error) from error


def _next(context: Context, scope: Scope, steps: Iterator[Step]) -> Step | None:
    """The next step, or None if evaluating the loop's test raised on every path that is still in the loop."""
    try:
        return next(steps)
    except Unreachable:
        return None
    except Exception as error:
        if not scope.exits:
            raise
        raised(context, error)
        return None


def _exhausted(context: Context, trips: int, why_unrolled: DynamicControlFlowError | None) -> bool:
    """Whether the loop has had all the trips it may; paths that want more are flagged, never cut short."""
    limit = UNROLL_LIMIT if context.max_trips is None else context.max_trips
    if trips <= limit:
        return False
    if context.max_trips is None:
        if why_unrolled is not None:
            raise why_unrolled
        raise DynamicControlFlowError(
            "nothing but data ends this loop",
            where=Where(source=here()),
            hint="declare the most trips it can make: max_trips=...",
        )
    message = f"a loop wants more than the declared max_trips={context.max_trips}"
    context.flag(LoopOverflowError(message, where=Where(source=here())), here(), overflow=True)
    return True


def trip(context: Context, around: Scope, step: Step, body: Callable[[Any], Any], access: Access) -> Ending:
    """One trip; returns None if another may follow."""
    with context.scope(Kind.TRIP) as own:
        if step.present is not None:
            with context.scope(Kind.BRANCH, context.predicates.negate(step.present)):
                context.leave(Kind.TRIP, Signal.CONTINUE, context.state(access))
        try:
            ending = body(step.item)
        except Unreachable:
            ending = Signal.DEAD
        except Exception as error:
            if not own.exits and not around.exits:
                raise
            raised(context, error)
            ending = Signal.DEAD
        if ending in (None, Signal.CONTINUE):
            if not own.exits:
                return None
            own.exits.append(Exit(context.pred, ending, context.state(access)))
        elif isinstance(ending, Return) and not own.exits and not around.exits:
            return ending
        else:
            end(context, ending, access)
    if not own.exits:
        return Signal.DEAD
    install(context, fold(context, own.exits), access)
    return None


def after_loop(context: Context, exits: list[Exit], orelse: Block | None, access: Access) -> Ending:
    """Makes the state after a loop of those that its paths left; returns how control leaves it."""
    if not exits:
        return Signal.DEAD
    ended = [exit_ for exit_ in exits if exit_.signal is None]
    broken = [exit_ for exit_ in exits if exit_.signal is Signal.BREAK]
    if orelse is None or not ended:
        install(context, fold(context, exits), access)
        return None
    if not broken:
        install(context, fold(context, ended), access)
        return orelse()  # type: ignore[no-any-return]
    pred: torch.Tensor | None = None
    for exit_ in broken:
        assert exit_.pred is not None
        pred = context.predicates.either(pred, exit_.pred)
    assert pred is not None

    def side(state: State, block: Block | None) -> Ending:
        install(context, state, access)
        return block() if block else None

    states = fold(context, broken), fold(context, ended)
    return branch(context, pred, lambda: side(states[0], None), lambda: side(states[1], orelse), access)
