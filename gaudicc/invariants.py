"""Named properties of a Program: what passes require, ensure and break.

An invariant is a name *and* a predicate. The pipeline proves the order of passes from the names before any graph
exists, checks the predicates after each pass, and the docs are printed from both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import fx

from gaudicc.fake_values import fakes
from gaudicc.nodes import is_op, op_name, val, where
from gaudicc.program import Program
from gaudicc.targets import Engine, Support, Verdict
from gaudicc.targets.calls import OpCall, judge_call
from gaudicc.targets.fused import fused_op


@dataclass(frozen=True, slots=True)
class Violation:
    """One place where an invariant does not hold: the node (None for the program as a whole) and why."""

    node: fx.Node | None
    reason: str

    def __str__(self) -> str:
        place = str(where(self.node)) if self.node is not None else ""
        return f"{self.reason} ({place})" if place else self.reason


@dataclass(frozen=True, slots=True)
class Invariant:
    """A named property.

    Attributes:
        name: kebab-case, as passes list it.
        summary: one sentence for the docs.
        violations: yields what is wrong in one graph of a program.
    """

    name: str
    summary: str
    violations: Callable[[Program, fx.GraphModule], Iterator[Violation]] = field(repr=False, compare=False)


def _well_formed(program: Program, module: fx.GraphModule) -> Iterator[Violation]:
    module.graph.lint()
    for node in module.graph.nodes:
        if node.op in ("call_method", "call_module"):
            yield Violation(node, f"{node.op} {node.target}: programs hold functions only")
        elif node.op == "get_attr" and not isinstance(getattr(module, str(node.target), None), fx.GraphModule):
            yield Violation(node, f"attribute {node.target} is no region body: tensors are inputs of the root")
    if module is program.root:
        names = [node.name for node in module.graph.nodes if node.op == "placeholder"]
        if names != [spec.name for spec in program.inputs]:
            yield Violation(None, "the placeholders of the root differ from the program's inputs")
        results = next(node for node in reversed(module.graph.nodes) if node.op == "output").args[0]
        if len(results) != len(program.outputs):
            yield Violation(
                None, f"the root returns {len(results)} values, the program declares {len(program.outputs)}"
            )


def _typed(program: Program, module: fx.GraphModule) -> Iterator[Violation]:
    for node in module.graph.nodes:
        if node.op in ("placeholder", "call_function") and "val" not in node.meta:
            yield Violation(node, f"{node.name} has no fake value: passes create nodes through the rewriter only")


def _functional(program: Program, module: fx.GraphModule) -> Iterator[Violation]:
    for node in _ops(module):
        if node.target._schema.is_mutable:  # type: ignore[union-attr]
            yield Violation(node, f"{op_name(node)} writes to its argument")


def _no_dynamic_control_flow(program: Program, module: fx.GraphModule) -> Iterator[Violation]:
    for node in module.graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            yield Violation(node, f"{node.target.name()} decides at run time which graph is run")


def _static(program: Program, module: fx.GraphModule) -> Iterator[Violation]:
    for node in module.graph.nodes:
        value = node.meta.get("val")
        for leaf in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(leaf, (torch.SymInt, torch.SymFloat, torch.SymBool)):
                yield Violation(node, f"{node.name} is a size known at run time only")
            elif isinstance(leaf, torch.Tensor) and any(isinstance(size, torch.SymInt) for size in leaf.shape):
                yield Violation(node, f"{node.name} has the symbolic shape {tuple(leaf.shape)}")


def _no_host_read(program: Program, module: fx.GraphModule) -> Iterator[Violation]:
    reads = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default, torch.ops.aten.equal.default)
    for node in _ops(module):
        if node.target in reads:
            yield Violation(node, f"{op_name(node)} reads a tensor's value on the host")


def _lowered(program: Program, module: fx.GraphModule) -> Iterator[Violation]:
    for node in _ops(module):
        if (
            isinstance(op := node.target, torch._ops.OpOverload)
            and op.namespace == "gaudicc"
            and verdict_of(node, program).support is Support.NO
        ):
            yield Violation(node, f"{op_name(node)} is a semantic op without a fused kernel on the target")


def _engine_assigned(program: Program, module: fx.GraphModule) -> Iterator[Violation]:
    for node in _ops(module):
        if "engine" not in node.meta:
            yield Violation(node, f"{op_name(node)} has no engine")


def _shapes_guarded(program: Program, module: fx.GraphModule) -> Iterator[Violation]:
    text = " ".join(guard.text for guard in program.guards)
    for dim in program.dimensions:
        for name, position in dim.positions if module is program.root else ():
            if f"{name}.shape[{position}]" not in text:
                yield Violation(None, f"no guard on {name}.shape[{position}] ({dim.name})")


def _ops(module: fx.GraphModule) -> Iterator[fx.Node]:
    return (node for node in module.graph.nodes if is_op(node))


def _no_complex(program: Program, module: fx.GraphModule) -> Iterator[Violation]:
    for node in module.graph.nodes:
        value = node.meta.get("val")
        for leaf in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(leaf, torch.Tensor) and leaf.is_complex():
                yield Violation(node, f"{node.name} is complex")


WELL_FORMED = Invariant(
    "well-formed", "calls of functions only, attributes are region bodies, signature kept", _well_formed
)
TYPED = Invariant("typed", "every node has a fake value: dtype, shape and strides", _typed)
FUNCTIONAL = Invariant("functional", "no op writes to an argument; mutation is an output", _functional)
NO_DYNAMIC_CONTROL_FLOW = Invariant(
    "no-dynamic-control-flow", "no op decides at run time which graph is run", _no_dynamic_control_flow
)
NO_HOST_READ = Invariant("no-host-read", "no op reads a tensor's value on the host", _no_host_read)
STATIC = Invariant("static", "every size is a number", _static)
NO_COMPLEX = Invariant("no-complex", "no value is complex", _no_complex)
LOWERED = Invariant("lowered", "no semantic op is left but those that the target has a fused kernel for", _lowered)
ENGINE_ASSIGNED = Invariant("engine-assigned", "every op has an engine: MME, TPC, DMA or none", _engine_assigned)
SHAPES_GUARDED = Invariant("shapes-guarded", "every dynamic size of an input has a guard", _shapes_guarded)


def _decomposed(program: Program, module: fx.GraphModule) -> Iterator[Violation]:
    for node in _ops(module):
        if needs_decomposition(node, program):
            yield Violation(node, f"{op_name(node)} is a composite op that the target does not register")


def needs_decomposition(node: fx.Node, program: Program) -> bool:
    """Whether a node is a composite op of ATen for which the target has no kernel of its own."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or op.namespace != "aten" or not _is_composite(op):
        return False
    return program.target is None or program.target.lookup(op).composite


