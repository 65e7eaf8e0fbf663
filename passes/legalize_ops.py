"""legalize-ops: what the target does not support -> what it does, rule by rule, to a fixpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from torch import fx
from torch._decomp import core_aten_decompositions

from gaudicc.errors import UnsupportedOpError
from gaudicc.invariants import FUNCTIONAL, LEGAL_OPS, NO_COMPLEX, STATIC, TYPED, WELL_FORMED, Invariant, verdict_of
from gaudicc.pipeline import GraphPass, Numerics
from gaudicc.program import Program, is_op, op_name, where
from gaudicc.rewriter import Rewriter
from gaudicc.rules import index_generation, integers, slicing
from gaudicc.rules.rule import Rule
from gaudicc.targets import Engine, Support

ALL_RULES: tuple[Rule, ...] = (*index_generation.RULES, *slicing.RULES, *integers.RULES)


@dataclass(frozen=True)
class LegalizeOps(GraphPass):
    """Rewrites every op that the target's table calls unsupported or reported bad, or refuses it by name.

    On a Gaudi such an op crashes or falls back to the CPU without a word, and inside a recorded graph it is fatal. What a rule
    emits is judged by the same table, until nothing is left to rewrite.

        %4 = aten.slice.Tensor(%x, 1, 0, 64, 2)   ->   %2 = aten.view(%x, [2, 32, 2]); %4 = aten.select.int(%2, 2, 0)

    Refuses, with the source line, an op that no rule and no decomposition makes legal.

    Attributes:
        rules: tried in order; the first whose check passes is applied.
        rounds: a bound on the fixpoint; reaching it means that two rules undo each other.
        host: leave what cannot be made legal on the host, as a step of its own between recorded graphs, instead of refusing it.
    """

    rules: tuple[Rule, ...] = field(default=ALL_RULES, repr=False)
    rounds: int = 8
    host: bool = False

    name: ClassVar[str] = "legalize-ops"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL, STATIC, NO_COMPLEX})
    ensures: ClassVar[frozenset[Invariant]] = frozenset({LEGAL_OPS})
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, rewriter: Rewriter, program: Program) -> Iterator[str]:
        """Rewrites until every op is legal."""
        applied: Counter[str] = Counter()
        for _ in range(self.rounds):
            illegal = [node for node in rewriter.graph.nodes if is_op(node) and not _legal(node, program)]
            if not illegal:
                break
            for node in illegal:
                applied[self._rewrite_one(rewriter, program, node)] += 1
        else:
            raise UnsupportedOpError(
                f"{op_name(illegal[0])} is still not legal after {self.rounds} rounds of rules",
                where=where(illegal[0], self.name),
            )
        yield from (f"{rule} applied {count} times" for rule, count in sorted(applied.items()))

    def _rewrite_one(self, rewriter: Rewriter, program: Program, node: fx.Node) -> str:
        misfits = []
        for rule in self.rules:
            if node.target in rule.ops:
                reason = rule.misfit(node)
                if reason is None:
                    self._splice(rewriter, node, rule.rewrite)
                    return f"{op_name(node)}: rule {rule.name}"
                misfits.append(f"rule {rule.name} does not fit: {reason}")
        table = _decompositions()
        if node.target in table:
            self._splice(rewriter, node, table[node.target])
            return f"{op_name(node)}: PyTorch's decomposition"
        reasons = [verdict_of(node, program).reason, *misfits]
        if self.host:
            node.meta["engine"] = Engine.HOST
            rewriter.modified = True
            return f"{op_name(node)} left on the host ({reasons[0]})"
        raise UnsupportedOpError("; ".join(reasons), where=where(node, self.name))

    def _splice(self, rewriter: Rewriter, node: fx.Node, rewrite: Any) -> None:
        result = rewriter.inline(partial(_call, rewrite), node.args, dict(node.kwargs), like=node, composites=False)
        if isinstance(result, tuple):
            rewriter.replace_outputs(node, result)
        else:
            rewriter.replace(node, result)


def _call(rewrite: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return rewrite(*args, **kwargs)


def _legal(node: fx.Node, program: Program) -> bool:
    return verdict_of(node, program).support in (Support.EVIDENCED, Support.PRESUMED)


def _decompositions() -> dict[Any, Any]:
    table: dict[Any, Any] = core_aten_decompositions()
    return table
