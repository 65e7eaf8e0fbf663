"""From static programs to partitions: region calls that follow one another, and what they cost alone and side by side."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import fx

from gaudicc.machine.chip import Chip
from gaudicc.machine.fx_program import ProgramTasks
from gaudicc.machine.partition import Layer, Stretch
from gaudicc.machine.schedule import vendor_schedule
from gaudicc.machine.split import limits_of
from gaudicc.nodes import call_region


def stretches(root: fx.GraphModule) -> Iterator[list[fx.Node]]:
    """Region calls that follow one another with nothing computed between them, two at least."""
    found: list[fx.Node] = []
    for node in root.graph.nodes:
        if node.target is call_region:
            found.append(node)
        elif node.op == "output" or (node.op == "call_function" and not _takes_result(node)):
            if len(found) > 1:
                yield found
            found = []


def stretch_of(root: fx.GraphModule, calls: Sequence[fx.Node], chip: Chip) -> Stretch:
    """What the calls cost: each body alone, and each pair of neighbours in one sub-graph, under the vendor's policy.

    Args:
        root: a static graph.
        calls: region calls in it that follow one another.
        chip: the machine.
    """
    order = [_body(call) for call in calls]
    layers: dict[Hashable, Layer] = {}
    pairs: dict[tuple[Hashable, Hashable], float] = {}
    for name, call in zip(order, calls, strict=True):
        if name not in layers:
            seconds, nodes = _timed(root, (call,), chip)
            layers[name] = Layer(nodes, seconds, _handed_bytes(call))
    for one, other in pairwise(calls):
        pair = (_body(one), _body(other))
        if pair not in pairs:
            together, _ = _timed(root, (one, other), chip)
            pairs[pair] = max(0.0, layers[pair[0]].seconds + layers[pair[1]].seconds - together)
    return Stretch(order, layers, pairs)


def _timed(root: fx.GraphModule, calls: Sequence[fx.Node], chip: Chip) -> tuple[float, int]:
    """(Seconds, device nodes) of a sub-graph of these calls."""
    found = ProgramTasks(chip)
    found.nodes(root, [node for call in calls for node in (call, *call.users)], {})
    return vendor_schedule(found.tasks, limits_of(chip)).makespan, len(found.tasks)


def _body(call: fx.Node) -> str:
    return str(call.args[0].target)  # type: ignore[union-attr]


def _takes_result(node: fx.Node) -> bool:
    return node.target is operator.getitem and isinstance(node.args[0], fx.Node) and node.args[0].target is call_region


def _handed_bytes(call: fx.Node) -> int:
    """Bytes of the results that something computes with; new state is written where it lies."""
    read = [item.meta["val"] for item in call.users if any(user.op == "call_function" for user in item.users)]
    return sum(value.numel() * value.element_size() for value in read if isinstance(value, torch.Tensor))
