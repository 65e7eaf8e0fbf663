"""clean-up: dead code, no-ops, common subexpressions, constants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from typing import Any, ClassVar

import torch
from torch import fx
from torch.utils import _pytree as pytree

from gaudicc.invariants import FUNCTIONAL, TYPED, WELL_FORMED, Invariant
from gaudicc.nodes import is_op, val
from gaudicc.pipeline import Numerics, PassResult
from gaudicc.program import FOLDED, InputKind, InputSpec, Program
from gaudicc.rewriter import Rewriter, drop_dead_nodes
from gaudicc.rules.match import argument

aten = torch.ops.aten
_ALWAYS_SAME = (aten.alias.default, aten.detach.default, aten.lift_fresh.default)
_SAME_IF_TYPED_SAME = (
    aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten._to_copy.default, aten.expand.default,
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.contiguous.default, aten.clone.default,
    aten.slice.Tensor, aten.type_as.default, aten.permute.default, aten.copy.default,
)  # fmt: skip
_NEUTRAL = {aten.mul.Tensor: 1, aten.mul.Scalar: 1, aten.div.Tensor: 1, aten.div.Scalar: 1}
_NEUTRAL_FOR_INTEGERS = {aten.add.Tensor: 0, aten.add.Scalar: 0, aten.sub.Tensor: 0, aten.sub.Scalar: 0}


@dataclass(frozen=True)
class CleanUp:
    """Removes what computes nothing: dead nodes, casts to the same dtype, repeated expressions, constants of the graph.

    Export leaves hundreds of them (masks of `arange`, `alias`, `to`), and on Gaudi each is a kernel that moves a whole tensor.
    Constants are folded up to a size, and never from weights: those belong to the user and may change.

        %2 = aten.arange(16); %3 = aten.add.Tensor(%2, 0)      ->      %const_0: i64[16]  (an input of kind constant)

    Refuses random ops and, for floats, `x + 0` (it turns -0.0 into 0.0).

    Attributes:
        fold_bytes: largest constant that is kept as data instead of being recomputed.
    """

    fold_bytes: int = 1 << 20

    name: ClassVar[str] = "clean-up"
    requires: ClassVar[frozenset[Invariant]] = frozenset({WELL_FORMED, TYPED, FUNCTIONAL})
    ensures: ClassVar[frozenset[Invariant]] = frozenset()
    breaks: ClassVar[frozenset[Invariant]] = frozenset()
    numerics: ClassVar[Numerics] = Numerics.BITWISE

    def run(self, program: Program) -> PassResult:
        """Bodies first, so that the root sees what is left of them."""
        modified = False
        folded: list[InputSpec] = []
        for _, module in list(program.graphs()):
            rewriter = Rewriter(module)
            _drop_no_ops(rewriter)
            _merge_equal(rewriter)
            rewriter.modified |= drop_dead_nodes(rewriter.graph)
            if module is program.root:
                folded = _fold(rewriter, program, self.fold_bytes)
            modified |= rewriter.finish()
        if folded:
            program = replace(program, inputs=(*folded, *program.inputs))
        notes = (f"{len(folded)} constants folded",) if folded else ()
        return PassResult(program, modified, notes)


def _drop_no_ops(rewriter: Rewriter) -> None:
    for node in [n for n in rewriter.graph.nodes if is_op(n)]:
        place = 1 if node.target is aten.copy.default else 0  # of a copy all but the values is the first operand's
        source = node.args[place] if len(node.args) > place else None
        if isinstance(source, fx.Node) and isinstance(source.meta.get("val"), torch.Tensor) and _is_no_op(node, source):
            rewriter.replace(node, source)


def _is_no_op(node: fx.Node, source: fx.Node) -> bool:
    if node.target in _ALWAYS_SAME:
        return True
    if not isinstance(val(node), torch.Tensor) or not _same_type(val(node), val(source)):
        return False
    if node.target in _SAME_IF_TYPED_SAME:
        # A slice of equal length starts at 0; a permutation of equal strides may still swap equal dims.
        return node.target is not aten.permute.default or list(node.args[1]) == list(range(val(node).dim()))  # type: ignore[arg-type]
    if node.target is aten.dropout.default:
        return not argument(node, 2, "train")
    literal = node.args[1] if len(node.args) > 1 else None
    if isinstance(literal, bool) or not isinstance(literal, (int, float)) or node.kwargs:
        return False
    floating = val(node).dtype.is_floating_point
    if node.target in _NEUTRAL_FOR_INTEGERS and not floating and not val(node).dtype.is_complex:
        return literal == _NEUTRAL_FOR_INTEGERS[node.target]
    return node.target in _NEUTRAL and literal == _NEUTRAL[node.target] and floating


def _same_type(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and str(a.shape) == str(b.shape)
        and str(a.stride()) == str(b.stride())
        and a.device == b.device
    )


def _merge_equal(rewriter: Rewriter) -> None:
    seen: dict[Any, fx.Node] = {}
    for node in [n for n in rewriter.graph.nodes if n.op == "call_function"]:
        if is_op(node) and _is_random(node):
            continue
        leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
        key = (node.target, tuple((type(leaf), repr(leaf)) for leaf in leaves), str(spec))
        first = seen.setdefault(key, node)
        if first is not node and is_op(node):
            rewriter.replace(node, first)


def _is_random(node: fx.Node) -> bool:
    assert isinstance(node.target, torch._ops.OpOverload), "asked for ops only"
    return torch.Tag.nondeterministic_seeded in node.target.tags


def _fold(rewriter: Rewriter, program: Program, limit: int) -> list[InputSpec]:
    """Evaluates what depends on literals only; each value that others read becomes a constant input."""
    first = next(iter(rewriter.graph.nodes))
    placeholders: dict[fx.Node, fx.Node] = {}
    specs: list[InputSpec] = []
    for node, value in _read_outside(_values_of_literals(rewriter.graph, limit)):
        source = next(name for i in count() if (name := f"{FOLDED}{i}") not in program.tensors)
        with rewriter.graph.inserting_before(first):
            placeholders[node] = rewriter.graph.placeholder(source.replace(".", "_"))
        placeholders[node].meta["val"] = val(node)
        program.tensors[source] = value
        specs.append(InputSpec(placeholders[node].name, InputKind.CONSTANT, source))
    for node, placeholder in placeholders.items():
        rewriter.replace(node, placeholder)
    return specs


def _values_of_literals(graph: fx.Graph, limit: int) -> dict[fx.Node, Any]:
    known: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if is_op(node) and not _is_random(node) and all(arg in known for arg in node.all_input_nodes):
            value = val(node)
            static = isinstance(value, torch.Tensor) and all(isinstance(size, int) for size in value.shape)
            if static and value.numel() * value.element_size() <= limit:
                known[node] = node.target(*_known(node.args, known), **_known(node.kwargs, known))
    return known


def _read_outside(known: dict[fx.Node, Any]) -> list[tuple[fx.Node, torch.Tensor]]:
    """The values that the rest of the graph reads, as copies of the same strides.

    Where a value has gaps or repeats in memory, no copy has: it stays a view, and the value that it views is copied.
    """
    read: list[tuple[fx.Node, torch.Tensor]] = []
    views: set[fx.Node] = set()
    for node in reversed(list(known)):
        if all(user in known and user not in views for user in node.users):
            continue
        copy = known[node].clone(memory_format=torch.preserve_format)
        if copy.stride() == known[node].stride():
            read.append((node, copy))
        else:
            views.add(node)
    return read[::-1]


def _known(arg: Any, known: dict[fx.Node, Any]) -> Any:
    return fx.map_arg(arg, known.__getitem__)
