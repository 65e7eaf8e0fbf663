"""Capture, mending: branches and calls of rewritten functions, as they are while a model is being captured.

Every function here acts as plain Python when the value decided on is plain, or when no capture runs in this thread:
rewritten code may be called eagerly by others at the same time.

On a tensor, both sides of a branch run from the same state and are merged by `where`; a path that returns, breaks,
continues or raises leaves its scope with its state, the rest runs only for the paths that stayed, and the scope's end
folds them together. Python state that no tensor decides on stays plain Python throughout.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import BuiltinMethodType, FunctionType
from typing import Any

import torch
from torch import nn

from gaudicc.capture.mend.context import (
    Access,
    Context,
    Exit,
    Kind,
    Return,
    Signal,
    State,
    Unreachable,
    active,
)
from gaudicc.capture.mend.marks import modes, refuse_changes, refuse_modes
from gaudicc.capture.mend.merge import fold, install, merge, merge_states
from gaudicc.capture.mend.outcomes import NeedsRewrite, is_path_outcome, is_user_file, refuse_if_caught, source_of
from gaudicc.capture.mend.partial import on_containers, on_spread
from gaudicc.capture.mend.truth import truth
from gaudicc.capture.mend.values import distribute, is_of_sizes, is_partial, is_undecided

Block = Callable[[], Any]
Ending = Signal | Return | None
_TARGET = {Signal.BREAK: Kind.LOOP, Signal.CONTINUE: Kind.TRIP}


def end(context: Context, ending: Ending, access: Access | None) -> bool:
    """Record how a block ended; true if control falls off its end."""
    if ending is None:
        return True
    if ending is not Signal.DEAD:
        target = Kind.CALL if isinstance(ending, Return) else _TARGET[ending]
        context.leave(target, ending, context.state(access))
    return False


def raised(context: Context, error: Exception) -> None:
    """Turn an exception of the user's into a flag; anything else goes on."""
    if context.pred is None or not is_path_outcome(error):
        raise error
    refuse_if_caught(error, context.watch.boundary)
    context.flag(error, source_of(error))


@dataclass(slots=True)
class _Side:
    open: bool
    value: Any
    state: State


def _sides(context: Context, pred: torch.Tensor, runs: tuple[Block, Block], access: Access | None) -> list[_Side]:
    before, mode = context.state(access), modes()
    sides: list[_Side] = []
    for test, run in zip((pred, context.predicates.negate(pred)), runs, strict=True):
        if sides:
            context.restore(before, access)
        is_open, value = False, None
        with context.scope(Kind.BRANCH, test):
            try:
                is_open, value = run()
            except Unreachable:
                pass
            except Exception as error:
                raised(context, error)
            sides.append(_Side(is_open, value, context.state(access)))
        refuse_changes(before.heap.marks, sides[-1].state.heap.marks)
        refuse_modes(mode, modes())
    return sides


def _join(context: Context, pred: torch.Tensor, sides: list[_Side], access: Access | None) -> bool:
    """Make the state after a branch the present one; false if no path reaches the end of the branch."""
    then, orelse = sides
    if then.open and orelse.open:
        install(context, merge_states(context, pred, then.state, orelse.state), access)
    elif then.open or orelse.open:
        install(context, (then if then.open else orelse).state, access)
    return then.open or orelse.open


def branch(context: Context, pred: torch.Tensor, then: Block | None, orelse: Block | None, access: Access) -> Ending:
    """Both sides of an `if` on a tensor; returns how control leaves it."""

    def run(block: Block | None) -> tuple[bool, None]:
        return end(context, block() if block else None, access), None

    sides = _sides(context, pred, (lambda: run(then), lambda: run(orelse)), access)
    return None if _join(context, pred, sides, access) else Signal.DEAD


def finally_(body: Block, last: Block, access: Access) -> Ending:
    """A `try` with a `finally`, of a rewritten function: `last` also runs for every path that leaves `body` early."""
    context = active()
    if context is None:
        return _plain_finally(body, last)
    with context.scope(Kind.TRY) as scope:
        ending = _plain_finally(body, lambda: None, on_error=last)
    stayed = context.state(access)
    for exit_ in scope.exits:
        with context.scope(Kind.BRANCH, exit_.pred):
            install(context, exit_.state, access)
            end(context, last() or exit_.signal, access)
    if ending is Signal.DEAD and scope.exits:
        return ending
    install(context, stayed, access)
    after: Ending = last()
    return after or ending


def _plain_finally(body: Block, last: Block, on_error: Block | None = None) -> Ending:
    try:
        ending: Ending = body()
    except Unreachable:
        ending = Signal.DEAD
    except BaseException:
        (on_error or last)()
        raise
    after: Ending = last()
    return after or ending


