"""Fused attention in fp8: operands that are scaled back, weights and a result that are cast to fp8 on the way.

Source of dtypes and of what a missing scale means: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu_ops/backend/sdpa_gen.cpp`; of
the formula, its `tests/pytest_working/any_mode/FusedSDPA/test_hpu_sdpa_fp8.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gaudicc.emulator.ops.attention import HEAD, scores, valid, weigh
from gaudicc.emulator.ops.fp8 import FP8, Scale, as_fp8, scaled


class _Parts(NamedTuple):
    """What the kernel computes, in float32 but for the result."""

    out: Tensor
    weights: Tensor
    kept: Tensor
    top: Tensor
    inverse: Tensor
    amax_s: Tensor
    amax_o: Tensor


def _given(scale: Scale) -> bool:
    """A scale is left out as None, as a tensor without elements or as the number 0."""
    return scale is not None and (scale.numel() > 0 if isinstance(scale, Tensor) else scale != 0.0)


def _by(values: Tensor, scale: Scale) -> Tensor:
    return scaled(values, scale, None) if _given(scale) else values


def _scaled_back(operand: Tensor, scale: Scale) -> Tensor:
    return _by(operand.to(torch.float32), scale)


def _cast_weights(weights: Tensor, dtype: torch.dtype, q_scale_s: Scale, d_scale_s: Scale) -> Tensor:
    """The weights after a cast to fp8; without `d_scale_s` the kernel undoes `q_scale_s` itself, as in training."""
    cast = as_fp8(_by(weights, q_scale_s), dtype).to(torch.float32)
    if _given(d_scale_s):
        return _by(cast, d_scale_s)
    return cast / scaled(torch.ones_like(cast), q_scale_s, None)


def _attend(found: Tensor, v: Tensor, p: float, goal: torch.dtype, cast: tuple[Scale, Scale, Scale]) -> _Parts:
    """Weights of scores, and the values that they gather.

    Args:
        found: the scores.
        v: the values, scaled back.
        p: part of the weights that is dropped.
        goal: the queries' dtype; only fp8 queries have fp8 weights.
        cast: scale to the weights in fp8, scale back from there, scale to a result in fp8.
    """
    q_scale_s, d_scale_s, q_scale_o = cast
    used, weights, kept, top, inverse = weigh(found, p)
    if goal in FP8 and _given(q_scale_s):
        used = _cast_weights(used, goal, q_scale_s, d_scale_s)
    out = torch.matmul(used, v)
    amax_s, amax_o = weights.amax().reshape(1), out.abs().amax().reshape(1)
    if goal in FP8 and _given(q_scale_o):
        out = as_fp8(_by(out, q_scale_o), goal)
    else:
        out = out.to(torch.bfloat16 if goal in FP8 else goal)
    return _Parts(out, weights, kept, top, inverse, amax_s, amax_o)


def fp8_sdpa_recomp_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: Tensor | None,
    p: float,
    scale: float,
    is_causal: bool,
    requires_backward: bool,
    softmax_mode: str,
    d_scale_q: Scale,
    d_scale_k: Scale,
    d_scale_v: Scale,
    q_scale_s: Scale,
    q_scale_o: Scale,
    d_scale_s: Scale,
    is_amax_s: bool,
    is_amax_0: bool,
    valid_seq_len: Tensor | None,
    seq_padding_type: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Result, maximum and 1 / sum of each row, seed, largest weight and largest result, the last two where asked for."""
    left, right, values = map(_scaled_back, (q, k, v), (d_scale_q, d_scale_k, d_scale_v))
    found = valid(scores(left, right, attention_mask, scale, is_causal), valid_seq_len, seq_padding_type)
    parts = _attend(found, values, p, q.dtype, (q_scale_s, d_scale_s, q_scale_o))
    narrow = torch.bfloat16 if q.dtype in FP8 else q.dtype
    short = q.dtype in FP8 or (softmax_mode == "fast" and q.dtype is torch.bfloat16)
    none, seed = parts.amax_s.new_empty(0), torch.zeros(1, dtype=torch.int32, device=q.device)
    inverse = parts.inverse.to(torch.bfloat16) if short else parts.inverse
    amax_s, amax_o = parts.amax_s if is_amax_s else none, parts.amax_o if is_amax_0 else none.clone()
    return parts.out, parts.top.to(narrow), inverse, seed, amax_s, amax_o


def fp8_sdpa_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: Tensor | None,
    p: float,
    scale: float,
    is_causal: bool,
    softmax_mode: str,
    d_scale_q: Scale,
    d_scale_k: Scale,
    d_scale_v: Scale,
    q_scale_s: Scale,
    q_scale_o: Scale,
    d_scale_s: Scale,
    is_amax_s: bool,
    valid_seq_len: Tensor | None,
    seq_padding_type: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Result, weights in the queries' dtype, dropout mask, largest weight where asked for."""
    left, right, values = map(_scaled_back, (q, k, v), (d_scale_q, d_scale_k, d_scale_v))
    found = valid(scores(left, right, attention_mask, scale, is_causal), valid_seq_len, seq_padding_type)
    parts = _attend(found, values, p, q.dtype, (q_scale_s, d_scale_s, q_scale_o))
    weights = as_fp8(_by(parts.weights, q_scale_s), q.dtype) if q.dtype in FP8 else parts.weights.to(q.dtype)
    amax = parts.amax_s if is_amax_s else parts.amax_s.new_empty(0)
    return parts.out, weights, parts.kept.to(torch.int8), amax


_NAMES = ("d_scale_q", "d_scale_k", "d_scale_v", "q_scale_s", "q_scale_o", "d_scale_s")
_SCALES = {
    "": ", ".join(f"Tensor? {name}" for name in _NAMES),
    ".scalar": ", ".join(f"float {name}" for name in _NAMES),
}
_TAIL = "Tensor? valid_seq_len, str seq_padding_type) -> "
_KINDS = ("", "_dropout", "_non_dropout")


def _recomputed(kind: str, overload: str) -> str:
    flags = "bool is_amax_s, bool is_amax_0, "
    head = f"fp8_sdpa_recomp_fwd{kind}{overload}{HEAD}bool requires_backward, str softmax_mode, {_SCALES[overload]}, "
    return f"{head}{flags}{_TAIL}({', '.join(['Tensor'] * 6)})"


def _plain(kind: str) -> str:
    head = f"fp8_sdpa_fwd{kind}{HEAD}str softmax_mode, {_SCALES['']}, bool is_amax_s, "
    return f"{head}{_TAIL}({', '.join(['Tensor'] * 4)})"


OPS: dict[str, Callable[..., Any]] = {
    **{_recomputed(kind, overload): fp8_sdpa_recomp_fwd for kind in _KINDS for overload in _SCALES},
    **{_plain(kind): fp8_sdpa_fwd for kind in _KINDS},
}
