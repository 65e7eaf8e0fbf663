"""Recording on the CPU with native kernels: which calls become one of `kernels*.c`, and what it is told of its operands.

The steps that lower norms, rotary embedding and attention ask `native_norm` and the like first; `join_gates` comes behind the
linears; `settle_native` is last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from gaudicc.runtime.cpu_calls import is_view
from gaudicc.runtime.cpu_edit import Editor, has_view, is_call
from gaudicc.runtime.cpu_native import Layout, NativeCall, NativeStore

_aten = torch.ops.aten
_LANES, _ROWS = 16, 8  # of a vector; of a product


def settle_native(editor: Editor) -> None:
    """Gives every kernel the layout of its operands; what one cannot read any more, a rewrite having moved it, is copied.

    A part of a product is read where the product lies: a slice of one takes longer than some of these kernels.
    """
    nodes = [node for node in editor.calls() if isinstance(node.target, NativeCall)]
    work = torch.empty(torch.get_num_threads(), max((node.target.scratch for node in nodes), default=0))  # type: ignore[union-attr]
    for node in nodes:
        assert isinstance(node.target, NativeCall), "chosen so"
        operands: Any = node.args
        sizes = node.target.layout(*(part.meta["val"] for part in operands))
        if sizes is None:
            operands = [_contiguous(editor.before(node), part) for part in operands]
            sizes = node.target.layout(*(part.meta["val"] for part in operands))
            assert sizes is not None, "every kernel reads contiguous operands"
        whole = node.target.whole
        roots, offsets = zip(*((part, 0) for part in operands[:whole]), *map(_part_of, operands[whole:]), strict=True)
        node.args = roots
        node.target.settle([*offsets, *sizes], work)


def _contiguous(editor: Editor, node: fx.Node) -> fx.Node:
    if node.meta["val"].is_contiguous():
        return node
    return editor.call(_aten.clone.default, node, memory_format=torch.contiguous_format)


def _part_of(node: fx.Node) -> tuple[fx.Node, int]:
    """The call whose result a value is a part of, and how many elements lie before the part."""
    views, root = [], node
    while root.op == "call_function" and is_view(root.target):
        views.append(root)
        root = root.args[0]  # type: ignore[assignment]  # the tensor that is viewed
    if root.op != "call_function":
        return node, 0
    value = root.meta["val"]
    for view in reversed(views):
        value = view.target(value, *view.args[1:], **view.kwargs)  # type: ignore[operator]
    return root, int(value.storage_offset())


def native_norm(editor: Editor, node: fx.Node, x: fx.Node, gain: fx.Node, eps: float) -> fx.Node | None:
    """`x / sqrt(mean(x ** 2) + eps) * gain`, float32, in one call."""
    like = node.meta["val"]

    def layout(value: torch.Tensor, weight: torch.Tensor) -> list[int] | None:
        width = value.shape[-1]
        return [value.numel() // width, width] if value.is_contiguous() and weight.is_contiguous() else None

    return _emitted(editor, node, "rms_norm", layout, like, (x, gain), eps) if like.is_contiguous() else None


def native_rotary(editor: Editor, node: fx.Node) -> fx.Node | None:
    """Rotary embedding of halves, `[batch, heads, length, width]`, with the same angles for all heads."""
    *operands, interleaved = node.args
    like = node.meta["val"]

    def layout(value: torch.Tensor, *angles: torch.Tensor) -> list[int] | None:
        turns = [part.expand(value.shape).stride() for part in angles]
        if any(steps[3] != 1 for steps in (value.stride(), *turns)):
            return None
        return [
            *value.shape,
            *value.stride()[:3],
            *like.stride()[:3],
            *(s for turn in turns for s in (turn[0], turn[2])),
        ]

    suits = like.dim() == 4 and not interleaved and like.shape[-1] % 2 == 0 and like.stride(-1) == 1
    one_for_all_heads = all(part.meta["val"].dim() == 4 and part.meta["val"].shape[1] == 1 for part in operands[1:])  # type: ignore[union-attr]
    if not suits or not one_for_all_heads:
        return None
    return _emitted(editor, node, "rotate", layout, like, tuple(operands))


def native_product(editor: Editor, node: fx.Node, weight: torch.Tensor, *others: fx.Node) -> fx.Node | None:
    """A weight `[out, in]` as it lies times a vector, `in` elements in whole vectors, and what is added, if anything."""
    like = node.meta["val"]

    def layout(matrix: torch.Tensor, *rows: torch.Tensor) -> list[int] | None:
        out, width = matrix.shape
        plain = matrix.stride(1) == 1 and width % _LANES == 0 and rows[0].numel() == width
        return [out, width, matrix.stride(0)] if plain and all(map(_is_row, rows)) else None

    if not _is_row(like) or layout(weight, *(other.meta["val"] for other in others)) is None:
        return None
    operands = (editor.before(node).bind("weight", weight), *others)
    return _emitted(editor, node, "weigh" if len(others) == 1 else "weigh_add", layout, like, operands)


def _is_row(value: torch.Tensor) -> bool:
    return value.is_contiguous() and value.numel() == value.shape[-1]


def native_attention(
    editor: Editor, node: fx.Node, operands: tuple[fx.Node, fx.Node, fx.Node, fx.Node], scale: float
) -> fx.Node | None:
    """One query `[batch, heads, 1, width]` over keys and values `[batch, groups, keys, width]`, with a mask to add."""
    batch, heads, _, width = operands[0].meta["val"].shape
    like = torch.empty(batch, heads, 1, width, device="meta")

    def layout(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> list[int] | None:
        if any(part.stride(3) != 1 for part in (query, key, value)):
            return None
        groups, keys = key.shape[1:3]
        added = mask.expand(batch, heads, 1, keys).stride()
        strides = [*query.stride()[:2], *key.stride()[:3], *value.stride()[:3], added[0], added[1], added[3]]
        return [batch, heads, heads // groups, keys, width, *strides, *like.stride()[:2]]

    keys = operands[1].meta["val"].shape[2]
    return _emitted(editor, node, "attend_one", layout, like, operands, scale, scratch=keys)


def native_causal(editor: Editor, node: fx.Node, operands: tuple[fx.Node, ...], scale: float) -> fx.Node | None:
    """Causal attention of as many queries as keys, `[batch, heads, tokens, width]`; the width in whole vectors.

    It takes 0.35 to 0.4 of the time of PyTorch's flash kernel at 64 to 512 tokens (measured on CPU, one thread).
    """
    batch, heads, tokens, width = operands[0].meta["val"].shape
    like = torch.empty(batch, tokens, heads, width, device="meta").transpose(1, 2)
    room = (-(-tokens // _LANES) | 1) * _LANES
    if width % _LANES or operands[1].meta["val"].shape[2] != tokens:
        return None

    def layout(*values: torch.Tensor) -> list[int] | None:
        if any(value.stride(3) != 1 for value in values):
            return None
        groups = values[1].shape[1]
        strides = [step for value in (*values, like) for step in value.stride()[:3]]
        return [batch, heads, heads // groups, tokens, width, room, *strides]

    scratch = (width + _ROWS) * room + 2 * _ROWS * width
    return _emitted(editor, node, "attend_causal", layout, like, operands, scale, scratch=scratch)


def join_gates(editor: Editor) -> None:
    """`silu(gate) * up` in one call."""
    for node in editor.calls() if editor.native is not None else ():
        if node.target is not _aten.mul.Tensor or node.kwargs or not all(isinstance(a, fx.Node) for a in node.args):
            continue
        for active, up in (node.args, reversed(node.args)):
            if is_call(active, _aten.silu.default) and (made := _gated(editor, node, active.args[0], up)) is not None:  # type: ignore[union-attr]
                editor.replace(node, made)
                break


def _gated(editor: Editor, node: fx.Node, gate: Any, up: Any) -> fx.Node | None:
    like = node.meta["val"]
    if up.meta["val"].shape != like.shape or gate.meta["val"].shape != like.shape or not like.is_contiguous():
        return None

    def layout(*values: torch.Tensor) -> list[int] | None:
        rows = like.numel() // like.shape[-1], like.shape[-1]
        readable = all(value.stride(-1) == 1 and has_view(value, rows) for value in values)
        return [*rows, *(value.view(rows).stride(0) for value in values)] if readable else None

    return _emitted(editor, node, "gated", layout, like, (gate, up))


def join_stores(editor: Editor) -> None:
    """`index_copy` of rows, with the copy that brings them together: a cache gets its keys and values in one call each."""
    for node in editor.calls() if editor.native is not None else ():
        if node.target is not _aten.index_copy.default or node.args[1] != 0 or node.kwargs:
            continue
        rows, _, places, source = node.args
        values: Any = source.args[0] if is_call(source, _aten.reshape.default) else source  # type: ignore[union-attr]
        parts = [part.meta["val"] for part in (rows, places, values)]  # type: ignore[union-attr]
        if editor.native is not None and _store_layout(*parts) is not None:
            call = NativeStore(editor.native.store, _store_layout, node.meta["val"])
            editor.replace(node, editor.before(node).opaque(call, (rows, places, values), like=node.meta["val"]))


def _store_layout(rows: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> list[int] | None:
    width = rows.shape[-1]
    plain = rows.dtype == values.dtype == torch.float32 and places.dtype == torch.int64 and places.is_contiguous()
    whole = rows.dim() == 2 and rows.is_contiguous() and 2 <= values.dim() <= 4 and values.numel()
    if not plain or not whole or values.shape[-1] != width or values.stride(-1) != 1:
        return None
    missing = [1] * (4 - values.dim())
    return [*missing, *values.shape, *missing, *values.stride()[:-1], width]


def _emitted(
    editor: Editor, node: fx.Node, kernel: str, layout: Layout, like: torch.Tensor, operands: tuple[Any, ...],
    *numbers: float, scratch: int = 0,
) -> fx.Node | None:  # fmt: skip
    """The call, before `node`; None if there is no library or it cannot read the operands."""
    values = [operand.meta["val"] for operand in operands]
    suits = {value.dtype for value in values} == {torch.float32} and min(values[0].numel(), like.numel()) and like.dim()
    if editor.native is None or not suits:
        return None
    if len({id(operand) for operand in operands}) < len(operands) or layout(*values) is None:
        return None
    call = NativeCall(getattr(editor.native, kernel), layout, like, *numbers, scratch=scratch)
    return editor.before(node).opaque(call, operands, like=like)
