"""legalize-ops: what the target does not support -> what it does, rule by rule, to a fixpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import fx
from torch._decomp import decomposition_table

from gaudicc.errors import UnsupportedOpError, Where
from gaudicc.invariants import FUNCTIONAL, LEGAL_OPS, NO_COMPLEX, STATIC, TYPED, WELL_FORMED, Invariant, verdict_of
from gaudicc.nodes import is_op, op_name, val, where
from gaudicc.pipeline import GraphPass, Numerics
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules import (
    bags,
    booleans,
    distances,
    elementwise,
    elimination,
    gammas,
    histograms,
    index_generation,
    indexing,
    integer_scatter,
    integers,
    order,
    polynomials,
    pooling,
    promotion,
    reflections,
    resampling,
    scans,
    scattering,
    segments,
    slicing,
    small_integers,
    special,
    triangular,
    unsigned,
)
from gaudicc.rules.rule import Rule
from gaudicc.targets import Engine, Support, Verdict

ALL_RULES: tuple[Rule, ...] = (
    *index_generation.RULES,
    *slicing.RULES,
    *integers.RULES,
    *booleans.RULES,
    *unsigned.RULES,
    *small_integers.RULES,
    *indexing.RULES,
    *scattering.RULES,
    *integer_scatter.RULES,
    *scans.RULES,
    *histograms.RULES,
    *order.RULES,
    *distances.RULES,
    *bags.RULES,
    *segments.RULES,
    *pooling.RULES,
    *resampling.RULES,
    *elementwise.RULES,
    *triangular.RULES,
    *elimination.RULES,
    *reflections.RULES,
    *special.RULES,
    *gammas.RULES,
    *polynomials.RULES,
    *promotion.RULES,
)


@dataclass(frozen=True)
class LegalizeOps(GraphPass):
    """Rewrites every op that the target's table calls unsupported or reported bad, or refuses it by name.

    On a Gaudi such an op crashes or falls back to the CPU without a word, and inside a recorded graph it is fatal. What a rule
    emits is judged by the same table, until nothing is left to rewrite. An op that is only presumed to run is rewritten too where
    a form exists that stands on evidence, and left alone otherwise.

        %4 = aten.slice.Tensor(%x, 1, 0, 64, 2)   ->   %2 = aten.view(%x, [2, 32, 2]); %4 = aten.select.int(%2, 2, 0)

    Refuses an op that no rule and no decomposition makes legal, with its source line.

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
            done = [note for node in list(rewriter.graph.nodes) if (note := self._legalize(rewriter, program, node))]
            applied.update(done)
            if not done:
                break
        else:
            raise UnsupportedOpError(
                f"rules still apply after {self.rounds} rounds: {', '.join(sorted(set(done)))}",
                where=Where(stage=self.name),
            )
        yield from (f"{rule} applied {count} times" for rule, count in sorted(applied.items()))

    def _legalize(self, rewriter: Rewriter, program: Program, node: fx.Node) -> str | None:
        """Rewrites a node that does not stand on evidence; returns what was done, or None if it is left as it is."""
        if not is_op(node) or _stands(verdict := verdict_of(node, program)):
            return None
        misfits = []
        for rule in self.rules:
            if node.target in rule.ops:
                reason = rule.misfit(node)
                if reason is None:
                    _splice(rewriter, node, *_preview(rewriter, node, rule.rewrite))
                    return f"{op_name(node)}: rule {rule.name}"
                misfits.append(f"rule {rule.name} does not fit: {reason}")
        presumed = verdict.support is Support.PRESUMED
        try:
            if self._decompose(rewriter, program, node, only_if_better=presumed):
                return f"{op_name(node)}: PyTorch's decomposition"
        except _NO_DECOMPOSITION as error:
            misfits.append(f"PyTorch's decomposition does not fit: {str(error).splitlines()[0]}")
        if presumed:
            return None
        reasons = [verdict.reason, *misfits]
        if self.host:
            node.meta["engine"] = Engine.HOST
            rewriter.modified = True
            return f"{op_name(node)} left on the host ({reasons[0]})"
        raise UnsupportedOpError("; ".join(reasons), where=where(node, self.name))

    def _decompose(self, rewriter: Rewriter, program: Program, node: fx.Node, *, only_if_better: bool) -> bool:
        """Takes a node apart as PyTorch would; a presumed one only if every part then stands on evidence or a rule."""
        if node.target not in decomposition_table or (only_if_better and _is_random(node)):
            return False
        traced, operands = _preview(rewriter, node, decomposition_table[node.target])
        parts = [part for part in traced.graph.nodes if is_op(part)]
        if any(part.target is node.target and _dtypes(part) == _dtypes(node) for part in parts):
            return False  # it only broadcasts or promotes what it is given
        if any(part.target._schema.is_mutable for part in parts):
            raise ValueError("it writes to its arguments")
        if resampling.in_fixed_point(node):
            raise ValueError(resampling.FIXED_POINT)
        if any(map(_is_wide, parts)):
            raise ValueError("it computes int64 with a number beyond 32 bits")
        if only_if_better and not all(self._can_stand(part, program) for part in parts):
            return False
        _splice(rewriter, node, traced, operands)
        return True

    def _can_stand(self, node: fx.Node, program: Program) -> bool:
        fits = any(node.target in rule.ops and rule.misfit(node) is None for rule in self.rules)
        return fits or verdict_of(node, program).support is Support.EVIDENCED


# What PyTorch's decompositions raise where they read a value or do not take these arguments.
_NO_DECOMPOSITION = (RuntimeError, TypeError, ValueError, IndexError, AssertionError, NotImplementedError)


def _preview(rewriter: Rewriter, node: fx.Node, rewrite: Any) -> tuple[fx.GraphModule, list[fx.Node]]:
    return rewriter.preview(partial(_call, rewrite), node.args, dict(node.kwargs), composites=False)


def _splice(rewriter: Rewriter, node: fx.Node, traced: fx.GraphModule, operands: list[fx.Node]) -> None:
    result = rewriter.splice(traced, operands, like=node)
    if isinstance(result, tuple):
        rewriter.replace_outputs(node, result)
    else:
        rewriter.replace(node, result)


def _call(rewrite: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return rewrite(*args, **kwargs)


def _dtypes(node: fx.Node) -> list[torch.dtype]:
    return [value.dtype for arg in node.all_input_nodes if isinstance(value := val(arg), torch.Tensor)]


def _is_wide(node: fx.Node) -> bool:
    """Whether an op of int64 takes a number that the device's 32 bits do not hold."""
    numbers = [arg for arg in node.args if isinstance(arg, (int, float))]
    return torch.int64 in _dtypes(node) and any(not -(2**31) <= number < 2**31 for number in numbers)


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]


def _stands(verdict: Verdict) -> bool:
    """Whether nothing is to be done: a source vouches for the call, or it is on the host already."""
    return verdict.support is Support.EVIDENCED or verdict.engine is Engine.HOST
