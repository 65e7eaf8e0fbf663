"""The order of a graph's nodes: the graph compiler hands out what is in no bundle as the program has it, so it matters."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from math import inf

from torch import fx

from gaudicc.machine.chip import Chip
from gaudicc.machine.fx_program import ProgramTasks
from gaudicc.machine.fx_tasks import priced
from gaudicc.machine.simulate import dispatch
from gaudicc.machine.split import limits_of
from gaudicc.machine.timeline import graph_of, tails
from gaudicc.nodes import CALLS, is_op, writes

# Ops shorter than this part of the whole graph are left where they are, and what gains less than the other.
_LONG, _LEAST = 0.01, 0.001


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


def bring_forward(module: fx.GraphModule, chip: Chip, timed: Callable[[fx.GraphModule], float]) -> int:
    """Moves each long op to in front, as far as its operands allow or behind another long one, where the graph is then faster.

    Copies of weights wait for nothing but the choice of experts, and yet stand behind all that comes before their product.

    Args:
        module: a static graph; its order is changed and nothing else.
        chip: the machine.
        timed: what the graph takes, in seconds.

    Returns:
        How many ops were moved.
    """
    moved, least = 0, timed(module)
    for _, stretch in list(_stretches(module.graph)):
        seconds = {node: sum(cost.seconds for _, cost in priced(node, chip)) for node in stretch}
        long = {node for node in stretch if seconds[node] >= _LONG * least}
        for view in [node for node in stretch if not seconds[node]]:
            _places(view, seconds, ())[-1].append(view)  # what costs nothing is in nobody's way
        for node in [node for node in stretch if node in long]:
            start = best = node.prev
            for place in _places(node, seconds, long):
                place.append(node)
                if (tried := timed(module)) < least * (1 - _LEAST):
                    best, least = place, tried
            best.append(node)
            moved += best is not start
    return moved


def _places(node: fx.Node, members: Container[fx.Node], long: Container[fx.Node]) -> list[fx.Node]:
    """Nodes behind which a node may be put: long ones in front of it, then the last of its operands."""
    found, place = [], node.prev
    while place in members and place not in node.all_input_nodes:
        if place in long:
            found.append(place)
        place = place.prev
    return [*found, place]


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
