"""Cuts a graph at a condition into graphs that are always run and branches, of which one side is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from gaudicc.branches import Sides
from gaudicc.fake_values import fake_mode_of
from gaudicc.nodes import buffer_of, outputs_of, source_of, val
from gaudicc.targets import Engine

aten = torch.ops.aten


@dataclass(frozen=True)
class Branch:
    """Two graphs that set the same buffers, of which one is run.

    Attributes:
        condition: the buffer that decides.
        then: run if it holds.
        otherwise: run if not.
        source: the user's source line.
    """

    condition: str
    then: fx.GraphModule
    otherwise: fx.GraphModule
    source: str | None = None


def origin_of(node: fx.Node) -> fx.Node:
    """The node that this one is a copy of, or itself."""
    origin: fx.Node = node.meta.get("origin", node)
    return origin


def cut(module: fx.GraphModule, sides: Sides) -> list[fx.GraphModule | Branch]:
    """Cuts a graph, in the order in which the parts are run. Each reads buffers by its placeholders and sets them by its outputs.

    Args:
        module: the graph.
        sides: of a condition in it.
    """
    branches = set(sides.settle())
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    apart = sides.merges | sides.apart
    steps: list[tuple[_Part, ...]] = []
    for level in range(max(sides.levels.values()) + 1):
        steps.append((_Part(module, [n for n in nodes if n not in apart and sides.levels[n] == level]),))
        if level in branches:
            steps.append(tuple(_side(module, nodes, sides, level, holds) for holds in (True, False)))
    wanted = {out for out in outputs_of(module.graph) if isinstance(out, fx.Node)}
    wanted.update(arg for parts in steps for part in parts for arg in part.inputs)
    wanted.add(sides.condition)
    found: list[fx.GraphModule | Branch] = []
    for parts in steps:
        graphs = [part.graph(wanted) for part in parts if not wanted.isdisjoint(part.sets)]
        if len(graphs) == 2:
            then, otherwise = graphs
            found.append(Branch(buffer_of(sides.condition), then, otherwise, source_of(sides.condition)))
        else:
            found += graphs
    return found


def _side(module: fx.GraphModule, nodes: Iterable[fx.Node], sides: Sides, level: int, holds: bool) -> _Part:
    """One side of the branch of a level."""
    here = [node for node in nodes if sides.levels[node] == level]
    inside = sides.only[holds] | sides.merges
    computed = [node for node in here if node in inside and not sides.is_operand(node, holds)]
    return _Part(
        module,
        computed,
        sets={node: sides.operand(node, holds, level) for node in here if node in sides.merges},
        reads=lambda node: sides.reads(node, holds, level),
        operand=lambda node: sides.operand(node, holds, level),
        chosen=lambda node: sides.chosen(node, holds),
    )


class _Part:
    """Nodes that become a graph.

    Attributes:
        inputs: what they read besides each other.
        sets: what others may read of it -> the node whose value that is here.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        nodes: Sequence[fx.Node],
        *,
        sets: dict[fx.Node, fx.Node] | None = None,
        reads: Callable[[fx.Node], list[fx.Node]] = lambda node: node.all_input_nodes,
        operand: Callable[[fx.Node], fx.Node] = lambda node: node,
        chosen: Callable[[fx.Node], fx.Node | None] = lambda node: None,
    ) -> None:
        self._module, self._nodes = module, nodes
        self._operand, self._chosen = operand, chosen
        self.sets = {node: node for node in nodes} if sets is None else sets
        inside = set(nodes)
        read = dict.fromkeys((*(arg for node in nodes for arg in reads(node)), *self.sets.values()))
        self.inputs = [node for node in read if node not in inside and node.op != "get_attr"]

    def graph(self, wanted: set[fx.Node]) -> fx.GraphModule:
        """The graph that sets what is wanted of it."""
        graph = fx.Graph()
        values = {node: _noted(graph.placeholder(node.name), node) for node in self.inputs}
        for node in self._nodes:
            for arg in node.all_input_nodes:
                if arg.op == "get_attr" and arg not in values:
                    values[arg] = _noted(graph.get_attr(str(arg.target)), arg)
            values[node] = self._copied(graph, node, values)
        results: list[fx.Node] = []
        for node, source in self.sets.items():
            if node in wanted:
                results.append(self._result(graph, node, source, values[source], results))
        graph.output(tuple(results))
        return fx.GraphModule(dict(self._module.named_children()), graph)

    def _copied(self, graph: fx.Graph, node: fx.Node, values: dict[fx.Node, fx.Node]) -> fx.Node:
        chosen = self._chosen(node)
        if chosen is None:
            return _noted(graph.node_copy(node, lambda arg: values[self._operand(arg)]), node)
        value = values[self._operand(chosen)]  # broadcast, or laid out otherwise
        if val(value).shape != val(node).shape:
            value = _expanded(graph, value, node)
        copied = graph.call_function(aten.clone.default, (value,), {"memory_format": torch.contiguous_format})
        return _noted(copied, node, Engine.TPC)

    def _result(
        self, graph: fx.Graph, node: fx.Node, source: fx.Node, value: fx.Node, results: Sequence[fx.Node]
    ) -> fx.Node:
        """The value of a node that is wanted, in memory of its own."""
        if node is source:
            return value
        if value.op == "placeholder" or source in self.sets or value in results:
            return _noted(graph.call_function(aten.clone.default, (value,)), node, Engine.TPC)
        value.meta["buffer"] = buffer_of(node)
        return value


def _noted(copied: fx.Node, node: fx.Node, engine: Engine | None = None) -> fx.Node:
    """Notes on a node what it stands for."""
    copied.meta = {**node.meta, "buffer": buffer_of(node), "origin": origin_of(node)}
    if engine is not None:
        copied.meta["engine"] = engine
    return copied


def _expanded(graph: fx.Graph, value: fx.Node, node: fx.Node) -> fx.Node:
    """A value broadcast to the shape of a node's."""
    made = _noted(graph.call_function(aten.expand.default, (value, list(val(node).shape))), node, Engine.NONE)
    with fake_mode_of(node.graph):
        made.meta |= {"val": val(value).expand(val(node).shape), "buffer": f"{buffer_of(node)}.expanded"}
    return made