def _is_composite(op: torch._ops.OpOverload) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd")


def _legal(program: Program, module: fx.GraphModule) -> Iterator[Violation]:
    for node in _ops(module):
        verdict = verdict_of(node, program)
        if verdict.support in (Support.NO, Support.REPORTED_BAD):
            name = program.target.name if program.target else "no target"
            yield Violation(node, f"{op_name(node)} on {name}: {verdict.reason}")


def verdict_of(node: fx.Node, program: Program) -> Verdict:
    """What the program's target says of a node: of the call for ATen, of the fused kernel for a semantic op."""
    if program.target is None:
        return Verdict(Support.NO, Engine.UNKNOWN, "the program has no target", "gaudicc", "")
    op = node.target
    assert isinstance(op, torch._ops.OpOverload), "asked for ops only"
    if node.meta.get("engine") is Engine.HOST:
        return Verdict(Support.PRESUMED, Engine.HOST, f"{op_name(node)} is left on the host", "gaudicc", "")
    if op.namespace == "gaudicc":
        dtypes = {value.dtype for value in map(val, node.all_input_nodes) if isinstance(value, torch.Tensor)}
        fused = fused_op(program.target, op, dtypes=dtypes)
        return fused[1] if fused else program.target.lookup(op)
    if op.namespace not in ("aten", "torch_nn"):
        return program.target.lookup(op)  # a library's own op stays one node: a Gaudi needs a kernel of that name
    return judge_call(program.target, OpCall(op, fakes(node.args), fakes(node.kwargs)))


DECOMPOSED = Invariant("decomposed", "no composite op that the target does not register", _decomposed)
LEGAL_OPS = Invariant("legal-ops", "the target's table supports every op for its dtypes and sizes", _legal)

CATALOGUE = (
    WELL_FORMED,
    TYPED,
    FUNCTIONAL,
    NO_DYNAMIC_CONTROL_FLOW,
    DECOMPOSED,
    SHAPES_GUARDED,
    STATIC,
    NO_COMPLEX,
    LEGAL_OPS,
    LOWERED,
    ENGINE_ASSIGNED,
    NO_HOST_READ,
)
