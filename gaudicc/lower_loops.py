"""Lowering of loops for devices that record no loop: the host replays one recorded trip after the other."""

from __future__ import annotations

import operator
from itertools import count
from typing import Any, cast

from torch import fx

from gaudicc.errors import LoweringError
from gaudicc.nodes import CALLS, call_loop, operands_of, output_of, outputs_of, source_of, val, where
from gaudicc.plan import HostTrips, Record
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter


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
            _inline(root, node, body)
    Rewriter(root).finish()


def _inline(root: fx.GraphModule, call: fx.Node, body: fx.GraphModule) -> None:
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
    for name in (wanted, *(f"{wanted}_{i}" for i in count(2))):
        if not hasattr(root, name):
            root.add_submodule(name, child)
        if getattr(root, name) is child:
            return name
    raise AssertionError("names do not end")


def trips_of(program: Program, node: fx.Node) -> HostTrips:
    """The step that makes the trips of a loop of the root."""
    body_node, limit, trips, carried, *operands = cast(Any, node.args)
    body = getattr(program.root, str(body_node.target))
    state = tuple(f"{node.name}.carried_{i}" for i in range(carried))
    results = tuple(f"{node.name}.result_{i}" for i in range(len(outputs_of(body.graph))))
    record = Record(body, (f"{node.name}.trip", *state, *(arg.name for arg in operands[carried:])), results)
    items = {int(cast(Any, user.args[1])): user.name for user in node.users if user.target is operator.getitem}
    outputs = tuple(items.get(i, f"{node.name}.unread_{i}") for i in range(len(results)))
    stacks = tuple((tuple(stack.shape), stack.dtype, stack.device) for stack in val(node)[carried:])
    return HostTrips(
        record,
        limit if trips is None else trips.name,
        tuple(arg.name for arg in operands[:carried]),
        stacks,
        outputs,
        source_of(node),
    )
