"""choose-branches: which conditions the host decides, between two recorded graphs, by the machine model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from gaudicc.branches import Sides, order_of
from gaudicc.conditions import conditions_of
from gaudicc.cut_branches import Branch, cut, origin_of
from gaudicc.errors import InputError
from gaudicc.invariants import ENGINE_ASSIGNED, STATIC, TYPED, Invariant
from gaudicc.lower_branches import MARK
from gaudicc.machine import CHIPS, Chip, load_chip
from gaudicc.machine.cost import Engine
from gaudicc.machine.fx_program import ProgramTasks
from gaudicc.nodes import body_of, call_loop, source_of
from gaudicc.pipeline import Numerics, PassResult
from gaudicc.program import Program

FORMS = ("cost", "predicate", "host")


@dataclass(frozen=True)
class ChooseBranches:
    """Lets the host decide an `if` whose sides are long, so that one of them alone is run.

    Captured, an `if` computes both sides and selects, since a Gaudi leaves no recorded graph in its middle. That is cheap where
    the sides are short. Where they are whole layers, the program is cut there: the host reads the condition, which drains the
    device, and replays the graph of one side. What a side needs alone follows from the selections. Each way is taken to be as
    likely as the other, so that half of the work of both sides is saved; the host decides where that is more than the price of
    reading one value (`transfer_latency`) and of two more launches (`replay_seconds`) for each branch. Outermost first, then
    inside each side.

        %9: bool[] = aten.gt.Scalar(%8, 0.9)    ->    %9: bool[] = aten.gt.Scalar(%8, 0.9)  # decided by the host

    Refuses (and computes both sides of) what draws random numbers, collectives, which other chips wait for, bodies of loops,
    and, by cost, a target that the machine model does not know. Every time in the notes is modelled.

    Attributes:
        form: `cost`; `predicate` computes both sides of every `if`, `host` lets the host decide every one.
    """

    form: str = "cost"

    name: ClassVar[str] = "choose-branches"
    requires: ClassVar[frozenset[Invariant]] = frozenset({TYPED, STATIC, ENGINE_ASSIGNED})
    ensures: ClassVar[frozenset[Invariant]] = frozenset()
    breaks: ClassVar[frozenset[Invariant]] = frozenset()
    numerics: ClassVar[Numerics] = Numerics.BITWISE

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise InputError(f"branches is {self.form!r}", hint=f"choose one of {', '.join(FORMS)}")

    def run(self, program: Program) -> PassResult:
        """Only `meta` changes."""
        known = program.target is not None and program.target.name in CHIPS
        if self.form == "predicate" or (self.form == "cost" and not known):
            return PassResult(program, False)
        chip = load_chip(program.target.name) if known and program.target is not None else None
        in_loops = set(_loop_bodies(program))
        chooser = _Chooser(chip if self.form == "cost" else None)
        for _, module in reversed(list(program.graphs())):  # what the root decides is around what its bodies do
            if module not in in_loops:
                chooser.choose(module)
        return PassResult(program, bool(chooser.notes), tuple(chooser.notes))


def _loop_bodies(program: Program) -> Iterator[fx.GraphModule]:
    """The bodies of loops, and what they call."""
    for _, module in program.graphs():
        for node in module.graph.nodes:
            if node.target is call_loop:
                yield from (part for part in body_of(module, node).modules() if isinstance(part, fx.GraphModule))


class _Chooser:
    """Marks conditions, the outermost with the lowest rank.

    Args:
        chip: what branches are priced on; None: the host decides whatever it can.
    """

    def __init__(self, chip: Chip | None) -> None:
        self._chip = chip
        self._times: dict[fx.Node, tuple[float, float]] = {}
        self._rank = 0
        self.notes: list[str] = []

    def choose(self, module: fx.GraphModule) -> None:
        """Marks the conditions of one graph that the host decides, and those inside each side."""
        order = order_of(module.graph)
        open_ = [condition for condition in conditions_of(module.graph) if MARK not in condition.meta]
        found = [(self._gain(module, sides), sides) for sides in (Sides(condition, order) for condition in open_)]
        gain, sides = max(found, key=lambda pair: pair[0], default=(0.0, None))
        if sides is None or gain <= 0:
            return
        for node in (sides.condition, origin_of(sides.condition)):
            node.meta[MARK] = self._rank
        self._rank += 1
        self.notes.append(self._note(module, sides, gain))
        for part in cut(module, sides):
            for graph in (part.then, part.otherwise) if isinstance(part, Branch) else (part,):
                self.choose(graph)

    def _gain(self, module: fx.GraphModule, sides: Sides) -> float:
        """Seconds that the host saves by deciding, each way as likely as the other; of any price, the nodes that are left out."""
        if self._chip is None:
            return len(sides.only[True]) + len(sides.only[False])
        saved = self._saved(module, sides)
        if saved <= self._price(1):
            return 0.0
        branches = len(sides.settle())
        return self._saved(module, sides) - self._price(branches)

    def _price(self, branches: int) -> float:
        assert self._chip is not None
        host = self._chip.host
        return host.transfer_latency + 2 * branches * host.replay_seconds

    def _saved(self, module: fx.GraphModule, sides: Sides) -> float:
        return sum(self._seconds(module, sides, holds) for holds in (True, False)) / 2

    def _seconds(self, module: fx.GraphModule, sides: Sides, holds: bool) -> float:
        """Of what one side needs alone: of the engine that has more to do, as if the other's work were hidden under it."""
        times = [self._time(module, node) for node in sides.only[holds]]
        return max(sum(mme for mme, _ in times), sum(tpc for _, tpc in times))

    def _time(self, module: fx.GraphModule, node: fx.Node) -> tuple[float, float]:
        """Seconds of the MME and of the TPCs."""
        assert self._chip is not None
        origin = origin_of(node)
        if origin not in self._times:
            tasks = ProgramTasks(self._chip)
            tasks.nodes(module, [node], {})
            mme = sum(task.seconds for task in tasks.tasks if task.engine is Engine.MME)
            self._times[origin] = mme, sum(task.seconds for task in tasks.tasks) - mme
        return self._times[origin]

    def _note(self, module: fx.GraphModule, sides: Sides, gain: float) -> str:
        place = source_of(sides.condition) or sides.condition.name
        if self._chip is None:
            return f"the host decides the condition at {place}: asked for"
        then, otherwise = (f"{self._seconds(module, sides, holds) * 1e6:,.1f} us" for holds in (True, False))
        return (
            f"the host decides the condition at {place}: {then} where it holds, {otherwise} where not, "
            f"{gain * 1e6:,.1f} us saved of two calls' mean, modelled on {self._chip.name}"
        )
