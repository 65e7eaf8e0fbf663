"""`gaudicc::attention` and `gaudicc::sink_attention`: scaled dot-product attention with grouped key/value heads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gaudicc.kernels.registry import define
from gaudicc.kernels.split import plain_sink_softmax


def _reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    result = functional.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=grouped)
    # The kernel's layout depends on which one it picks; the op's is fixed.
    return result.transpose(1, 2).contiguous().transpose(1, 2)


def _fake(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    batch, heads, queries, _ = q.shape
    return q.new_empty((batch, queries, heads, v.shape[-1])).transpose(1, 2)


attention = define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal, float scale) -> Tensor", _reference, _fake
)
"""softmax(q k^T * scale + mask) v.

Args:
    q: `[batch, heads, queries, dim]`, floating point.
    k: `[batch, kv_heads, keys, dim]`; `heads` is a multiple of `kv_heads`, head h reads group `h // (heads // kv_heads)`.
    v: `[batch, kv_heads, keys, value_dim]`.
    mask: None, or broadcastable to `[batch, heads, queries, keys]`: bool (True = attend) or added to the scores.
    causal: query i attends keys 0 .. i only.
    scale: factor on the scores.

Returns:
    `[batch, heads, queries, value_dim]` of q's dtype, laid out in memory as `[batch, queries, heads, value_dim]`, so that
    merging the heads afterwards is a view.
"""


def expand_heads(x: Tensor, groups: int) -> Tensor:
    """Repeats every key/value head `groups` times: `[batch, kv_heads, keys, dim]` -> `[batch, heads, keys, dim]`."""
    batch, heads, keys, dim = x.shape
    repeated = x.unsqueeze(2).expand(batch, heads, groups, keys, dim)
    # `reshape` is a composite, which no pass may bring back once they are decomposed.
    whole: Tensor = torch.ops.aten.clone.default(repeated, memory_format=torch.contiguous_format)
    return whole.view(batch, heads * groups, keys, dim)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """The same in plain ATen: matmul, scale, mask, softmax, matmul. Softmax statistics are float32.

    A row whose keys are all masked is zero, as in PyTorch since 2.5.
    """
    aten = torch.ops.aten
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = expand_heads(k, groups), expand_heads(v, groups)
    scores = aten.mul.Tensor(aten.matmul(q, aten.transpose.int(k, -2, -1)), scale)
    lowest = float("-inf")
    if causal:
        rows = torch.arange(q.shape[2], device=q.device).unsqueeze(1)
        hidden = torch.arange(k.shape[2], device=q.device).unsqueeze(0) > rows
        scores = scores.masked_fill(hidden, lowest)
    if mask is not None:
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    weights = aten._softmax(aten._to_copy(scores, dtype=torch.float32), -1, False)
    if mask is not None:
        seen = mask if mask.dtype == torch.bool else mask > lowest
        weights = weights.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    if q.dtype != torch.float32:
        weights = aten._to_copy(weights, dtype=q.dtype)
    return torch.matmul(weights, v)


def _reference_sink(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, sink: Tensor
) -> Tensor:
    result = plain_sink_attention(q, k, v, mask, causal, scale, sink)
    return result.transpose(1, 2).contiguous().transpose(1, 2)


def _fake_sink(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, sink: Tensor
) -> Tensor:
    return _fake(q, k, v, mask, causal, scale)


def plain_sink_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, sink: Tensor
) -> Tensor:
    """The same in plain ATen: matmul, scale, mask, softmax over the keys and the sink, matmul. Softmax is float32."""
    aten = torch.ops.aten
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = expand_heads(k, groups), expand_heads(v, groups)
    scores = aten.matmul(q, aten.transpose.int(k, -2, -1))
    weights = plain_sink_softmax(scores, mask, sink.view(1, -1, 1, 1), 0 if causal else None, scale)
    return torch.matmul(weights, v)


sink_attention = define(
    "sink_attention(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal, float scale, Tensor sink) -> Tensor",
    _reference_sink,
    _fake_sink,
)
"""`gaudicc::attention` in which each head has one more key, whose score is given and whose value is zero.

It is an op of its own because no fused kernel takes a sink: what knows `gaudicc::attention` alone does not drop it unseen.

Args:
    q: as for `gaudicc::attention`, like the five that follow.
    k: keys.
    v: values.
    mask: None or a mask; it does not hold for the sink.
    causal: query i attends keys 0 .. i only, and the sink.
    scale: factor on the scores; the sink is not scaled.
    sink: `[heads]`, floating point.

Returns:
    As `gaudicc::attention`. A row whose keys are all masked is zero.
"""
