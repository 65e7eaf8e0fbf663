"""Norms, softmaxes and rotary embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gaudicc.emulator.ops.fp8 import FP8, as_fp8


def rms_norm(data_in: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The normalised values in the input's dtype, and 1 / root mean square of each row."""
    wide = data_in.to(torch.float32)
    inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return (wide * inverse * gamma.to(torch.float32)).to(data_in.dtype), inverse


def custom_softmax(input: Tensor, flavor: int) -> Tensor:
    """Softmax over the last dim; the flavours differ in speed on the device, not here."""
    return torch.softmax(input.to(torch.float32), -1).to(input.dtype)


def scaled_masked_softmax(input: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(input * scale + mask)."""
    return torch.softmax(input.to(torch.float32) * scale + mask, -1).to(input.dtype)


def _triangular(scores: Tensor) -> Tensor:
    """Scores above the diagonal set to minus infinity."""
    rows, columns = scores.shape[-2:]
    return scores.masked_fill(torch.ones(rows, columns, dtype=torch.bool, device=scores.device).triu(1), float("-inf"))


def scaled_triangular_softmax_retain(self: Tensor, inv_scale_attn: float) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over the lower triangle, with 1 / sum and maximum of each row."""
    scores = _triangular(self.to(torch.float32) * inv_scale_attn)
    top = scores.amax(-1, keepdim=True).to(self.dtype)
    weights = torch.exp(scores - top.to(torch.float32))
    inverse = weights.sum(-1, keepdim=True).reciprocal()
    return (weights * inverse).to(self.dtype), inverse, top


def scaled_triangular_softmax(
    self: Tensor, inv_scale_attn: float, exp_sum_recpr: Tensor | None = None, max: Tensor | None = None
) -> Tensor:
    """Softmax over the lower triangle; with the retained figures of a row it only scales."""
    if exp_sum_recpr is None or max is None:
        return scaled_triangular_softmax_retain(self, inv_scale_attn)[0]
    scores = _triangular(self.to(torch.float32) * inv_scale_attn)
    return (torch.exp(scores - max.to(torch.float32)) * exp_sum_recpr).to(self.dtype)


def scaled_masked_triangular_softmax(
    self: Tensor,
    start_end: Tensor,
    inv_scale_attn: float,
    grouped_batch_size: int,
    use_max: bool,
    mode: int,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Softmax over the lower triangle between two columns; rows with nothing in it are zeros, not nan.

    Args:
        self: `[batch, rows, columns]`.
        start_end: `[batch / grouped_batch_size, 2]`: the first column, and one past the last.
        inv_scale_attn: factor on the scores.
        grouped_batch_size: entries that share a pair of columns.
        use_max: accepted; the maximum is always subtracted.
        mode: accepted; it chooses a kernel.
        out_dtype: of the result, the input's if None.
    """
    scores = _triangular(self.to(torch.float32) * inv_scale_attn)
    bounds = start_end.repeat_interleave(grouped_batch_size, 0)[: self.shape[0]]
    columns = torch.arange(self.shape[-1], device=self.device)
    inside = (columns >= bounds[:, :1]) & (columns < bounds[:, 1:])
    result = torch.softmax(scores.masked_fill(~inside[:, None, :], float("-inf")), -1).nan_to_num(0.0)
    goal = out_dtype or self.dtype
    return as_fp8(result, goal) if goal in FP8 else result.to(goal)


def rotary_pos_embedding(
    input: Tensor, sin: Tensor, cos: Tensor, position_ids: Tensor | None, offset: int, mode: int
) -> Tensor:
    """Rotates pairs of features.

    Args:
        input: `[..., dim]`.
        sin: of the angles; with position_ids one row for each position, else from `offset` in its last dim.
        cos: like sin.
        position_ids: `[batch, positions]`, or None.
        offset: the first feature of sin and cos.
        mode: 0 pairs feature i with i + dim / 2, 1 pairs neighbours.
    """
    dim = input.shape[-1]
    if position_ids is not None:
        rows = position_ids.to(torch.int64)
        cos, sin = (each.reshape(-1, each.shape[-1])[rows].unsqueeze(1) for each in (cos, sin))
    elif mode == 0:
        cos, sin = (each[..., offset : offset + dim] for each in (cos, sin))
    if mode == 0:
        turned = torch.cat((-input[..., dim // 2 :], input[..., : dim // 2]), -1)
    else:
        turned = torch.stack((-input[..., 1::2], input[..., ::2]), -1).flatten(-2)
    return input * cos + turned * sin


_RMS = "(Tensor data_in, Tensor gamma, float epsilon) -> (Tensor, Tensor)"

OPS: dict[str, Callable[..., Any]] = {
    "exp_fast_math(Tensor self) -> Tensor": torch.exp,
    "sqrt_fast_math(Tensor self) -> Tensor": torch.sqrt,
    "rsqrt_fast_math(Tensor self) -> Tensor": torch.rsqrt,
    f"rms_norm{_RMS}": rms_norm,
    f"rms_norm_fast{_RMS}": rms_norm,
    "custom_softmax(Tensor input, int flavor) -> Tensor": custom_softmax,
    "scaled_masked_softmax(Tensor input, Tensor mask, float scale) -> Tensor": scaled_masked_softmax,
    "scaled_triangular_softmax(Tensor self, float inv_scale_attn, Tensor? exp_sum_recpr=None, Tensor? max=None) -> "
    "Tensor": scaled_triangular_softmax,
    "scaled_triangular_softmax_retain(Tensor self, float inv_scale_attn) -> (Tensor, Tensor, Tensor)": (
        scaled_triangular_softmax_retain
    ),
    "scaled_masked_triangular_softmax(Tensor self, Tensor start_end, float inv_scale_attn, int grouped_batch_size, "
    "bool use_max, int mode, ScalarType? out_dtype=None) -> Tensor": scaled_masked_triangular_softmax,
    "rotary_pos_embedding(Tensor input, Tensor sin, Tensor cos, Tensor? position_ids, int offset, int mode) -> "
    "Tensor": rotary_pos_embedding,
}
