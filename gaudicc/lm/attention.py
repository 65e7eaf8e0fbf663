"""LM inference: the attention that transformers' models call under the name `gaudicc`, in ops that passes recognise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaudicc.errors import UnsupportedInputError, Where

_UNSUPPORTED = ("position_bias", "head_mask")


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    indices: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention by the interface of transformers.

    Args:
        module: the layer that calls.
        query: `[batch, heads, queries, width]`.
        key: `[batch, kv heads, keys, width]`.
        value: `[batch, kv heads, keys, width of values]`.
        attention_mask: bool, which keys a query attends, or what to add to the scores; `[batch, 1, queries, keys]`.
        scaling: of the scores; None: by the width.
        softcap: bounds the scores smoothly (Gemma 2).
        s_aux: `[heads]`, the score of one more key per head whose value is zero (the sinks of gpt-oss).
        indices: `[batch, queries, chosen]`, the only keys that each query attends, of those that the mask allows (DeepSeek V3.2).
        others: what else a model hands over.

    Returns:
        `[batch, queries, heads, width of values]`, and no weights.

    Raises:
        UnsupportedInputError: the model's attention has a part that is not known here.
    """
    for name in _UNSUPPORTED:
        if others.get(name) is not None:
            raise UnsupportedInputError(
                f"the attention of {type(module).__name__} has a {name}",
                where=Where(stage="compile_lm"),
                hint="compile its forward pass with gaudicc.compile, which takes attention of any form",
            )
    if indices is not None:
        attention_mask = _chosen(key, attention_mask, indices)
    if softcap is not None or s_aux is not None:
        return _by_scores(query, key, value, attention_mask, scaling, softcap, s_aux), None
    grouped = query.shape[1] != key.shape[1]
    result = F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=grouped
    )
    return result.transpose(1, 2), None


def _chosen(key: Tensor, mask: Tensor | None, indices: Tensor) -> Tensor:
    """A mask, bool or to be added, without the keys that an indexer did not choose."""
    left = indices.new_zeros(*indices.shape[:2], key.shape[2], dtype=torch.bool)
    chosen = left.scatter(-1, indices.long(), True).unsqueeze(1)
    if mask is None:
        return chosen
    return mask & chosen if mask.dtype is torch.bool else mask.masked_fill(~chosen, torch.finfo(mask.dtype).min)


def _by_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """What no fused kernel of torch does."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None and mask.dtype is torch.bool:
        scores = torch.where(mask, scores, torch.full_like(scores, torch.finfo(scores.dtype).min))
    elif mask is not None:
        scores = scores + mask
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    return (weights @ value).transpose(1, 2)
