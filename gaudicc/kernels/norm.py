"""`gaudicc::rms_norm`: root-mean-square normalisation over the last dim, statistics in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from gaudicc.kernels.registry import define


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float, scale_first: bool) -> Tensor:
    """The same in plain ATen, op for op as transformers' Llama (`scale_first=False`) and Gemma (`True`) write it."""
    wide = x if x.dtype == torch.float32 else x.to(torch.float32)
    normed = wide * torch.rsqrt(wide.pow(2).mean([-1], True) + eps)
    if scale_first:
        scaled = normed * weight
        return scaled if scaled.dtype == x.dtype else scaled.to(x.dtype)
    return weight * (normed if normed.dtype == x.dtype else normed.to(x.dtype))


def _fake(x: Tensor, weight: Tensor, eps: float, scale_first: bool) -> Tensor:
    dtype = x.dtype if scale_first else torch.promote_types(x.dtype, weight.dtype)
    return torch.empty_like(x, dtype=dtype)


rms_norm = define("rms_norm(Tensor x, Tensor weight, float eps, bool scale_first) -> Tensor", plain_rms_norm, _fake)
"""x / sqrt(mean(x^2) + eps) * weight over the last dim.

Args:
    x: `[..., dim]`, floating point.
    weight: `[dim]`.
    eps: added to the mean square.
    scale_first: multiply by the weight in float32 before rounding to x's dtype (Gemma), not after (Llama).

Returns:
    `[..., dim]`.
"""
