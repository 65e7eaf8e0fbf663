"""Lowering of loops for devices that record no loop: the host replays one recorded trip, or a few, after the other."""

from __future__ import annotations

import operator
from itertools import chain, count
from typing import Any, cast

import torch
from torch import fx

from gaudicc.errors import LoweringError
from gaudicc.fake_values import fake_mode_of, fakes
from gaudicc.nodes import CALLS, buffer_of, call_loop, operands_of, output_of, outputs_of, source_of, val, where
from gaudicc.plan import HostBranch, HostLoop, HostTrips, Record
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.targets import Engine

aten = torch.ops.aten


def holds_loops(module: fx.GraphModule) -> bool:
    """Whether a graph, or one that it calls, holds a loop."""
    parts = [part for part in module.modules() if isinstance(part, fx.GraphModule)]
    return any(node.target is call_loop for part in parts for node in part.graph.nodes)


def inline_loops(program: Program) -> None:
    """Inlines the bodies that hold loops: a recorded graph cannot be left in its middle."""
    root = program.root
    for node in list(root.graph.nodes):
        if node.target in CALLS and holds_loops(body := getattr(root, str(node.args[0].target))):
            if node.target is call_loop:
                raise LoweringError(
                    "a loop over a size stands in another one, which only the CPU records",
                    where=where(node, "lowering"),
                    hint="use device='cpu', or make one of the sizes fixed",
                )
            inline_call(root, node, body)
    Rewriter(root).finish()


def inline_call(root: fx.GraphModule, call: fx.Node, body: fx.GraphModule) -> None:
    """Puts a body in the place of one of its calls; bodies that it calls become submodules of `root`."""
    values: dict[fx.Node, Any] = dict(zip(body.graph.find_nodes(op="placeholder"), operands_of(call), strict=True))
    with root.graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op == "get_attr":
                child = getattr(body, str(node.target))
                values[node] = root.graph.get_attr(_attribute(root, str(node.target), child))
            elif node.op == "call_function":
                values[node] = root.graph.node_copy(node, values.__getitem__)
    results = fx.map_arg(cast(Any, output_of(body.graph).args[0]), values.__getitem__)
    for item in list(call.users):
        item.replace_all_uses_with(results[int(cast(Any, item.args[1]))])
        root.graph.erase_node(item)
    root.graph.erase_node(call)


def _attribute(root: fx.GraphModule, wanted: str, child: fx.GraphModule) -> str:
    for name in chain([wanted], (f"{wanted}_{i}" for i in count(2))):
        if not hasattr(root, name):
            root.add_submodule(name, child)
        if getattr(root, name) is child:
            return name
    raise AssertionError("names do not end")


def trips_of(root: fx.GraphModule, node: fx.Node) -> HostTrips:
    """The step that makes the trips of a loop of the root."""
    body_node, limit, trips, carried, *operands = cast(Any, node.args)
    body = getattr(root, str(body_node.target))
    name = buffer_of(node)
    state = tuple(f"{name}.carried_{i}" for i in range(carried))
    results = tuple(f"{name}.result_{i}" for i in range(len(outputs_of(body.graph))))
    record = Record(body, (f"{name}.trip", *state, *map(buffer_of, operands[carried:])), results)
    items = {int(cast(Any, user.args[1])): buffer_of(user) for user in node.users if user.target is operator.getitem}
    outputs = tuple(items.get(i, f"{name}.unread_{i}") for i in range(len(results)))
    stacks = tuple((tuple(stack.shape), stack.dtype, stack.device) for stack in val(node)[carried:])
    return HostTrips(
        record,
        limit if trips is None else buffer_of(trips),
        tuple(map(buffer_of, operands[:carried])),
        stacks,
        outputs,
        source_of(node),
    )


def ended_by_data(node: fx.Node) -> bool:
    """Whether a node is a loop that goes on while its first carried value is true."""
    return node.target is call_loop and node.args[1] is None


def give_buffers(program: Program) -> bool:
    """Gives every loop of the root that data ends buffers of its own for what its trips hand on.

    They are copies of what the first trip is given, and hold what the last one left from the loop on.

    Returns:
        Whether there are such loops.
    """
    graph = program.root.graph
    loops = [node for node in graph.nodes if ended_by_data(node)]
    for node in loops:
        body, limit, trips, carried, *operands = cast(Any, node.args)
        with graph.inserting_before(node):
            number = _made(graph, aten.full.default, ([], 0), {"dtype": torch.int64}, operands[0])
            state = [_made(graph, aten.clone.default, (value,), {}, value) for value in operands[:carried]]
        node.args = (body, limit, trips, carried, *state, *operands[carried:], number)
        for item in list(node.users):
            item.replace_all_uses_with(state[int(cast(Any, item.args[1]))])
            graph.erase_node(item)
    return bool(loops)


def _made(graph: fx.Graph, op: Any, args: Any, kwargs: Any, like: fx.Node) -> fx.Node:
    made = graph.call_function(op, args, kwargs)
    made.meta = dict(like.meta)
    made.meta["engine"] = Engine.TPC
    with fake_mode_of(graph):
        made.meta["val"] = op(*fakes(args), **kwargs)
    return made


def chunks_of(root: fx.GraphModule, node: fx.Node) -> HostBranch:
    """The step that makes the trips of a loop of the root that data ends, once it has its buffers."""
    body_node, _, trips, carried, *operands = cast(Any, node.args)
    body: fx.GraphModule = getattr(root, str(body_node.target))
    *operands, number = operands
    names = tuple(map(buffer_of, (number, *operands)))
    state = names[: carried + 1]
    loop = HostLoop((Record(_chunk(body, trips or 1, carried), names, state),), state[1], None)
    return HostBranch(state[1], (loop,), ())


def _chunk(body: fx.GraphModule, trips: int, carried: int) -> fx.GraphModule:
    """A graph of several trips, which hands on the number of the next one and the carried values."""
    graph = fx.Graph()
    given = [graph.placeholder(node.name) for node in body.graph.find_nodes(op="placeholder")]
    for node, inner in zip(given, body.graph.find_nodes(op="placeholder"), strict=True):
        node.meta = dict(inner.meta)
    number, state, rest = given[0], given[1 : carried + 1], given[carried + 1 :]
    for _ in range(trips):
        values = dict(zip(body.graph.find_nodes(op="placeholder"), [number, *state, *rest], strict=True))
        for node in body.graph.nodes:
            if node.op not in ("placeholder", "output"):
                values[node] = graph.node_copy(node, values.__getitem__)
        state = [values[node] for node in cast(Any, outputs_of(body.graph))]
        number = _made(graph, aten.add.Scalar, (number, 1), {}, number)
    graph.output((number, *state))
    chunk = fx.GraphModule(dict(body.named_children()), graph)
    chunk.recompile()
    return chunk
