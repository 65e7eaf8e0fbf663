"""assign-engines: which unit of the chip runs each op."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from gaudicc.invariants import ENGINE_ASSIGNED, LEGAL_OPS, TYPED, Invariant, verdict_of
from gaudicc.nodes import is_op
from gaudicc.pipeline import GraphPass, Numerics
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter


@dataclass(frozen=True)
class AssignEngines(GraphPass):
    """Writes on every op the engine that the target's table gives for it.

    Matrix products run on the MME, everything else that moves or computes on the TPCs; gaudi3 has no DMA engine for the
    compiler, so there a copy is TPC work too. The schedule, the split of attention and the report read it.

        %26 = aten.linear(%25, %w)      ->      %26 = aten.linear(%25, %w)  # MME

    Refuses nothing.
    """

    name: ClassVar[str] = "assign-engines"
    requires: ClassVar[frozenset[Invariant]] = frozenset({LEGAL_OPS, TYPED})
    ensures: ClassVar[frozenset[Invariant]] = frozenset({ENGINE_ASSIGNED})
    numerics: ClassVar[Numerics] = Numerics.BITWISE

    def rewrite(self, rewriter: Rewriter, program: Program) -> Iterator[str]:
        """Only `meta` changes; counted for the trace."""
        counts: Counter[str] = Counter()
        for node in [n for n in rewriter.graph.nodes if is_op(n)]:
            engine = verdict_of(node, program).engine
            counts[engine.value] += 1
            if node.meta.get("engine") is not engine:
                node.meta["engine"] = engine
                rewriter.modified = True
        if counts:
            yield ", ".join(f"{engine} {count}" for engine, count in sorted(counts.items()))
