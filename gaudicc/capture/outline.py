"""Capture, after export: layers that were traced once become one region body with a call site each."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, cast

import torch
from torch import fx

from gaudicc.capture.repeats import layer_op
from gaudicc.errors import InternalError
from gaudicc.nodes import call_region
from gaudicc.rewriter import drop_dead_nodes


def outline(root: fx.GraphModule) -> None:
    """Turns the layer nodes of a graph into calls of shared bodies, which become submodules of `root`."""
    layers = [node for node in root.graph.nodes if node.target is layer_op]
    times = Counter(tuple(_operands(node)[1]) for node in layers)
    bodies: dict[tuple[fx.Node, ...], tuple[str, list[fx.Node]]] = {}
    for node in layers:
        operands, results = _operands(node)  # read now: layers before it may have been put elsewhere
        kind = tuple(results)
        if times[kind] == 1:
            _inline(node, results)
            continue
        if kind not in bodies:
            bodies[kind] = _body(root, node)
        name, shared = bodies[kind]
        with root.graph.inserting_before(node):
            body = root.graph.get_attr(name)
            call = root.graph.call_function(call_region, (body, *operands, *shared))
        call.meta = {**node.meta, "val": tuple(node.meta["val"])}
        node.replace_all_uses_with(call)
        root.graph.erase_node(node)
    if layers:
        drop_dead_nodes(root.graph)


def _inline(layer: fx.Node, results: list[fx.Node]) -> None:
    """A layer like no other stays where it was traced."""
    for item in list(layer.users):
        item.replace_all_uses_with(results[int(cast(Any, item.args[1]))])
        layer.graph.erase_node(item)
    layer.graph.erase_node(layer)


def _body(root: fx.GraphModule, layer: fx.Node) -> tuple[str, list[fx.Node]]:
    """Makes the body of a layer; returns its name, and the nodes that all call sites pass besides their operands."""
    operands, results = _operands(layer)
    if len(set(operands)) != len(operands):
        raise InternalError(f"{layer.name} reads one value as two operands")
    inside, shared = _between(root.graph, operands, results)
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    prefix = _path(layer).replace(".", "_") + "_"
    for operand in (*operands, *shared):
        label = operand.name.split(prefix, 1)[-1]
        values[operand] = graph.placeholder(label if label.isidentifier() else f"p_{label}")
        values[operand].meta = {"val": operand.meta["val"]}
    for node in inside:
        values[node] = graph.node_copy(node, values.__getitem__)
    graph.output(tuple(values[node] for node in results))
    kind = next(reversed(layer.meta["nn_module_stack"].values()))[1]
    kind = kind.rsplit(".", 1)[-1] if isinstance(kind, str) else kind.__name__
    wanted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower()
    taken = {child for child, _ in root.named_children()}
    name = next(n for n in (wanted, *(f"{wanted}_{i}" for i in range(2, 10_000))) if n not in taken)
    root.add_submodule(name, fx.GraphModule({}, graph))
    return name, shared


def _operands(layer: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
    """The operands of a layer node, and what stands for its results."""
    operands, results = layer.args
    return [_entry(layer, operand) for operand in cast(Any, operands)], list(cast(Any, results))


_aten = torch.ops.aten
_GIVE_BACK = frozenset(
    {_aten.to.dtype, _aten.to.device, _aten.to.other, _aten.to.dtype_layout, _aten.type_as.default, _aten.contiguous.default,
     _aten.dropout.default, _aten.flatten.using_ints}
)  # fmt: skip


def _entry(layer: fx.Node, operand: fx.Node) -> fx.Node:
    """What a layer was given: an op in it that gives back its argument as it is makes the last such node stand for it."""
    while operand.target in _GIVE_BACK and _is_in(layer, operand):
        given = cast(fx.Node, operand.args[0])
        if _type(given) != _type(operand):
            break
        operand = given
    return operand


def _type(node: fx.Node) -> Any:
    value = node.meta["val"]
    return value.dtype, str(value.shape), str(value.stride()), value.device


def _is_in(layer: fx.Node, node: fx.Node) -> bool:
    """Whether a node was traced in a layer."""
    return any(path == _path(layer) for path, _ in node.meta.get("nn_module_stack", {}).values())


def are_whole(graph: fx.Graph) -> bool:
    """Whether each layer that stands for others computes its results from its operands, by nodes of its own alone."""
    layers = [node for node in graph.nodes if node.target is layer_op]
    times = Counter(tuple(_operands(node)[1]) for node in layers)
    first = {tuple(_operands(node)[1]): node for node in reversed(layers)}
    return all(
        _is_in(layer, node)
        for kind, layer in first.items()
        if times[kind] > 1
        for node in _between(graph, *_operands(layer))[0]
    )


def _path(node: fx.Node) -> str:
    return str(next(reversed(node.meta["nn_module_stack"].values()))[0])


def _between(graph: fx.Graph, operands: Any, results: Any) -> tuple[list[fx.Node], list[fx.Node]]:
    """The nodes that compute the results from the operands, and what they read besides: constants and sizes."""
    inside: set[fx.Node] = set()
    shared: dict[fx.Node, None] = {}
    wanted = [node for node in results if node not in operands]
    while wanted:
        node = wanted.pop()
        if node in inside or node in operands:
            continue
        sized = isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))
        if sized or node.op in ("placeholder", "get_attr"):
            shared[node] = None
        else:
            inside.add(node)
            wanted += node.all_input_nodes
    return [node for node in graph.nodes if node in inside], list(shared)
