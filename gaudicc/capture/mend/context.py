"""Capture, mending: what one traced run of the model knows: where it is, under which predicate, and what it flagged."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from gaudicc.capture.mend.heap import Heap
from gaudicc.capture.mend.numbers import Numbers
from gaudicc.capture.mend.outcomes import here
from gaudicc.capture.mend.predicates import Pred, Predicates
from gaudicc.capture.mend.watch import Watch
from gaudicc.errors import DynamicControlFlowError, Where

if TYPE_CHECKING:
    from gaudicc.capture.mend.piece_calls import Calls
    from gaudicc.capture.mend.pieces import Split
    from gaudicc.capture.mend.recorder import Recorder
    from gaudicc.capture.mend.trip_index import Row
    from gaudicc.capture.mend.trips import SizeRange

UNROLL_LIMIT = 64
"""Trips after which a loop with a tensor in its test, and no declared maximum, is refused."""


class Kind(enum.Enum):
    """What a scope of the running program is."""

    ROOT = "root"
    CALL = "call"
    LOOP = "loop"
    TRIP = "trip"
    BRANCH = "branch"
    TRY = "try with finally"
    REGION = "one trip of a loop that only data ends"


class Signal(enum.Enum):
    """How a block of statements ended, when not by falling off its end."""

    BREAK = "break"
    CONTINUE = "continue"
    DEAD = "dead"  # every path through the block has left it already


@dataclass(frozen=True, slots=True)
class Return:
    """A block ended by returning a value from its function."""

    value: Any


class Unreachable(BaseException):
    """Every path has left the function being run."""


@dataclass(frozen=True, slots=True)
class Access:
    """Reads and writes all variables of one running function.

    Attributes:
        read: the values of its variables: those of outer scopes that it binds, its parameters, its own.
        write: binds them all.
        outer: how many of the first outlive the call.
        params: how many parameters it has.
        reach: the values of the other names that it uses: containers behind them may be changed too.
    """

    read: Callable[[], tuple[Any, ...]]
    write: Callable[[tuple[Any, ...]], None]
    outer: int = 0
    params: int = 0
    reach: Callable[[], tuple[Any, ...]] = tuple


@dataclass(frozen=True, slots=True)
class State:
    """The variables of one function and the containers they reach, at one moment."""

    variables: tuple[Any, ...]
    heap: Heap


@dataclass(frozen=True, slots=True)
class Exit:
    """A path that left a scope early: under which predicate, how, and with which state."""

    pred: Pred
    signal: Signal | Return | None
    state: Any  # a State; None of a path that raises


@dataclass(slots=True)
class Scope:
    """One nested part of the running program; `pred` holds while control is in it."""

    kind: Kind
    pred: Pred
    exits: list[Exit] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Flag:
    """One element of the extra output of a mended program, a bool: true when the program must raise.

    Attributes:
        error: the exception to raise, as the user's code made it.
        source: the `file:line` that raises.
        overflow: whether it says that a loop ran past its declared maximum.
    """

    error: Exception
    source: str
    overflow: bool = False

    @property
    def type(self) -> type[Exception]:
        """The class of the exception."""
        return type(self.error)

    @property
    def message(self) -> str:
        """The text of the exception."""
        return str(self.error)


class Context:
    """The state of one traced run.

    Args:
        roots: objects whose containers any branch may change (the model).
        max_trips: trips to unroll where only data ends a loop, or None if the user declared no maximum.
        is_rewritten: whether code is the result of a rewrite.
    """

    def __init__(self, roots: tuple[Any, ...], max_trips: int | None, is_rewritten: Callable[[CodeType], bool]) -> None:
        self.roots, self.is_rewritten = roots, is_rewritten
        self.watch = Watch(is_rewritten)
        self.max_trips = max_trips
        self.scopes = [Scope(Kind.ROOT, None)]
        self.predicates = Predicates()
        self.numbers = Numbers()
        self.bounds: dict[str, int] = {}  # most elements that a data-dependent size can have, by symbol
        self.nonzero_of: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # result of nonzero -> (result, its mask)
        self.merged: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.tests: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self.safe_sizes: dict[tuple[str, int], Any] = {}
        self.known_sizes: dict[int, tuple[torch.Tensor, int, Any]] = {}  # tensor -> (itself, its version, its number)
        self.flags: dict[tuple[str, type, str], tuple[Flag, torch.Tensor]] = {}
        self.listed: dict[int, tuple[Any, torch.Tensor]] = {}  # result of tolist -> (result, what it was read from)
        self.splits: dict[int, tuple[Any, Split]] = {}  # pieces by such a list -> (pieces, what was split)
        self.trip_counts: dict[str, SizeRange] = {}  # number of a trip -> the range that the loop is over
        self.keeps_loops = True  # loops over dynamic sizes are regions, else they are unrolled, which fixes the size
        self.first_apart: set[str] = set()  # lines of loops whose first trip is traced by itself
        self.recorders: list[Recorder | Calls] = []  # of the trips that run now, outermost first
        self.regions: set[str] = set()  # lines of loops that data ends, traced as one trip
        self.unrolled: dict[str, DynamicControlFlowError] = {}  # those that cannot be
        self.kept_rows: set[int] = set()  # storages of which a loop keeps rows: later writes would be missed
        self.rows_of: list[Row] = []  # rows picked by the number of a trip, which stand for views
        self.departures = 0  # paths that have left a scope early so far

    @property
    def pred(self) -> Pred:
        """The predicate under which the current statement is executed; None where it always is."""
        return self.scopes[-1].pred

    @contextmanager
    def scope(self, kind: Kind, test: Pred = None) -> Iterator[Scope]:
        """Enter a nested scope, in which `test` holds besides everything around it."""
        entered = Scope(kind, self.predicates.both(self.pred, test))
        depth = len(self.scopes)
        self.scopes.append(entered)
        try:
            yield entered
        finally:
            del self.scopes[depth:]

    def state(self, access: Access | None) -> State:
        """Copy the variables and containers that a branch could change."""
        variables = access.read() if access else ()
        reach = access.reach() if access else ()
        return State(variables, Heap.take((*variables, *reach, *self.roots)))

    def restore(self, state: State, access: Access | None) -> None:
        """Put back what `state` copied."""
        state.heap.restore()
        if access:
            access.write(state.variables)

    def leave(self, kind: Kind | None, signal: Signal | Return | None, state: State | None) -> None:
        """Record that the current path leaves the innermost scope of `kind` (None: the whole program).

        From here to the end of that scope, code runs only on the paths that did not leave.
        """
        gone = self.pred
        self.departures += 1
        for scope in reversed(self.scopes):
            if gone is not None:
                scope.pred = self.predicates.without(scope.pred, gone)
            if scope.kind in (kind, Kind.TRY, Kind.REGION):
                if state is None and scope.kind is Kind.TRY:
                    self._refuse_raise()
                scope.exits.append(Exit(gone, signal, state))
                return

    @staticmethod
    def _refuse_raise() -> NoReturn:
        raise DynamicControlFlowError(
            "an exception that depends on a tensor leaves a `try` that has a `finally`",
            where=Where(source=here()),
            hint="test the condition before the `try`",
        )

    def flag(self, error: Exception, source: str, *, overflow: bool = False) -> None:
        """Make the captured program raise `error` when the current predicate holds, and end the paths that do."""
        assert self.pred is not None
        key = (source, type(error), str(error))
        # Its traceback would keep every frame of the capture alive.
        flag, earlier = self.flags.get(key, (Flag(error.with_traceback(None), source, overflow), None))
        self.flags[key] = (flag, self.predicates.either(earlier, self.pred))
        self.leave(None, None, None)

    def choose(
        self, pred: torch.Tensor, then: Callable[[], Any], orelse: Callable[[], Any], access: Access | None = None
    ) -> Any:
        """The merged value of two expressions, each run under its side of `pred`."""
        from gaudicc.capture.mend.control import choose

        return choose(self, pred, then, orelse, access)


class _Active(threading.local):
    context: Context | None = None


_ACTIVE = _Active()


def active() -> Context | None:
    """The traced run of this thread, or None: then rewritten code must act as plain Python."""
    return _ACTIVE.context


@contextmanager
def activate(context: Context) -> Iterator[Context]:
    """Make `context` the traced run of this thread."""
    before, _ACTIVE.context = _ACTIVE.context, context
    try:
        yield context
    finally:
        _ACTIVE.context = before
