"""Capture, mending: what is changed in an exported graph: numbers that were read, views that are returned."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from gaudicc.capture.mend.internals import is_data_dependent


def tidy(module: fx.GraphModule) -> None:
    """Drops what nothing reads: numbers that were read only to be decided on, and torch's asserts that those are 0 or 1."""
    for node in module.graph.nodes:  # torch forgets users of what it computes inside `with torch.no_grad():`
        for operand in node.all_input_nodes:
            operand.users.setdefault(node)
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default and _always_holds(node.args[0]):
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def own_outputs(exported: ExportedProgram) -> None:
    """Returns a copy for a view whose place depends on data: torch cannot return such a view of a tensor that was changed."""
    graph, copies = exported.graph, dict[str, str]()
    output = next(iter(graph.find_nodes(op="output")))
    for node in output.all_input_nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and is_data_dependent(value.storage_offset()):
            with graph.inserting_before(output):
                copy = graph.call_function(torch.ops.aten.clone.default, (node,))
            copy.meta = {**node.meta, "val": value.clone()}
            output.replace_input_with(node, copy)
            copies[node.name] = copy.name
    if not copies:
        return
    for spec in exported.graph_signature.output_specs:
        name = getattr(spec.arg, "name", None)
        if name in copies:
            spec.arg.name = copies[name]
    exported.graph_module.recompile()


def _always_holds(condition: Any) -> bool:
    if not isinstance(condition, fx.Node):
        return bool(condition)
    if condition.meta.get("val") is True:
        return True
    if condition.target not in (operator.ge, operator.le) or len(condition.args) != 2:
        return False
    number, bound = condition.args
    is_choice = isinstance(number, fx.Node) and number.target is torch.sym_ite
    values = number.args[1:] if is_choice else (number,)  # type: ignore[union-attr]
    return all(isinstance(value, int) and condition.target(value, bound) for value in values)
