"""`gaudicc::` ops as the calls that launch the fewest kernels on a GPU, rounding as the ops' own references do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gaudicc.kernels import attention, moe, rms_norm
from gaudicc.kernels.moe import plain_moe
from gaudicc.kernels.norm import plain_rms_norm


def norm(x: Tensor, weight: Tensor, eps: float, scale_first: bool) -> Tensor:
    """`gaudicc::rms_norm` in two kernels: torch's own, which has float32 statistics, and the product with the weight."""
    if x.dtype == torch.float64:
        return plain_rms_norm(x, weight, eps, scale_first)
    wide = x.to(torch.float32) if scale_first else x
    scaled = functional.rms_norm(wide, (x.shape[-1],), None, eps) * weight
    return scaled.to(x.dtype) if scale_first else scaled


def bias_of(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as what is added to the scores: 0 where it is True, minus infinity elsewhere."""
    bias = torch.zeros_like(mask, dtype=dtype, memory_format=torch.contiguous_format)
    return bias.masked_fill_(mask.logical_not(), float("-inf"))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """`gaudicc::attention`; the heads of a group become the queries of one head where each has a single query.

    torch's fused kernels take a mask or grouped heads, not both, and its plain form copies keys and values per head.
    """
    heads, kv_heads, queries = q.shape[1], k.shape[1], q.shape[2]
    alike = mask is None or (mask.dim() < 3 or mask.shape[-3] == 1)
    if heads == kv_heads or queries > 1 or causal or not alike:
        result: Tensor = attention(q, k, v, mask, causal, scale)
        return result
    grouped = q.reshape(q.shape[0], kv_heads, heads // kv_heads, q.shape[3])
    result = functional.scaled_dot_product_attention(grouped, k, v, mask, scale=scale)
    return result.reshape(q.shape[0], 1, heads, v.shape[3]).transpose(1, 2)


FASTER: dict[Any, Callable[..., Any]] = {rms_norm: norm, attention: attend, moe: plain_moe}
"""Semantic op -> what is called instead."""