def given(value: Any) -> Block:
    """A side of `choose` that has its value already."""
    return lambda: value


def choose(context: Context, pred: torch.Tensor, then: Block, orelse: Block, access: Access | None) -> Any:
    """The merged value of two expressions, each evaluated under its side of `pred`."""
    known = context.predicates.decided(pred, context.pred)
    if known is not None:
        return then() if known else orelse()
    sides = _sides(context, pred, (lambda: (True, then()), lambda: (True, orelse())), access)
    if not _join(context, pred, sides, access):
        raise Unreachable
    left, right = sides
    if left.open and right.open:
        return merge(context, pred, left.value, right.value)
    return left.value if left.open else right.value


def if_(test: Any, then: Block | None, orelse: Block | None, access: Access) -> Ending:
    """An `if` statement of a rewritten function; each side is a block that returns how it ended."""
    context = active()
    decision = truth(test)
    if not isinstance(decision, torch.Tensor) or context is None:
        block = then if decision else orelse
        return block() if block else None
    return branch(context, decision, then, orelse, access)


def call(body: Block, access: Access) -> Any:
    """Run the body of a rewritten function and return its value."""
    context = active()
    if context is None:
        ending = body()
        return ending.value if isinstance(ending, Return) else None
    with context.scope(Kind.CALL) as scope:
        try:
            ending = body()
        except Unreachable:
            ending = Signal.DEAD
        except Exception as error:
            if not scope.exits:
                raise
            raised(context, error)
            ending = Signal.DEAD
        if ending is not Signal.DEAD:
            ending = ending or Return(None)
            if not scope.exits:
                return _handed_on(context, ending.value, access)
            scope.exits.append(Exit(context.pred, ending, context.state(access)))
    if not scope.exits:
        raise Unreachable
    install(context, fold(context, scope.exits, access.outer), access)
    return _handed_on(context, returned(context, scope.exits), access)


def _handed_on(context: Context, value: Any, access: Access) -> Any:
    """What a call returns; its caller must be able to hold it, and what became of the arguments."""
    given_ = access.read()[access.outer : access.outer + access.params]
    containers = [item for item in given_ if isinstance(item, (list, dict, deque))]
    if is_undecided(value) or is_undecided(containers) or is_of_sizes(value):
        context.watch.require_rewritten(depth=2)
    return value


def invoke(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A call in a rewritten function: other code gets each value an undecided argument can have, one by one."""
    context = active()
    if context is None:
        return function(*args, **kwargs)
    run = on_spread(context, function, args, kwargs)
    if run is not None:
        return run()
    callee = _user_function(function)
    rewritten = callee is not None and context.is_rewritten(callee.__code__)
    if callee is not None and not rewritten and (is_partial((args, kwargs)) or is_of_sizes((args, kwargs))):
        raise NeedsRewrite(function=callee)
    run = None if rewritten else on_containers(context, function, args, kwargs)
    if run is not None:
        return run()
    if rewritten or not is_undecided((args, kwargs)) or _can_take_undecided(function, args):
        return function(*args, **kwargs)
    return distribute(function, args, kwargs)


def _user_function(function: Any) -> FunctionType | None:
    """The Python function that a call of the user's code runs."""
    function = function.forward if isinstance(function, nn.Module) else function
    target = getattr(function, "__func__", function)
    return target if isinstance(target, FunctionType) and is_user_file(target.__code__.co_filename) else None


_STORES = {list: {"append": 0, "extend": 0, "insert": 1}, dict: {"get": 1, "pop": 1, "setdefault": 1, "update": 0}}
"""Methods of containers -> the first argument that they only store or hand on; those before it are looked up."""


def _can_take_undecided(function: Any, args: tuple[Any, ...]) -> bool:
    """Whether a callable is Python code of torch or mending, or a container method that only stores what is undecided."""
    target = getattr(function, "__func__", function)
    if isinstance(target, BuiltinMethodType) and isinstance(target.__self__, (list, dict, set)):
        first = _STORES.get(type(target.__self__), {}).get(target.__name__)
        return first is not None and not is_undecided(args[:first])
    code = getattr(target, "__code__", None)
    return code is not None and not is_user_file(code.co_filename)


def returned(context: Context, exits: list[Exit]) -> Any:
    """The value that a function returns, whose paths left it by `exits`; exactly one of their predicates holds."""
    values = [exit_.signal.value for exit_ in exits if isinstance(exit_.signal, Return)]
    merged = values[-1]
    for exit_, value in zip(reversed(exits[:-1]), reversed(values[:-1]), strict=True):
        assert exit_.pred is not None
        merged = merge(context, exit_.pred, value, merged)
    return merged
