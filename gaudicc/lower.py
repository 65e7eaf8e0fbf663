"""Lowering: a static Program -> the Plan of one bucket. Cuts the root graph where ops stay on the host."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx
from torch.utils import _pytree as pytree

from gaudicc.buckets import Bucket
from gaudicc.cut_branches import Branch
from gaudicc.errors import LoweringError
from gaudicc.lower_branches import drop_branches, holds_branches, inline_branches, parts_of
from gaudicc.lower_loops import chunks_of, ended_by_data, give_buffers, holds_loops, inline_loops, trips_of
from gaudicc.nodes import CALLS, buffer_of, call_loop, outputs_of, source_of, val, where
from gaudicc.plan import BufferKind, HostBranch, HostOp, HostTrips, Plan, Record, Ref, Step, walk
from gaudicc.program import FOLDED, InputKind, InputSpec, OutputKind, Program
from gaudicc.rewriter import Rewriter
from gaudicc.targets import Engine

Cut = Callable[[fx.Node | None], bool]
_KINDS = {InputKind.USER: BufferKind.INPUT, InputKind.LENGTH: BufferKind.INPUT, InputKind.STATE: BufferKind.STATE}


def lower(program: Program, bucket: Bucket, *, loops: bool = True) -> Plan:
    """Turns a static program into a plan.

    Args:
        program: after the static pipeline; every op has an engine, HOST for those left on the host.
        bucket: the sizes it was specialised to.
        loops: whether the device records loops; if not, the host replays one recorded trip after the other.

    Raises:
        LoweringError: a value that crosses a cut is not a tensor.
    """
    if any(_on_host(node) for _, module in program.graphs() for node in module.graph.nodes):
        program = program.copy()
        _inline_host_regions(program.root)
    cut = _on_host
    if not loops and holds_loops(program.root):
        program = program.copy()
        inline_loops(program)
        if give_buffers(program):
            drop_branches(program.root)
        cut = _on_host_or_loop
    if holds_branches(program.root):
        program = program.copy()
        inline_branches(program.root)
    steps = _steps(program.root, cut) if holds_branches(program.root) or any(map(cut, program.root.graph.nodes)) else []
    one_record = not steps or (len(steps) == 1 and isinstance(steps[0], Record))
    if one_record:
        steps = [_whole(program)]
    results = list(zip(outputs_of(program.root.graph), program.outputs, strict=True))
    outputs = tuple(_name(value) for value, spec in results if spec.kind is not OutputKind.STATE)
    state = _state_placeholders(program)
    writes = tuple(
        (state[str(spec.target)], _name(value))
        for value, spec in results
        if spec.kind is OutputKind.STATE and not one_record
    )
    kinds = {spec.name: _kind(spec) for spec in program.inputs}
    written = {name for step in walk(steps) for name in getattr(step, "outputs", ())}
    written.update(name for step in walk(steps) if isinstance(step, HostTrips) for name in step.body.inputs)
    buffers = {**kinds, **{name: BufferKind.VALUE for name in written if name not in kinds}}
    return Plan(bucket, buffers, tuple(steps), outputs, writes)


def _kind(spec: InputSpec) -> BufferKind:
    if spec.kind is InputKind.CONSTANT and spec.source.startswith(FOLDED):
        return BufferKind.CONSTANT
    return _KINDS.get(spec.kind, BufferKind.BOUND)


def _name(value: Any) -> str:
    """The buffer of a value: named as its node."""
    if not isinstance(value, fx.Node):
        raise LoweringError(f"output {value!r} is not a tensor")
    return buffer_of(value)


def _on_host(node: fx.Node | None) -> bool:
    return node is not None and node.meta.get("engine") is Engine.HOST


def _on_host_or_loop(node: fx.Node | None) -> bool:
    return node is not None and (node.target is call_loop or _on_host(node))


def _steps(module: fx.GraphModule, cut: Cut) -> list[Step]:
    """The steps of a graph: branches that the host decides, the outermost first, between them what is recorded."""
    if (parts := parts_of(module)) is None:
        groups = _groups(module, cut)
        return [_step(module, group) if cut(group[0]) else _segment(module, group) for group in groups]
    steps: list[Step] = []
    for part in parts:
        if isinstance(part, Branch):
            then, otherwise = (tuple(_steps(side, cut)) for side in (part.then, part.otherwise))
            steps.append(HostBranch(part.condition, then, otherwise, part.source))
        else:
            steps += _steps(part, cut)
    return steps


def _step(module: fx.GraphModule, group: list[fx.Node]) -> Step:
    if ended_by_data(group[0]):
        return chunks_of(module, group[0])
    return trips_of(module, group[0]) if group[0].target is call_loop else _host(group[0])


def _groups(root: fx.GraphModule, cut: Cut) -> list[list[fx.Node]]:
    """Nodes in order, cut before and after each host op. `getitem` of a host op stays with it."""
    groups: list[list[fx.Node]] = [[]]
    for node in root.graph.nodes:
        if node.op in ("placeholder", "output") or (node.op == "get_attr" and all(map(cut, node.users))):
            continue
        if cut(node):
            groups += [[node], []]
        elif node.target is operator.getitem and cut(node.args[0]):
            groups[-2].append(node)
        else:
            groups[-1].append(node)
    return [group for group in groups if group]


def _whole(program: Program) -> Record:
    """One Record for everything: state is written by the device, in place where it can."""
    state = _state_placeholders(program)
    outputs = tuple(
        state[str(spec.target)] if spec.kind is OutputKind.STATE else _name(value)
        for value, spec in zip(outputs_of(program.root.graph), program.outputs, strict=True)
    )
    return Record(program.root, tuple(spec.name for spec in program.inputs), outputs)


def _state_placeholders(program: Program) -> dict[str, str]:
    return {spec.source: spec.name for spec in program.inputs if spec.kind is InputKind.STATE}


def _segment(root: fx.GraphModule, group: list[fx.Node]) -> Record:
    inside = set(group)
    reads = list(
        dict.fromkeys(
            arg for node in group for arg in node.all_input_nodes if arg not in inside and arg.op != "get_attr"
        )
    )
    results = [n for n in group if n.op != "get_attr" and any(user not in inside for user in n.users)]
    results = [node for node in results if not isinstance(val(node), (tuple, list))]
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in reads:
        values[node] = graph.placeholder(node.name)
        values[node].meta = dict(node.meta)
    for node in group:
        values[node] = graph.node_copy(node, values.__getitem__)
    graph.output(tuple(values[node] for node in results))
    module = fx.GraphModule(dict(root.named_children()), graph)
    module.recompile()
    return Record(module, tuple(_name(node) for node in reads), tuple(_name(node) for node in results))


def _host(node: fx.Node) -> HostOp:
    items = {int(user.args[1]): _name(user) for user in node.users if user.target is operator.getitem}  # type: ignore[arg-type]
    value = val(node)
    outputs = (
        tuple(items.get(i, f"{_name(node)}_{i}") for i in range(len(value)))
        if isinstance(value, (tuple, list))
        else (_name(node),)
    )
    operands: Any = (node.args, node.kwargs)
    args, kwargs = fx.map_arg(operands, lambda n: cast(Any, Ref(_name(n))))
    moved = sum(_bytes(val(arg)) for arg in node.all_input_nodes) + _bytes(value)
    return HostOp(node.target, tuple(args), dict(kwargs), outputs, moved, source_of(node))


def _bytes(value: Any) -> int:
    return sum(
        leaf.numel() * leaf.element_size() for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)
    )


def _inline_host_regions(root: fx.GraphModule) -> None:
    """Inlines the calls of bodies that hold a host op: a recorded graph cannot be left in its middle."""
    rewriter = Rewriter(root)
    for node in list(root.graph.nodes):
        if node.target not in CALLS:
            continue
        body = getattr(root, str(node.args[0].target))
        if node.target is call_loop:
            parts = [part for part in body.modules() if isinstance(part, fx.GraphModule)]
            if any(_on_host(inner) for part in parts for inner in part.graph.nodes):
                raise LoweringError("an op of a loop is left on the host", where=where(node, "lowering"))
            continue
        _inline_host_regions(body)
        if any(_on_host(inner) for inner in body.graph.nodes):
            if any(inner.op == "get_attr" for inner in body.graph.nodes):
                raise LoweringError("a host op sits beside a nested region", where=where(node, "lowering"))
            rewriter.replace_outputs(node, rewriter.splice(body, node.args[1:], like=node, keep_provenance=True))
    rewriter.finish()
