"""legalize-dtypes: dtypes that a Gaudi cannot hold -> ones that it can. Today: complex -> pairs of reals."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from gaudicc.errors import UnsupportedOpError
from gaudicc.invariants import FUNCTIONAL, NO_COMPLEX, STATIC, TYPED, WELL_FORMED, Invariant
from gaudicc.nodes import call_region, op_name, val, where
from gaudicc.pipeline import Numerics, PassResult
from gaudicc.program import InputKind, Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules import complex_pairs, fourier
from gaudicc.rules.complex_pairs import Pair

PAIR_RULES = {**complex_pairs.RULES, **fourier.RULES}


@dataclass(frozen=True)
class LegalizeDtypes:
    """Holds every complex tensor `[...]` as a real one `[..., 2]`, through regions and weights alike.

    Gaudi has no complex dtype: the bridge raises. Rotary embeddings are often written with complex numbers. A complex weight
    is bound as the real view of its own memory, so loading weights afterwards still works.

        %2 = aten.view_as_complex(%1)                   %3 = aten.select.int(%1, -1, 0); ...
        %5 = aten.mul.Tensor(%2, %4)            ->      %7 = aten.stack([%3*%5 - %4*%6, %3*%6 + %4*%5], -1)
        %6 = aten.view_as_real(%5)                      (%7 is what %6 was)

    Refuses an op without a form on pairs, and complex arguments, outputs and state of the model.
    """

    name: ClassVar[str] = "legalize-dtypes"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL, STATIC})
    ensures: ClassVar[frozenset[Invariant]] = frozenset({NO_COMPLEX})
    breaks: ClassVar[frozenset[Invariant]] = frozenset()
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def run(self, program: Program) -> PassResult:
        """Bodies first, so that a call site finds its body's results rewritten."""
        rewritten = 0
        for name, module in list(program.graphs()):
            if name == "root":
                self._bind(program)
            pairs = _Pairs(module, self.name)
            rewritten += pairs.run()
            if name == "root":
                self._refuse_results(pairs.returned)
        notes = (f"{rewritten} complex ops on pairs of reals",) if rewritten else ()
        return PassResult(program, bool(rewritten), notes)

    def _bind(self, program: Program) -> None:
        """Weights are bound as real views; what the host would have to convert at each call is refused."""
        placeholders = {node.name: node for node in program.root.graph.nodes if node.op == "placeholder"}
        for spec in program.inputs:
            if not _is_complex(val(placeholders[spec.name])):
                continue
            if spec.kind in (InputKind.USER, InputKind.STATE):
                raise UnsupportedOpError(
                    f"the {'argument' if spec.kind is InputKind.USER else 'state'} {spec.source} is complex",
                    where=where(placeholders[spec.name], self.name),
                    hint="pass torch.view_as_real of it and call torch.view_as_complex inside the model",
                )
            program.tensors[spec.source] = torch.view_as_real(program.tensors[spec.source].resolve_conj())

    def _refuse_results(self, returned: list[fx.Node]) -> None:
        if returned:
            raise UnsupportedOpError(
                "a result of the model is complex",
                where=where(returned[0], self.name),
                hint="return torch.view_as_real of it",
            )


class _Pairs:
    """Rewrites one graph.

    Attributes:
        returned: the complex nodes that the graph returned.
    """

    def __init__(self, module: fx.GraphModule, stage: str) -> None:
        self.rewriter = Rewriter(module)
        self.graph = module.graph
        self.stage = stage
        self.pairs: dict[fx.Node, fx.Node] = {}
        self.returned: list[fx.Node] = []

    def run(self) -> int:
        """Rewrites what is complex; returns the number of ops rewritten."""
        if not any(map(_is_complex, (leaf for node in self.graph.nodes for leaf in _leaves(node.meta.get("val"))))):
            return 0
        count = 0
        old: list[fx.Node] = []
        for node in list(self.graph.nodes):
            if node.op == "placeholder" and _is_complex(val(node)):
                self._retype(node)
            elif node.op == "output" or node.target is call_region:
                self.returned = [arg for arg in node.all_input_nodes if arg in self.pairs]
                node.args = fx.map_arg(node.args, lambda arg: self.pairs.get(arg, arg))
                if node.target is call_region:
                    node.meta["val"] = tuple(map(_real, val(node)))
            elif node.target is operator.getitem:
                if _is_complex(val(node)):
                    self._retype(node)
            elif node.op == "call_function" and (_is_complex(val(node)) or self._reads_pairs(node)):
                count += 1
                if self._rewrite(node):
                    old.append(node)
        for node in reversed(old):
            self.graph.erase_node(node)
        self.rewriter.modified = True
        self.rewriter.finish()
        return count

    def _reads_pairs(self, node: fx.Node) -> bool:
        return any(operand in self.pairs for operand in node.all_input_nodes)

    def _retype(self, node: fx.Node) -> None:
        node.meta["val"] = _real(val(node))
        self.pairs[node] = node

    def _rewrite(self, node: fx.Node) -> bool:
        """Rewrites one op; True if its node still stands in the way of its successor."""
        rule = PAIR_RULES.get(node.target)
        if rule is None:
            raise UnsupportedOpError(
                f"{op_name(node)} has no form on pairs of reals, and the target holds no complex tensor",
                where=where(node, self.stage),
                hint="write it on torch.view_as_real of its operands",
            )
        operands = list(node.all_input_nodes)
        given = [self.pairs.get(operand, operand) for operand in operands]
        try:
            new = self.rewriter.inline(self._on_pairs(node, rule, operands), *given, like=node, composites=False)
        except NotImplementedError as reason:
            raise UnsupportedOpError(
                f"{op_name(node)} has no form on pairs of reals here: {reason}", where=where(node, self.stage)
            ) from reason
        if _is_complex(val(node)):
            self.pairs[node] = new
            return True
        self.rewriter.replace(node, new)
        return False

    def _on_pairs(
        self, node: fx.Node, rule: Callable[..., Any], operands: list[fx.Node]
    ) -> Callable[..., torch.Tensor]:
        def function(*values: torch.Tensor) -> torch.Tensor:
            known: dict[fx.Node, Any] = {
                operand: Pair(value) if operand in self.pairs else value
                for operand, value in zip(operands, values, strict=True)
            }
            result = rule(*fx.map_arg(node.args, known.__getitem__), **fx.map_arg(node.kwargs, known.__getitem__))
            return result.parts if isinstance(result, Pair) else result

        return function


def _is_complex(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_complex()


def _leaves(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _real(value: Any) -> Any:
    if not _is_complex(value):
        return value
    with value.fake_mode:
        return torch.view_as_real(value)
