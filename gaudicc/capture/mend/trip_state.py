"""Capture, mending: what the loops that are traced as one trip share: Python's state before, in and after a trip."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn
from torch._guards import detect_fake_mode
from torch.utils import _pytree as pytree

from gaudicc.capture.mend.context import Access, Context, Kind, Scope, State
from gaudicc.capture.mend.heap import contents, refill
from gaudicc.capture.mend.internals import storage_of, untraced
from gaudicc.capture.mend.marks import refuse_changes
from gaudicc.capture.mend.recorder import Recorder
from gaudicc.capture.mend.trip_changes import Carried, Changes, Place, changes_of, refuse_loop
from gaudicc.capture.mend.values import Undefined
from gaudicc.errors import DynamicControlFlowError, InternalError, Where


class NeedsFirstTrip(BaseException):
    """The first trip of the loop at a line (`file:line`) is unlike the others, and has to be traced by itself."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place


class AfterLoop(Undefined):
    """A variable of a trip, after the loop."""

    refuses = True

    def __init__(self, source: str, apart: str | None) -> None:
        super().__init__(DynamicControlFlowError, "")
        self._source, self._apart = source, apart

    def _fail(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        if self._apart is not None:  # what the first trip gives it is carried
            raise NeedsFirstTrip(self._apart)
        raise DynamicControlFlowError(
            "a variable that only the trips of a loop assign is used after the loop",
            where=Where(source=self._source),
            hint="give it a value of the same shape and dtype before the loop, or append it to a list",
        )


def put(access: Access, state: State, places: list[Place], values: list[Any]) -> None:
    """Puts values in their places; all variables are those of `state` besides."""
    variables = list(state.variables)
    for place, value in zip(places, values, strict=True):
        if place.container is None:
            variables[place.key] = value
        else:
            held = contents(place.container)
            held[place.key] = value
            refill(place.container, held)
    access.write(tuple(variables))


def without(state: State, lost: list[int], apart: str | None, source: str) -> State:
    """A state whose variables `lost` mean nothing any more."""
    variables = list(state.variables)
    for index in lost:
        variables[index] = AfterLoop(source, apart)
    return State(tuple(variables), state.heap)


Once = TypeVar("Once")


def settled_changes(
    context: Context,
    access: Access,
    before: State,
    once: Callable[[torch.Tensor, list[torch.Tensor]], Once],
    refuse: Callable[[str, str], NoReturn] = refuse_loop,
) -> tuple[Changes, Carried, list[Once]]:
    """Rehearses trips until they change nothing that is not carried yet.

    In the first of them a number is a plain one, and of two names for one tensor only one seems to get another.

    Args:
        context: the traced run.
        access: the variables of the function.
        before: the state before the loop, which is restored.
        once: runs one trip, from its number and the carried values.
        refuse: says what cannot be carried, and what to do instead.

    Returns:
        What trips change, what is carried of it, and what the rehearsals gave: the first on the tensors themselves.
    """
    places: list[Place] = []
    carried = Carried([], [], [], [])
    results: list[Once] = []
    while True:
        with rehearsal(context):
            entry = [torch.empty_like(tensor) for tensor in carried.tensors(context, before) or []]
            put(access, before, places, carried.values(context, entry))
            entered = context.state(access)
            results.append(once(torch.empty((), dtype=torch.int64), entry))
            after = context.state(access)
            refuse_changes(before.heap.marks, after.heap.marks)
            changes = changes_of(entered, after, refuse)  # compares sizes that only the rehearsal knows
        known = {(id(place.container), place.key) for place in places}
        new = [place for place in changes.places if (id(place.container), place.key) not in known]
        context.restore(before, access)
        places = [*places, *new]
        carried = Carried.of(places, before, after) if new else carried
        if not new:
            return Changes(places, changes.grown, changes.lost), carried, results


def following_trip(
    context: Context,
    access: Access,
    carried: Carried,
    handed_on: list[torch.Tensor],
    once: Callable[[list[torch.Tensor]], Once],
    noted: Tables,
) -> Once:
    """The trip after one that was just traced, rehearsed in its place: where all are alike it is the same.

    Args:
        context: the traced run.
        access: the variables of the function.
        carried: what a trip hands to the next.
        handed_on: by the trip that was traced.
        once: runs one trip, from the carried values.
        noted: what was noted before that trip.
    """
    after = tables(context)
    set_tables(context, noted)
    with rehearsal(context):
        given = [torch.empty_like(tensor) for tensor in handed_on]
        put(access, context.state(access), carried.places, carried.values(context, given))
        again = once(given)
    set_tables(context, after)
    return again


def written_by(recorders: list[Recorder], state: State, access: Access) -> list[torch.Tensor]:
    """The tensors around a loop that its trips write to, each once."""
    reachable = tensors_of(state, access)
    found = [tensor for recorder in recorders for tensor in recorder.written_outside(reachable)]
    return list({id(tensor): tensor for tensor in found}.values())


def plain_part(state: State) -> list[Any]:
    """What of a state Python could decide on: two trips that leave it alike are followed by a third."""
    held = [pytree.tree_leaves(value) for _, value in state.heap.held.values() if not isinstance(value, set)]
    marks = [mark for _, mark in state.heap.marks.values()]
    leaves = [leaf for items in (pytree.tree_leaves(list(state.variables)), *held) for leaf in (*items, "end")]
    return [leaf if isinstance(leaf, (int, float, str)) else type(leaf) for leaf in leaves] + marks


def refuse_shared(carried: list[torch.Tensor], written: list[torch.Tensor]) -> None:
    """What is both replaced and written in place is another tensor from the second trip on."""
    storages = {storage_of(tensor) for tensor in carried}
    if any(storage_of(tensor) in storages for tensor in written):
        refuse_loop("writes in place to what it carries", "compute a new tensor, `h = h * 2` for `h.mul_(2)`")


def assign(context: Context, written: list[torch.Tensor]) -> None:
    """Tells torch.export, which notes what is assigned to a buffer last, what the buffers hold after the loop."""
    for owner in context.roots:
        for module in owner.modules() if isinstance(owner, nn.Module) else ():
            for name, buffer in module._buffers.items():
                if any(buffer is tensor for tensor in written):
                    setattr(module, name, buffer)


def tensors_of(state: State, access: Access) -> list[torch.Tensor]:
    """The tensors that the code around a loop can reach."""
    held = [list(value.values()) if isinstance(value, dict) else list(value) for _, value in state.heap.held.values()]
    leaves = pytree.tree_leaves([*state.variables, *access.reach(), *held])
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


@contextmanager
def rehearsal(context: Context) -> Iterator[None]:
    """Runs code on fake values: no nodes, and no memory of it but what it does to Python's state."""
    noted = tables(context)
    mode = detect_fake_mode()
    if mode is None or mode.shape_env is None:
        raise InternalError("a loop is captured outside of torch.export")
    try:
        with untraced(mode.shape_env):
            yield
    finally:
        set_tables(context, noted)


@contextmanager
def standing_apart(context: Context) -> Iterator[Scope]:
    """A scope that no path around it enters or leaves: what runs in it runs always."""
    entered, depth = Scope(Kind.REGION, None), len(context.scopes)
    context.scopes.append(entered)
    try:
        yield entered
    finally:
        del context.scopes[depth:]


Tables = list[tuple[Any, str, Any]]


def tables(context: Context) -> Tables:
    """What a traced run has noted of its tensors and numbers so far."""
    owners = (context, context.predicates, context.numbers)
    kinds = (dict, list, set)
    return [
        (owner, name, copy.copy(value))
        for owner in owners
        for name, value in vars(owner).items()
        if isinstance(value, kinds) and name not in ("scopes", "recorders")
    ]


def set_tables(context: Context, noted: Tables) -> None:
    """Forgets what was noted since."""
    for owner, name, value in noted:
        setattr(owner, name, copy.copy(value))
