"""Reading the nodes of a program's graphs: what they compute, where they come from, which body they call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from gaudicc.errors import Where


def call_region(body: fx.GraphModule, *operands: Any) -> tuple[Any, ...]:
    """Runs a region body; the only way one graph calls another.

    In a graph: `call_function(call_region, (get_attr body, *operands))`, a tuple taken apart by `getitem`.
    """
    result: tuple[Any, ...] = body(*operands)
    return result


def call_loop(body: fx.GraphModule, limit: Any, trips: Any, carried: int, *operands: Any) -> tuple[Any, ...]:
    """Runs a region body once per trip of a loop.

    In a graph: `call_function(call_loop, (get_attr body, limit, trips, carried, *operands))`, taken apart by `getitem`.

    Args:
        body: takes the number of the trip (int64 `[]`, from 0) and all operands; returns the new values of the carried
            ones and then what the trip adds to each stack.
        limit: the size of the stacks: most trips there can be. None: data ends the loop. Trips are made while the first
            carried value, a bool `[]`, is true; there are no stacks.
        trips: None for `limit`, or int64 `[]`: how many trips are made; later rows of the stacks hold zeros. Where data ends
            the loop: None, or how many trips a recorded graph makes between two looks at the first carried value. Then the
            body, given one that is false, must hand on what it was given.
        carried: how many of the operands, the first ones, a trip hands on to the next.
        *operands: starting values of the carried ones, then what every trip reads.

    Returns:
        The carried values after the last trip, contiguous, and the stacks `[limit, ...]`.
    """
    if any(isinstance(operand, FakeTensor) for operand in operands):
        return loop_values(limit, carried, body(*loop_operands(carried, operands)))
    if limit is None:
        return _until_data_ends(body, carried, operands)
    state, stacks = [value.contiguous() for value in operands[:carried]], list[torch.Tensor]()
    count = int(limit if trips is None else trips)
    for trip in range(count):
        results = body(_number(operands, trip), *state, *operands[carried:])
        state = list(results[:carried])
        if not trip:
            stacks = [row.new_zeros((limit, *row.shape)) for row in results[carried:]]
        for stack, row in zip(stacks, results[carried:], strict=True):
            stack[trip] = row
    if not count:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = [mode.from_tensor(value) if isinstance(value, torch.Tensor) else value for value in operands]
            made = body(*loop_operands(carried, fakes))
        stacks = [torch.zeros((limit, *row.shape), dtype=row.dtype, device=row.device) for row in made[carried:]]
    return (*(value.contiguous() for value in state), *stacks)


def _until_data_ends(body: Any, carried: int, operands: Sequence[Any]) -> tuple[Any, ...]:
    state, trip = list(operands[:carried]), 0
    while bool(state[0]):
        state = list(body(_number(operands, trip), *(value.contiguous() for value in state), *operands[carried:]))
        trip += 1
    return tuple(value.contiguous() for value in state)


def loop_operands(carried: int, operands: Sequence[Any]) -> tuple[Any, ...]:
    """What the body of a loop is given in a trip, as fake values: the number of the trip and all operands."""
    return (_number(operands, 0), *(torch.empty_like(x, memory_format=torch.contiguous_format) for x in operands[:carried]),
            *operands[carried:])  # fmt: skip


def loop_values(limit: Any, carried: int, results: Sequence[Any]) -> tuple[Any, ...]:
    """The fake values of a loop, from those of its body."""
    kept = [torch.empty(value.shape, dtype=value.dtype, device=value.device) for value in results[:carried]]
    return (*kept, *(torch.empty((limit, *row.shape), dtype=row.dtype, device=row.device) for row in results[carried:]))


def _number(operands: Sequence[Any], trip: int) -> torch.Tensor:
    device = next((value.device for value in operands if isinstance(value, torch.Tensor)), None)
    return torch.full((), trip, dtype=torch.int64, device=device)


CALLS = (call_region, call_loop)
"""The functions with which one graph calls another; the body is their first argument."""


def operands_of(call: fx.Node) -> tuple[Any, ...]:
    """What a call hands to its body, but for the number of the trip of a loop."""
    return tuple(call.args[4:] if call.target is call_loop else call.args[1:])


def is_op(node: fx.Node) -> bool:
    """Whether a node computes with an ATen or gaudicc op (not a placeholder, getitem, region call or size arithmetic)."""
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def writes(node: fx.Node) -> bool:
    """Whether a node's op writes to one of its operands."""
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target._schema.is_mutable)


def op_name(node: fx.Node) -> str:
    """`aten.mm`, `gaudicc.attention`, `getitem`: the target as printed; a default overload is left bare."""
    target = node.target
    if isinstance(target, str):
        return target
    name = str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
    return name.removesuffix(".default")


_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def source_of(node: fx.Node) -> str | None:
    """The user's `file:line` that a node comes from: the innermost frame outside torch, or None."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    outside = [(file, line) for file, line in frames if "/torch/" not in f"/{file}" and not file.startswith("<eval")]
    if not outside:
        return None
    file, line = outside[-1]
    return f"{'/'.join(file.split('/')[-2:])}:{line}"


def module_of(node: fx.Node) -> str | None:
    """The path of the user's module that a node comes from, e.g. `model.layers.0.self_attn`, or None."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    if not stack:
        return None
    path = next(reversed(list(stack.values())))[0]
    path = re.sub(r"^L\['self'\]\.?", "", path)
    return None if path.startswith("_empty") else path or None  # torch marks nodes that it adds itself so


def where(node: fx.Node, stage: str | None = None) -> Where:
    """The place of a node, for error messages."""
    return Where(source=source_of(node), op=op_name(node), module=module_of(node), stage=stage)


def val(node: fx.Node) -> Any:
    """The fake value of a node: a FakeTensor with symbolic shape, a SymInt, or a tuple of these."""
    return node.meta["val"]


def buffer_of(node: fx.Node) -> str:
    """The buffer that a plan keeps a node's value in: named as the node, or as the one that it is a copy of."""
    return str(node.meta.get("buffer", node.name))


def output_of(graph: fx.Graph) -> fx.Node:
    """The output node of a graph."""
    output: fx.Node = next(node for node in reversed(graph.nodes) if node.op == "output")
    return output


def outputs_of(graph: fx.Graph) -> Sequence[Any]:
    """The output values (nodes or literals) of a graph, in order."""
    values = output_of(graph).args[0]
    return values if isinstance(values, (tuple, list)) else (values,)


def body_of(module: fx.GraphModule, call: fx.Node) -> fx.GraphModule:
    """The body of a region call or loop of a graph."""
    body: fx.GraphModule = getattr(module, str(call.args[0].target))  # type: ignore[union-attr]
    return body


def regions_called(graph: fx.Graph) -> list[tuple[fx.Node, str]]:
    """The region calls and loops of a graph, in order: the call node and the body's name."""
    return [
        (node, str(node.args[0].target))
        for node in graph.nodes
        if node.op == "call_function" and node.target in CALLS and isinstance(node.args[0], fx.Node)
    ]
