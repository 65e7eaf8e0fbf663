"""Capture, last step: identical layers become one region body with a call site each.

A layer is the maximal run of nodes that comes from one numbered child module (`layers.0`, `layers.1`, ...).
Two layers are identical when their nodes, read in order, have the same ops, literals, shapes, dtypes and strides and the
same wiring, so that only the operands bound at the call site differ. The outermost level that repeats wins.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import fx
from torch.utils import _pytree as pytree

from gaudicc.nodes import call_region
from gaudicc.rewriter import drop_dead_nodes

_MIN_NODES = 3  # a shorter body saves nothing and costs a call


@dataclass
class _Run:
    """Consecutive nodes of one layer: what they read from outside, and what is read of them outside."""

    path: str
    kind: str
    nodes: list[fx.Node]
    operands: list[fx.Node]
    results: list[fx.Node]
    key: Any


def split_regions(root: fx.GraphModule) -> None:
    """Rewrites `root` in place: repeated runs become calls of shared bodies, which become its submodules."""
    _hoist_sizes(root.graph)
    level = 0
    while level <= _deepest(root.graph):
        groups: dict[Any, list[_Run]] = {}
        moved: dict[fx.Node, fx.Node] = {}  # a node now inside a body -> the item of the call that replaced it
        for run in list(_runs(root.graph, level)):
            groups.setdefault(run.key, []).append(run)
        for runs in groups.values():
            if len(runs) > 1:
                _outline(root, runs, moved)
        level += 1
    root.recompile()


def _hoist_sizes(graph: fx.Graph) -> None:
    """Moves arithmetic on the inputs' sizes to the top: export computes it once, and the first layer would own it."""
    early = [node for node in graph.nodes if node.op == "placeholder"]
    known = set(early)
    for node in list(graph.nodes):
        is_size = isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))
        if is_size and node not in known and known.issuperset(node.all_input_nodes):
            early[-1].append(node)
            early.append(node)
            known.add(node)


def _path(node: fx.Node) -> tuple[str, list[tuple[str, Any]]]:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return (stack[-1][0] if stack else ""), stack


_NUMBER = re.compile(r"(?:^|\.)\d+(?=\.|$)")


def _layer(node: fx.Node, level: int) -> tuple[str, str] | None:
    """The path and class of the numbered module that a node belongs to, `level` numbers deep."""
    path, stack = _path(node)
    ends = [match.end() for match in _NUMBER.finditer(path)]
    if len(ends) <= level:
        return None
    prefix = path[: ends[level]]
    kinds = [kind for name, kind in stack if name == prefix]
    kind = kinds[0] if kinds else "layer"
    return prefix, kind.rsplit(".", 1)[-1] if isinstance(kind, str) else kind.__name__


def _deepest(graph: fx.Graph) -> int:
    return max((len(_NUMBER.findall(_path(node)[0])) for node in graph.nodes), default=0)


def _runs(graph: fx.Graph, level: int) -> Iterator[_Run]:
    current: list[fx.Node] = []
    owner: tuple[str, str] | None = None
    nodes = [n for n in graph.nodes if n.op not in ("placeholder", "output")]
    for node in [*nodes, None]:
        layer = _layer(node, level) if node is not None else None
        if (
            node is not None
            and owner is not None
            and _anonymous(node)
            and all(a in current for a in node.all_input_nodes)
        ):
            layer = owner
        if layer != owner:
            if owner is not None and len(current) >= _MIN_NODES and not any(n.target is call_region for n in current):
                yield _describe(owner, current)
            current, owner = [], layer
        if node is not None and layer is not None:
            current.append(node)


def _anonymous(node: fx.Node) -> bool:
    """Whether a node lacks a module path of its own (sizes and tuple items that export adds)."""
    path, stack = _path(node)
    return not stack or path.startswith("_empty") or node.target is operator.getitem


def _describe(owner: tuple[str, str], nodes: list[fx.Node]) -> _Run:
    inside = set(nodes)
    operands: dict[fx.Node, None] = {}
    for node in nodes:
        operands.update(dict.fromkeys(arg for arg in node.all_input_nodes if arg not in inside))
    results = [node for node in nodes if any(user not in inside for user in node.users)]
    numbers = {node: i for i, node in enumerate([*operands, *nodes])}
    key = (
        owner[1],
        tuple(_type_key(node.meta.get("val")) for node in operands),
        tuple(_node_key(node, numbers) for node in nodes),
        tuple(numbers[node] for node in results),
    )
    return _Run(owner[0], owner[1], list(nodes), list(operands), results, key)


