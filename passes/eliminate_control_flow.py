"""eliminate-control-flow: loops that only data ends get the form in which they are recorded."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import fx

from gaudicc.calling import Raise
from gaudicc.errors import InputError, LoopOverflowError, Where
from gaudicc.invariants import FUNCTIONAL, TYPED, WELL_FORMED, Invariant
from gaudicc.nodes import call_loop, source_of
from gaudicc.pipeline import Numerics, PassResult
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.flags import with_flags
from gaudicc.rules.predication import hinders, predicate

_NODES = 1024  # of a chunk: recording more saves little, since a flag is read in the time of a few kernels


@dataclass(frozen=True)
class EliminateControlFlow:
    """Gives every loop that only data ends a body that may run once too often.

    A Gaudi replays recorded graphs, and the host has to read a flag to know whether another trip follows: that drains the
    device. So several trips are recorded as one graph, and the flag is read once for all of them. A trip that is not meant to
    happen hands on what it was given, selected by `where`; indices and integer divisors are replaced there, so that it
    cannot fail. With a declared maximum there is no flag to read: all trips are made, and one that is missing raises.

        while the first is true: loop(%go, %h)    ->    while the first is true, 8 trips at a time: loop(%go, %h)
        return (%more, %new)                      ->    return (aten.logical_and(%go, %more), aten.where(%go, %new, %h))

    Refuses nothing: a loop whose body holds another one is looked at after every trip. An `if` is a selection already; which
    of them the host decides after all is a matter of sizes, and so of `choose-branches`.

    Attributes:
        chunk: most trips between two looks at the flag; fewer of a large body.
        most: the most trips that any such loop of the root may want; one that wants more raises `LoopOverflowError`
            when the program runs, and never stops early in silence. None: as many as it takes.
    """

    chunk: int = 8
    most: int | None = None

    name: ClassVar[str] = "eliminate-control-flow"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL})
    ensures: ClassVar[frozenset[Invariant]] = frozenset()
    breaks: ClassVar[frozenset[Invariant]] = frozenset()
    numerics: ClassVar[Numerics] = Numerics.BITWISE

    def __post_init__(self) -> None:
        if self.chunk < 1 or (self.most is not None and self.most < 0):
            raise InputError(f"chunk is {self.chunk} and most {self.most}", hint="give a chunk of 1 or more trips")

    def run(self, program: Program) -> PassResult:
        """Decides on each loop, and rewrites each body once."""
        notes: list[str] = []
        done: set[fx.GraphModule] = set()
        overflows: list[tuple[fx.Node, Raise]] = []
        for name, module in list(program.graphs()):
            rewriter = Rewriter(module)
            for call in [node for node in module.graph.nodes if _data_ends(node)]:
                body = getattr(module, str(cast(fx.Node, call.args[0]).target))
                reason = hinders(body)
                place = source_of(call) or name
                if reason is None and body not in done:
                    predicate(body)
                    done.add(body)
                if self.most is not None and module is program.root and reason is None:
                    overflows.append(self._bounded(rewriter, call, self.most))
                    notes.append(f"the loop at {place} makes {self.most} trips, and raises if it wants more")
                else:
                    trips = 1 if reason else max(1, min(self.chunk, _NODES // len(body.graph.nodes)))
                    call.update_arg(2, trips)
                    rewriter.modified = True
                    why = f": {reason}" if reason else ""
                    notes.append(f"the loop at {place} is recorded as {trips} trips a graph{why}")
            if not overflows:  # else the flags are not used yet
                rewriter.finish()
        return PassResult(with_flags(program, overflows), bool(notes), tuple(notes))

    @staticmethod
    def _bounded(rewriter: Rewriter, call: fx.Node, most: int) -> tuple[fx.Node, Raise]:
        """Makes a loop of a fixed number of trips; gives the flag that it wanted more."""
        call.args = (call.args[0], most, None, *call.args[3:])
        place = source_of(call) or ""
        error = LoopOverflowError(
            f"a loop wants more than the declared maximum of {most} trips",
            where=Where(source=place),
            hint="declare a larger one, EliminateControlFlow(most=...), or none",
        )
        item = rewriter.emit(operator.getitem, call, 0, like=call.next)
        return item, Raise(error, place)


def _data_ends(node: fx.Node) -> bool:
    return node.target is call_loop and node.args[1] is None
