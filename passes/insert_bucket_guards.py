"""insert-bucket-guards: the conditions under which the program holds, as a program of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from gaudicc.invariants import SHAPES_GUARDED, TYPED, WELL_FORMED, Invariant
from gaudicc.nodes import val
from gaudicc.pipeline import Numerics, PassResult
from gaudicc.program import Guard, Program


@dataclass(frozen=True)
class InsertBucketGuards:
    """Writes down what every call must satisfy before a bucket is chosen for it.

    Gaudi replays graphs of fixed shape: a call with another shape would read past the recorded buffers or compile anew. The
    guards are evaluated on the host, on logical sizes, before anything is launched.

        %ids: i64[2, S]  with S in 1 .. 64      ->      ids.shape[0] == 2;  1 <= ids.shape[1] <= 64

    Refuses nothing.
    """

    name: ClassVar[str] = "insert-bucket-guards"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED})
    ensures: ClassVar[frozenset[Invariant]] = frozenset({SHAPES_GUARDED})
    breaks: ClassVar[frozenset[Invariant]] = frozenset()
    numerics: ClassVar[Numerics] = Numerics.BITWISE

    def run(self, program: Program) -> PassResult:
        """Adds one guard per size of every user input, and one per pair of sizes that must agree."""
        guards = list(program.guards)
        symbolic = {place: dim for dim in program.dimensions for place in dim.positions}
        placeholders = {node.name: node for node in program.root.graph.nodes if node.op == "placeholder"}
        held = {program.calling.paths[cache.argument] for cache in program.calling.caches}  # guarded by who holds them
        for spec in program.user_inputs():
            for position, size in enumerate(val(placeholders[spec.name]).shape):
                text = f"{spec.name}.shape[{position}]"
                dim = symbolic.get((spec.name, position))
                if dim is None and not isinstance(size, torch.SymInt) and spec.source not in held:
                    guards.append(Guard(f"{text} == {size}", f"captured with this size of {spec.source}"))
                elif dim is not None and dim.positions[0] == (spec.name, position):
                    bound = f" <= {dim.high}" if dim.high >= 0 else ""
                    guards.append(Guard(f"{dim.low} <= {text}{bound}", f"the range of {dim.name}"))
                elif dim is not None:
                    first, at = dim.positions[0]
                    guards.append(Guard(f"{text} == {first}.shape[{at}]", f"both are {dim.name}"))
        added = tuple(guards) != program.guards
        return PassResult(replace(program, guards=tuple(guards)), added, (f"{len(guards)} guards",))
