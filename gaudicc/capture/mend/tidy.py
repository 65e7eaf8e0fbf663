"""Capture, mending: what an exported graph holds only because Python read a number."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx


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
