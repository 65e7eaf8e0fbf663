"""Capture: whether two exports of a model, made with examples of other sizes, compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram


def same_graph(one: ExportedProgram, other: ExportedProgram, at: Mapping[sympy.Symbol, int]) -> bool:
    """Whether two exports of a model compute the same.

    Args:
        one: an export.
        other: another one.
        at: sizes that symbols have; the others may have any.
    """
    constants = one.constants.keys() == other.constants.keys() and all(
        value is other.constants[name]
        or (isinstance(value, torch.Tensor) and torch.equal(value, other.constants[name]))
        for name, value in one.constants.items()
    )
    return constants and graph_text(one.graph_module, at) == graph_text(other.graph_module, at)


def graph_text(module: fx.GraphModule, at: Mapping[sympy.Symbol, int]) -> list[str]:
    """The graph as text: tensors by number, sizes as expressions wherever they were asked for."""
    names: dict[fx.Node, str] = {}
    lines: list[str] = []
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, (int, torch.SymInt)):
            names[node] = _size(value, at)
        elif _is_identity(node, at):
            names[node] = names[node.args[0]]
        elif _is_torchs_own_check(node):
            continue
        elif node.users or node.op == "output":
            names[node] = f"%{len(lines)}"
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda used: _Bare(names[used]))
            lines.append(f"{node.op} {node.target} {args} {kwargs} {_type(value, at)}")
    for name, child in module.named_children():
        lines += [f"{name}:", *(graph_text(child, at) if isinstance(child, fx.GraphModule) else [])]
    return lines


_VIEWS = {
    torch.ops.aten.contiguous.default, torch.ops.aten.expand.default, torch.ops.aten.reshape.default,
    torch.ops.aten.slice.Tensor, torch.ops.aten.to.dtype, torch.ops.aten.view.default,
}  # fmt: skip


def _is_identity(node: fx.Node, at: Mapping[sympy.Symbol, int]) -> bool:
    """Whether a view shows all of its operand as it is: a slice of the last element of one, say."""
    if node.target not in _VIEWS or not isinstance(operand := node.args[0], fx.Node):
        return False
    return _type(node.meta.get("val"), at) == _type(operand.meta.get("val"), at)


def _is_torchs_own_check(node: fx.Node) -> bool:
    """Whether a node checks what torch knows of a size that data decides, or is part of such a check."""
    checks = node.target is torch.ops.aten._assert_scalar.default
    return (checks and str(node.args[1]).startswith("Runtime assertion failed for expression")) or (
        isinstance(node.meta.get("val"), torch.SymBool) and all(map(_is_torchs_own_check, node.users))
    )


class _Bare(str):
    """A name, printed without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _size(size: Any, at: Mapping[sympy.Symbol, int]) -> str:
    return str(size.node.expr.subs(at) if isinstance(size, torch.SymInt) else size)


def _type(value: Any, at: Mapping[sympy.Symbol, int]) -> str:
    if isinstance(value, (tuple, list)):
        return str([_type(item, at) for item in value])
    if not isinstance(value, torch.Tensor):
        return str(value)
    return f"{value.dtype}[{', '.join(_size(size, at) for size in value.shape)}]"
