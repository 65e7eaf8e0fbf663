"""Reading the nodes of a program's graphs: what they compute, where they come from, which body they call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from gaudicc.errors import Where


def call_region(body: fx.GraphModule, *operands: Any) -> tuple[Any, ...]:
    """Runs a region body; the only way one graph calls another.

    In a graph: `call_function(call_region, (get_attr body, *operands))`, a tuple taken apart by `getitem`.
    """
    result: tuple[Any, ...] = body(*operands)
    return result


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
    outside = [(file, line) for file, line in frames if "/torch/" not in f"/{file}"]
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


def output_of(graph: fx.Graph) -> fx.Node:
    """The output node of a graph."""
    output: fx.Node = next(node for node in reversed(graph.nodes) if node.op == "output")
    return output


def outputs_of(graph: fx.Graph) -> Sequence[Any]:
    """The output values (nodes or literals) of a graph, in order."""
    values = output_of(graph).args[0]
    return values if isinstance(values, (tuple, list)) else (values,)


def regions_called(graph: fx.Graph) -> list[tuple[fx.Node, str]]:
    """The region calls of a graph, in order: the call node and the body's name."""
    return [
        (node, str(node.args[0].target))
        for node in graph.nodes
        if node.op == "call_function" and node.target is call_region and isinstance(node.args[0], fx.Node)
    ]