def _node_key(node: fx.Node, numbers: dict[fx.Node, int]) -> Any:
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    wiring = tuple(
        ("node", numbers[leaf]) if isinstance(leaf, fx.Node) else (type(leaf), repr(leaf)) for leaf in leaves
    )
    target = node.target if node.op == "call_function" else (node.op, node.target)
    return target, wiring, str(spec), _type_key(node.meta.get("val"))


def _type_key(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, str(tuple(value.shape)), str(value.stride())
    if isinstance(value, (tuple, list)):
        return tuple(_type_key(item) for item in value)
    return type(value), str(value)


def _outline(root: fx.GraphModule, runs: Sequence[_Run], moved: dict[fx.Node, fx.Node]) -> None:
    body = _body(root, runs[0], moved)
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", runs[0].kind).lower()
    taken = {child for child, _ in root.named_children()}
    name = next(n for n in (name, *(f"{name}_{i}" for i in range(2, 10_000))) if n not in taken)
    root.add_submodule(name, body)
    for run in runs:
        _call(root.graph, run, name, moved)


def _body(root: fx.GraphModule, run: _Run, moved: dict[fx.Node, fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for operand in run.operands:
        label = _operand_name(operand, run.path)
        placeholder = graph.placeholder(label)
        placeholder.meta = {"val": operand.meta.get("val")}
        values[moved.get(operand, operand)] = placeholder  # what the nodes read by now
    for node in run.nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
    graph.output(tuple(values[node] for node in run.results))
    drop_dead_nodes(graph)
    loops = {str(node.target): getattr(root, str(node.target)) for node in graph.nodes if node.op == "get_attr"}
    return fx.GraphModule(loops, graph)


def _operand_name(operand: fx.Node, path: str) -> str:
    """Weights are named by their path inside the layer, so that the body reads the same for each of them."""
    layer = path.replace(".", "_") + "_"
    inside = operand.op == "placeholder" and layer in operand.name
    name = operand.name.split(layer, 1)[1] if inside else operand.name
    return name if name.isidentifier() else f"p_{name}"  # in a nested nn.Sequential the path goes on with a number


def _call(graph: fx.Graph, run: _Run, name: str, moved: dict[fx.Node, fx.Node]) -> None:
    # After the last node of the run all operands exist; users of a result inside a run come later still.
    with graph.inserting_after(run.nodes[-1]):
        body = graph.get_attr(name)
    with graph.inserting_after(body):
        call = graph.call_function(call_region, (body, *(moved.get(node, node) for node in run.operands)))
    stack = run.nodes[0].meta.get("nn_module_stack") or {}
    call.meta = {
        "val": tuple(node.meta.get("val") for node in run.results),
        "stack_trace": run.nodes[-1].meta.get("stack_trace"),
    }
    call.meta["nn_module_stack"] = {key: entry for key, entry in stack.items() if run.path.startswith(entry[0])}
    inside = set(run.nodes)
    anchor = call
    for i, node in enumerate(run.results):
        with graph.inserting_after(anchor):
            item = graph.call_function(operator.getitem, (call, i))
        item.meta = dict(call.meta, val=node.meta.get("val"))
        node.replace_all_uses_with(item, delete_user_cb=lambda user: user not in inside)
        moved[node] = anchor = item
    for node in reversed(run.nodes):
        graph.erase_node(node)


def region_dag(graph: fx.Graph) -> nx.DiGraph:
    """The call sites of a graph as a DAG: an edge where one region reads what another computed."""
    dag = nx.DiGraph()
    origin: dict[fx.Node, frozenset[str]] = {}
    for node in graph.nodes:
        reads = frozenset().union(*(origin.get(arg, frozenset()) for arg in node.all_input_nodes))
        if node.target is call_region:
            dag.add_node(node.name, body=str(node.args[0].target))
            dag.add_edges_from((source, node.name) for source in reads)
            reads = frozenset({node.name})
        origin[node] = reads
    return dag
