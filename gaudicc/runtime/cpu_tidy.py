"""Recording on the CPU, after the linears: copies that change nothing are dropped, rotations of neighbours are joined."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from gaudicc.runtime.cpu_calls import is_view
from gaudicc.runtime.cpu_edit import Editor
from gaudicc.runtime.cpu_fuse import rotary

_aten = torch.ops.aten


def drop_copies(editor: Editor) -> None:
    """Drops copies of computed values that are laid out so already; sizes of 1 have no layout."""
    for node in editor.calls():
        if node.target is not _aten.clone.default or node.kwargs.get("memory_format") is not torch.contiguous_format:
            continue
        source: Any = node.args[0]
        if source.meta["val"].is_contiguous() and _computed(source) and not _returned(node):
            editor.replace(node, source)


def _computed(node: Any) -> bool:
    """Whether a value is a call's own result, seen through views: no input, weight or state that may change later."""
    while node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and is_view(node.target):
        node = node.args[0]
    return bool(node.op == "call_function")


def _returned(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def join_rotations(editor: Editor) -> None:
    """One rotation for queries and keys that lie side by side in the product they were cut from, at one row."""
    found: dict[Any, list[tuple[int, int, fx.Node]]] = {}
    for node in editor.calls():
        if node.target is rotary and (part := _part(node)) is not None:
            product, start, end = part
            _, _, cos, sines = node.args
            found.setdefault((product, cos, sines), []).append((start, end, node))
    for (product, cos, sines), parts in found.items():
        for group in _neighbours(sorted(parts, key=lambda part: part[0])):
            _join(editor, product, cos, sines, group)


def _part(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """The piece of a one-dimensional product that a rotation of one row reads whole."""
    x: Any = node.args[0]
    value = x.meta["val"]
    if value.dim() != 4 or value.shape[0] != 1 or value.shape[2] != 1 or not value.is_contiguous():
        return None
    while x.op == "call_function" and is_view(x.target):
        arguments: Any = x.args
        if x.target is _aten.slice.Tensor and arguments[0].meta["val"].dim() == 1:
            product, _, start, end = arguments
            return (product, start, end) if end - start == value.numel() else None
        x = arguments[0]
    return None


def _neighbours(parts: list[tuple[int, int, fx.Node]]) -> Iterator[list[tuple[int, int, fx.Node]]]:
    group: list[tuple[int, int, fx.Node]] = []
    for part in parts:
        if group and group[-1][1] != part[0]:
            yield group
            group = []
        group.append(part)
    yield group


def _join(editor: Editor, product: fx.Node, cos: fx.Node, sines: Any, group: list[tuple[int, int, fx.Node]]) -> None:
    values = [node.meta["val"] for _, _, node in group]
    shared = cos.meta["val"]
    if len(group) < 2 or shared.numel() != shared.shape[-1]:
        return
    width, heads = values[0].shape[3], sum(value.shape[1] for value in values)
    first = min((node for _, _, node in group), key=list(editor.flat.graph.nodes).index)
    editor.before(first)
    piece = editor.call(_aten.slice.Tensor, product, 0, group[0][0], group[-1][1])
    whole = editor.call(_aten.view.default, piece, [1, heads, 1, width])
    turned = editor.opaque(rotary, (whole, editor.halves(whole), cos, sines), like=whole.meta["val"])
    start = 0
    for value, (_, _, node) in zip(values, group, strict=True):
        editor.replace(node, editor.call(_aten.slice.Tensor, turned, 1, start, start + value.shape[1]))
        start += value.shape[1]
