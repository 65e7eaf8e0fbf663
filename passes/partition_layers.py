"""partition-layers: how many layers each recorded sub-graph holds, by the machine model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from gaudicc.invariants import ENGINE_ASSIGNED, STATIC, TYPED, Invariant
from gaudicc.machine import CHIPS, Chip, load_chip
from gaudicc.machine.fx_partition import stretch_of, stretches
from gaudicc.machine.partition import CALLS, Partition, PartitionChoice, choose_partition
from gaudicc.pipeline import GraphPass, Numerics
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter

# Graphs that share what weights and state leave of a card: the default strategy records at most so many buckets.
_GRAPHS = 32
# Alternatives named in a note, besides the shortest and the longest.
_SHOWN = 2


@dataclass(frozen=True)
class PartitionLayers(GraphPass):
    """Numbers the sub-graphs that layers are recorded in.

    A Gaudi compiles a recipe per sub-graph, and equal sub-graphs share one. Short sub-graphs compile fast; long ones are
    launched less often, hand on less memory, and let the graph compiler run the end of one layer under the start of the
    next. Every number of layers from one to all is priced; of those that fit in a graph's share of the memory the one with
    the least cost is taken: compile time and `calls` runs.

        %7 = call layer(%6, %w0); %8 = call layer(%7, %w1)    ->    the same, in one sub-graph of 2 layers

    Refuses (and leaves one layer a sub-graph) layers with something computed between them, and a target that the machine
    model does not know. Every time in the notes is modelled.

    Attributes:
        calls: runs over which compile time is paid back.
        layers: so many in a sub-graph, whatever the model says.
    """

    calls: int = CALLS
    layers: int | None = None

    name: ClassVar[str] = "partition-layers"
    requires: ClassVar[frozenset[Invariant]] = frozenset({TYPED, STATIC, ENGINE_ASSIGNED})
    numerics: ClassVar[Numerics] = Numerics.BITWISE

    def rewrite(self, rewriter: Rewriter, program: Program) -> Iterator[str]:
        """Only `meta` changes."""
        if rewriter.module is not program.root or program.target is None or program.target.name not in CHIPS:
            return
        chip, first = load_chip(program.target.name), 0
        room = max(0.0, chip.memory.hbm_bytes - _bound_bytes(program)) / _GRAPHS
        for calls in stretches(rewriter.module):
            stretch = stretch_of(rewriter.module, calls, chip)
            choice = choose_partition(stretch, chip, room=room, calls=self.calls, size=self.layers)
            for position, call in enumerate(calls):
                number = first + position // choice.best.size
                rewriter.modified |= call.meta.get("subgraph") != number
                call.meta["subgraph"] = number
            first += choice.best.launches
            bodies = " and ".join(dict.fromkeys(map(str, stretch.order)))
            yield _note(bodies, choice, room, chip)


def _bound_bytes(program: Program) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in program.tensors.values())


def _note(bodies: str, choice: PartitionChoice, room: float, chip: Chip) -> str:
    ends = [choice.options[0], choice.options[-1]]
    ranked = sorted(choice.options, key=lambda option: option.cost(choice.calls))
    others = dict.fromkeys(option for option in (*ends, *ranked[: _SHOWN + 1]) if option is not choice.best)
    return (
        f"{len(choice.options)} calls of {bodies} in sub-graphs of {_told(choice.best)}, modelled on {chip.name}; "
        f"others: {'; '.join(map(_told, others)) or 'none'}; {choice.calls:,} calls pay back compiling, "
        f"a graph may hold {room / 2**20:,.0f} MiB"
    )


def _told(option: Partition) -> str:
    return (
        f"{option.size}: {option.launches} launches, {option.step_seconds * 1e6:,.1f} us a call, "
        f"{option.compile_seconds:.2f} s to compile {option.recipes} recipes, {option.held_bytes / 2**20:,.1f} MiB"
    )
