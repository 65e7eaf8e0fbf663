"""Recording on the CPU, between the first step and fusion: `gaudicc::` ops become the calls that are fastest here.

Their own references are for reading; called one by one they cost several dispatches each. What has no entry here stays.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from gaudicc.kernels import attention, rms_norm, rotary
from gaudicc.runtime.cpu_edit import Editor
from gaudicc.runtime.cpu_native_calls import native_norm, native_rotary
from gaudicc.runtime.cpu_weights import PackedWeights

_aten = torch.ops.aten


def lower_semantic(editor: Editor, weights: PackedWeights) -> None:
    """Rewrites norms to four calls, attention and rotary embedding to what fusion knows."""
    for node in editor.calls():
        if node.target is rms_norm:
            _lower_norm(editor, weights, node)
        elif node.target is attention:
            _lower_attention(editor, node)
        elif node.target is rotary:
            _lower_rotary(editor, node)


def _lower_norm(editor: Editor, weights: PackedWeights, node: fx.Node) -> None:
    """`x / hypot(norm(x), sqrt(width * eps)) * (weight * sqrt(width))`, in float32 only: others round in between."""
    x, gain, eps = node.args[:3]
    assert isinstance(x, fx.Node), "the schema says tensor"
    assert isinstance(gain, fx.Node), "the schema says tensor"
    assert isinstance(eps, float), "the schema says float"
    value, width = x.meta["val"], x.meta["val"].shape[-1]
    if {value.dtype, gain.meta["val"].dtype} != {torch.float32} or eps < 0 or not value.numel():
        return
    if (made := native_norm(editor, node, x, gain, eps)) is not None:
        editor.replace(node, made)
        return
    length = editor.before(node).call(_aten.linalg_vector_norm.default, x, 2, [-1], True)
    floor = editor.number(math.sqrt(width * eps), "eps")
    unit = editor.call(_aten.div.Tensor, x, editor.call(_aten.hypot.default, length, floor))
    weight = editor.weight(gain)
    if weight is not None and editor.can_derive(weight):
        scale = weights.derive("root-width", (weight,), lambda w: w.detach() * math.sqrt(w.shape[0]))
        factor = editor.bind_prepared("scale", scale)
    else:
        factor = editor.call(_aten.mul.Tensor, gain, math.sqrt(width))
    editor.replace(node, editor.call(_aten.mul.Tensor, unit, factor))


def _lower_attention(editor: Editor, node: fx.Node) -> None:
    q, k, v, mask, causal, scale = node.args
    grouped: Any = q.meta["val"].shape[1] != k.meta["val"].shape[1]  # type: ignore[union-attr]
    args = (q, k, v, mask, 0.0, causal)
    result = editor.before(node).call(
        _aten.scaled_dot_product_attention.default, *args, scale=scale, enable_gqa=grouped
    )
    editor.replace(node, result)


def _lower_rotary(editor: Editor, node: fx.Node) -> None:
    if (made := native_rotary(editor, node)) is not None:
        editor.replace(node, made)
        return
    x, cos, sin, interleaved = node.args
    value = x.meta["val"]  # type: ignore[union-attr]
    last, width = value.dim() - 1, value.shape[-1]
    call = editor.before(node).call
    if interleaved:
        odd, even = (call(_aten.slice.Tensor, x, last, start, width, 2) for start in (1, 0))
        pairs = call(_aten.stack.default, [call(_aten.neg.default, odd), even], -1)
        turned = call(_aten.view.default, pairs, list(value.shape))
    else:
        front, back = (call(_aten.slice.Tensor, x, last, *span) for span in ((0, width // 2), (width // 2, width)))
        turned = call(_aten.cat.default, [call(_aten.neg.default, back), front], last)
    parts = (call(_aten.mul.Tensor, x, cos), call(_aten.mul.Tensor, turned, sin))
    editor.replace(node, call(_aten.add.Tensor, *parts))
