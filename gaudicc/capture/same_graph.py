"""Capture: whether two exports of a model, made with examples of other sizes, compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram

Word = Callable[[sympy.Basic], str]
"""How an expression over sizes is written."""


def same_graph(one: ExportedProgram, other: ExportedProgram, words: tuple[Word, Word]) -> bool:
    """Whether two exports of a model compute the same.

    Args:
        one: an export.
        other: another one.
        words: how each writes sizes: alike where they are alike for the sizes that matter.
    """
    constants = one.constants.keys() == other.constants.keys() and all(
        value is other.constants[name]
        or (isinstance(value, torch.Tensor) and torch.equal(value, other.constants[name]))
        for name, value in one.constants.items()
    )
    return constants and graph_text(one.graph_module, words[0]) == graph_text(other.graph_module, words[1])


def graph_text(module: fx.GraphModule, word: Word = str) -> list[str]:
    """The graph as text: tensors by number, sizes as expressions wherever they were asked for."""
    names: dict[fx.Node, str] = {}
    lines: list[str] = []
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, (int, torch.SymInt)):
            names[node] = _size(value, word)
        elif _is_identity(node, word):
            names[node] = names[node.args[0]]
        elif _is_torchs_own_check(node):
            continue
        elif node.users or node.op == "output":
            names[node] = f"%{len(lines)}"
            args, kwargs = fx.map_arg((_arguments(node), node.kwargs), lambda used: _Bare(names[used]))
            lines.append(f"{node.op} {node.target} {args} {kwargs} {_type(value, word)}")
    for name, child in module.named_children():
        lines += [f"{name}:", *(graph_text(child, word) if isinstance(child, fx.GraphModule) else [])]
    return lines


def _arguments(node: fx.Node) -> list[Any]:
    """The arguments of a node, those of a slice from the start on in one form."""
    from_start = node.target is torch.ops.aten.slice.Tensor and len(node.args) > 2 and node.args[2] is None
    return [0 if from_start and i == 2 else arg for i, arg in enumerate(node.args)]


_VIEWS = {
    torch.ops.aten.contiguous.default, torch.ops.aten.expand.default, torch.ops.aten.reshape.default,
    torch.ops.aten.slice.Tensor, torch.ops.aten.to.dtype, torch.ops.aten.view.default,
}  # fmt: skip


def _is_identity(node: fx.Node, word: Word) -> bool:
    """Whether a view shows all of its operand as it is: a slice of the last element of one, say."""
    if node.target not in _VIEWS or not isinstance(operand := node.args[0], fx.Node):
        return False
    return _type(node.meta.get("val"), word) == _type(operand.meta.get("val"), word)


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


def _size(size: Any, word: Word) -> str:
    return word(size.node.expr) if isinstance(size, torch.SymInt) else str(size)


def _type(value: Any, word: Word) -> str:
    if isinstance(value, (tuple, list)):
        return str([_type(item, word) for item in value])
    if not isinstance(value, torch.Tensor):
        return str(value)
    return f"{value.dtype}[{', '.join(_size(size, word) for size in value.shape)}]"
