"""Fused attention. Grouped heads come as five dims: q `[batch, groups, heads, rows, dim]`, k and v with one head each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gaudicc.emulator.generator import hpu_generator

_Parts = tuple[Tensor, Tensor, Tensor]


def scores(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Tensor:
    """Q k^T * scale + mask in float32; a bool mask is True where a key is attended."""
    found = torch.matmul(q.to(torch.float32), k.to(torch.float32).transpose(-2, -1)) * scale
    rows, keys = found.shape[-2:]
    if causal:
        found = found.masked_fill(torch.ones(rows, keys, dtype=torch.bool, device=found.device).triu(1), float("-inf"))
    if mask is not None:
        found = found.masked_fill(~mask, float("-inf")) if mask.dtype is torch.bool else found + mask
    return found


def valid(found: Tensor, lengths: Tensor | None, padding: str) -> Tensor:
    """Scores of keys beyond each entry's length set to minus infinity."""
    if lengths is None:
        return found
    keys = torch.arange(found.shape[-1], device=found.device)
    limit = lengths.reshape(-1, *[1] * (found.dim() - 1))
    inside = keys >= found.shape[-1] - limit if padding == "left" else keys < limit
    return found.masked_fill(~inside, float("-inf"))


def weigh(found: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weights that gather the values, weights before dropout, dropout mask, and maximum and 1 / sum of each row."""
    top = found.amax(-1, keepdim=True)
    raised = torch.exp(found - top)
    inverse = raised.sum(-1, keepdim=True).reciprocal()
    weights = raised * inverse
    kept = torch.ones_like(weights)
    used = weights
    if p > 0 and not found.is_meta:
        kept = torch.empty_like(weights).bernoulli_(1 - p, generator=hpu_generator())
        used = weights * kept / (1 - p)
    return used, weights, kept, top, inverse


def _attend(found: Tensor, v: Tensor, p: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Like `weigh`, with the result in the first place."""
    used, weights, kept, top, inverse = weigh(found, p)
    return torch.matmul(used, v.to(torch.float32)), weights, kept, top, inverse


def sdpa_recomp_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: Tensor | None,
    p: float,
    scale: float,
    is_causal: bool,
    requires_backward: bool,
    softmax_mode: str,
    valid_seq_len: Tensor | None,
    seq_padding_type: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Result, maximum and 1 / sum of each row, seed; `softmax_mode` chooses a kernel, and the dtype of 1 / sum."""
    found = valid(scores(q, k, attention_mask, scale, is_causal), valid_seq_len, seq_padding_type)
    out, _, _, top, inverse = _attend(found, v, p)
    if softmax_mode == "fast" and q.dtype is torch.bfloat16:  # `hpu_ops/backend/sdpa_gen.cpp`
        inverse = inverse.to(torch.bfloat16)
    return out.to(q.dtype), top.to(q.dtype), inverse, torch.zeros(1, dtype=torch.int32, device=q.device)


def sdpa_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: Tensor | None,
    p: float,
    scale: float,
    is_causal: bool,
    softmax_mode: str,
    valid_seq_len: Tensor | None,
    seq_padding_type: str,
) -> _Parts:
    """Result, weights, dropout mask."""
    found = valid(scores(q, k, attention_mask, scale, is_causal), valid_seq_len, seq_padding_type)
    out, weights, kept, _, _ = _attend(found, v, p)
    return out.to(q.dtype), weights.to(q.dtype), kept.to(torch.uint8)


HEAD = "(Tensor q, Tensor k, Tensor v, Tensor? attention_mask, float p, float scale, bool is_causal, "
_TAIL = "str softmax_mode, Tensor? valid_seq_len, str seq_padding_type) -> "
_RECOMP = f"{HEAD}bool requires_backward, {_TAIL}(Tensor, Tensor, Tensor, Tensor)"
_PLAIN = f"{HEAD}{_TAIL}(Tensor, Tensor, Tensor)"

OPS: dict[str, Callable[..., Any]] = {
    **{f"sdpa_recomp_fwd{kind}{_RECOMP}": sdpa_recomp_fwd for kind in ("", "_dropout", "_non_dropout")},
    **{f"sdpa_fwd{kind}{_PLAIN}": sdpa_fwd for kind in ("", "_dropout", "_non_dropout")},
}
