"""Layers in a graph: the runs of nodes that come from one numbered child module, and how a run becomes a call of a body."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from gaudicc.nodes import call_region
from gaudicc.rewriter import drop_dead_nodes

MIN_NODES = 3  # a shorter body saves nothing and costs a call


@dataclass
class Run:
    """Nodes of one layer in order.

    Attributes:
        path: of the layer's module, `model.layers.0`.
        kind: the name of its class.
        nodes: what it computes.
        operands: what these read from outside, in the order of first use.
        results: those of them that are read outside.
        key: equal for runs that compute the same on other operands.
    """

    path: str
    kind: str
    nodes: list[fx.Node]
    operands: list[fx.Node]
    results: list[fx.Node]
    key: Any


def _path(node: fx.Node) -> tuple[str, list[tuple[str, Any]]]:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return (stack[-1][0] if stack else ""), stack


_NUMBER = re.compile(r"(?:^|\.)\d+(?=\.|$)")


def layer_of(node: fx.Node, level: int) -> tuple[str, str] | None:
    """The path and class of the numbered module that a node belongs to, `level` numbers deep."""
    path, stack = _path(node)
    ends = [match.end() for match in _NUMBER.finditer(path)]
    if len(ends) <= level:
        return None
    prefix = path[: ends[level]]
    kinds = [kind for name, kind in stack if name == prefix]
    kind = kinds[0] if kinds else "layer"
    return prefix, kind.rsplit(".", 1)[-1] if isinstance(kind, str) else kind.__name__


def deepest(graph: fx.Graph) -> int:
    """How many numbered modules are inside one another, at most."""
    return max((len(_NUMBER.findall(_path(node)[0])) for node in graph.nodes), default=0)


def runs_of(graph: fx.Graph, level: int) -> Iterator[Run]:
    """The layers of a graph that no call stands for and that call no body, `level` numbers deep."""
    current: list[fx.Node] = []
    owner: tuple[str, str] | None = None
    nodes = [n for n in graph.nodes if n.op not in ("placeholder", "output") and not _names_body(n)]
    for node in [*nodes, None]:
        layer = layer_of(node, level) if node is not None else None
        if (
            node is not None
            and owner is not None
            and _anonymous(node)
            and all(a in current for a in node.all_input_nodes)
        ):
            layer = owner
        if layer != owner:
            if owner is not None and len(current) >= MIN_NODES and not any(n.target is call_region for n in current):
                yield describe(*owner, current)
            current, owner = [], layer
        if node is not None and layer is not None:
            current.append(node)


def _names_body(node: fx.Node) -> bool:
    """Whether a node belongs to the call of a body that follows it."""
    return node.op == "get_attr" and any(user.target is call_region for user in node.users)


def _anonymous(node: fx.Node) -> bool:
    """Whether a node lacks a module path of its own (sizes and tuple items that export adds)."""
    path, stack = _path(node)
    return not stack or path.startswith("_empty") or node.target is operator.getitem


def describe(path: str, kind: str, nodes: Sequence[fx.Node]) -> Run:
    """These nodes of a layer as a run."""
    inside = set(nodes)
    operands: dict[fx.Node, None] = {}
    for node in nodes:
        operands.update(dict.fromkeys(arg for arg in node.all_input_nodes if arg not in inside))
    results = [node for node in nodes if any(user not in inside for user in node.users)]
    numbers = {node: i for i, node in enumerate([*operands, *nodes])}
    key = (
        kind,
        tuple(type_key(node.meta.get("val")) for node in operands),
        tuple(_node_key(node, numbers) for node in nodes),
        tuple(numbers[node] for node in results),
    )
    return Run(path, kind, list(nodes), list(operands), results, key)


def _node_key(node: fx.Node, numbers: dict[fx.Node, int]) -> Any:
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    wiring = tuple(
        ("node", numbers[leaf]) if isinstance(leaf, fx.Node) else (type(leaf), repr(leaf)) for leaf in leaves
    )
    target = node.target if node.op == "call_function" else (node.op, node.target)
    return target, wiring, str(spec), type_key(node.meta.get("val"))


def type_key(value: Any) -> Any:
    """A fake value's type, to be compared: sizes are equal if they are written alike."""
    if isinstance(value, torch.Tensor):
        return value.dtype, str(tuple(value.shape)), str(value.stride())
    if isinstance(value, (tuple, list)):
        return tuple(type_key(item) for item in value)
    return type(value), str(value)


def outline_runs(root: fx.GraphModule, runs: Sequence[Run], moved: dict[fx.Node, fx.Node]) -> str:
    """Makes one body of runs that compute the same, and a call of it of each run.

    Args:
        root: gets the body as a submodule.
        runs: of equal keys.
        moved: a node that is inside a body by now -> the item of the call that replaced it; added to.

    Returns:
        The name of the body.
    """
    body = _body(root, runs[0], moved)
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", runs[0].kind).lower()
    taken = {child for child, _ in root.named_children()}
    name = next(n for n in (name, *(f"{name}_{i}" for i in range(2, 10_000))) if n not in taken)
    root.add_submodule(name, body)
    for run in runs:
        call_body(root.graph, run, name, [moved.get(node, node) for node in run.operands], moved)
    return name


def _body(root: fx.GraphModule, run: Run, moved: dict[fx.Node, fx.Node]) -> fx.GraphModule:
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


def call_body(
    graph: fx.Graph, run: Run, name: str, operands: Sequence[fx.Node], moved: dict[fx.Node, fx.Node]
) -> tuple[fx.Node, fx.Node]:
    """Puts a call of a body in the place of a run.

    Args:
        graph: the graph of the run.
        run: its results are those of the body, in order; one that is none of its nodes is read as it is.
        name: the body.
        operands: what the call passes.
        moved: as in `outline_runs`.

    Returns:
        The call, and its last item.
    """
    # After the last node of the run all operands exist; users of a result inside a run come later still.
    with graph.inserting_after(run.nodes[-1]):
        body = graph.get_attr(name)
    with graph.inserting_after(body):
        call = graph.call_function(call_region, (body, *operands))
    stack = run.nodes[0].meta.get("nn_module_stack") or {}
    call.meta = {
        "val": tuple(node.meta.get("val") for node in run.results),
        "stack_trace": run.nodes[-1].meta.get("stack_trace"),
    }
    call.meta["nn_module_stack"] = {key: entry for key, entry in stack.items() if run.path.startswith(entry[0])}
    inside = set(run.nodes)
    anchor = call
    for i, node in enumerate(run.results):
        if node not in inside:
            continue
        with graph.inserting_after(anchor):
            item = graph.call_function(operator.getitem, (call, i))
        item.meta = dict(call.meta, val=node.meta.get("val"))
        node.replace_all_uses_with(item, delete_user_cb=lambda user: user not in inside)
        moved[node] = anchor = item
    for node in reversed(run.nodes):
        graph.erase_node(node)
    return call, anchor
