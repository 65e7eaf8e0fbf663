"""The order of a graph's nodes: the graph compiler hands out what is in no bundle as the program has it, so it matters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import inf

from torch import fx

from gaudicc.machine.chip import Chip
from gaudicc.machine.fx_program import ProgramTasks
from gaudicc.machine.simulate import dispatch
from gaudicc.machine.split import limits_of
from gaudicc.machine.timeline import graph_of, tails
from gaudicc.nodes import CALLS, is_op, writes


def order_by_schedule(module: fx.GraphModule, chip: Chip) -> None:
    """Puts nodes in the order in which list scheduling starts them, each view in front of its first reader.

    Slices of attention, calls of bodies and what writes stay where they are, and nothing is moved past them.

    Args:
        module: a static graph; its order is changed and nothing else.
        chip: the machine.
    """
    found = ProgramTasks(chip)
    found.nodes(module, [node for node in module.graph.nodes if node.target not in CALLS], {})
    graph = graph_of(found.tasks)
    run = dispatch(graph, tails(graph), limits_of(chip))
    starts = {event.task.name: event.start for event in run.events}
    for before, stretch in list(_stretches(module.graph)):
        place = before
        for node in _in_order(stretch, starts):
            place.append(node)
            place = node


def _stretches(graph: fx.Graph) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """(The node in front, nodes that may change places) of the graph from first to last."""
    before, stretch = None, list[fx.Node]()
    for node in graph.nodes:
        if is_op(node) and "slice" not in node.meta and not writes(node) and before is not None:
            stretch.append(node)
            continue
        if len(stretch) > 1 and before is not None:
            yield before, stretch
        before, stretch = node, []


def _in_order(stretch: list[fx.Node], starts: Mapping[str, float]) -> list[fx.Node]:
    """By start, inputs before their readers; what no task of the stretch reads comes last."""
    left = dict.fromkeys(stretch)
    order: list[fx.Node] = []

    def place(nodes: Iterable[fx.Node]) -> None:
        for node in nodes:
            if node in left:
                del left[node]
                place(node.all_input_nodes)
                order.append(node)

    place(sorted((node for node in stretch if node.name in starts), key=lambda node: starts.get(node.name, inf)))
    place(stretch)
    return order
