"""Small words for matching: calls of an op, literals, casts and repeated heads to look through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from gaudicc.nodes import val

aten = torch.ops.aten
RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
CASTS = (aten.to.dtype, aten._to_copy.default, aten.type_as.default)
_UNCHANGED = (*CASTS, aten.to.dtype_layout, aten.to.device, aten.alias.default)


def calls(graph: fx.Graph, *ops: Any) -> list[fx.Node]:
    """The calls of any of these ops, in order; a list, since the caller rewrites while reading."""
    return [node for node in graph.nodes if node.op == "call_function" and node.target in ops]


def only_user(node: fx.Node, *ops: Any) -> fx.Node | None:
    """The node that alone reads a node, if it is a call of one of these ops."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target in ops else None


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by keyword."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def constant(node: Any, op: Any) -> float | None:
    """The literal second operand of a call of `op` without further arguments, or None."""
    if isinstance(node, fx.Node) and node.target is op and not node.kwargs and isinstance(node.args[1], (int, float)):
        return node.args[1]
    return None


def through_casts(node: fx.Node) -> fx.Node:
    """The node that a chain of aliases and of casts that lose nothing (bfloat16 to float32) starts from."""
    while node.target in _UNCHANGED and isinstance(node.args[0], fx.Node) and _keeps_values(node.args[0], node):
        node = node.args[0]
    return node


def _keeps_values(source: fx.Node, cast: fx.Node) -> bool:
    narrow: torch.dtype = val(source).dtype
    wide: torch.dtype = val(cast).dtype
    floats = narrow.is_floating_point and wide.is_floating_point
    return narrow == wide or (floats and torch.promote_types(narrow, wide) == wide)


def unrepeated(node: fx.Node) -> tuple[fx.Node, int]:
    """Looks through `repeat_kv`: unsqueeze(2), expand, reshape of `[batch, kv_heads, keys, dim]`.

    Returns:
        The tensor before it and how often each head is repeated; the node itself and 1 if it is nothing of the kind.
    """
    merged, expanded = node, node.args[0] if node.args else None
    if merged.target not in RESHAPES:
        return node, 1
    if isinstance(expanded, fx.Node) and expanded.target is aten.clone.default:
        expanded = expanded.args[0]
    if not isinstance(expanded, fx.Node) or expanded.target is not aten.expand.default:
        return node, 1
    lifted = expanded.args[0]
    if not isinstance(lifted, fx.Node) or lifted.target is not aten.unsqueeze.default or lifted.args[1] not in (2, -3):
        return node, 1
    source = lifted.args[0]
    assert isinstance(source, fx.Node), "unsqueeze of a literal does not type"
    before, wide, after = val(source).shape, val(expanded).shape, val(merged).shape
    if len(before) != 4 or len(after) != 4 or isinstance(wide[2], torch.SymInt):
        return node, 1
    repeats = int(wide[2])
    expected = (before[0], before[1] * repeats, before[2], before[3])
    return (source, repeats) if same_sizes(after, expected) else (node, 1)


def same_sizes(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are equal; symbolic sizes are if they are written alike."""
    return list(map(str, a)) == list(map(str, b))
