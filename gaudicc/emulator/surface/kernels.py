"""`habana_frameworks.torch.hpex.kernels` and `.normalization`: the fused kernels as Python sees them.

Source of names and forms: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpex/`. Where gradients are asked for, the same formula
runs as plain ops, so that they flow; the device has kernels for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from gaudicc.emulator.ops import attention, norms
from gaudicc.emulator.surface.grouped import gqa_input_reshape_fwd, gqa_output_reshape, is_gqa
from gaudicc.emulator.surface.marks import refused

__all__ = [
    "CTCLoss", "CustomSoftmax", "FusedRMSNorm", "FusedSDPA", "PySDPA", "PySDPAHinted", "RmsNormBwdMode",
    "RotaryPosEmbeddingHelperV1", "RotaryPosEmbeddingHelperV2", "RotaryPosEmbeddingHelperV3", "RotaryPosEmbeddingMode",
    "apply_rotary_pos_emb",
]  # fmt: skip

_RECOMPUTE = [False]
LENGTHS = "Valid sequence length is supported only in inference with is_causal(triangular) mask case"
_FAST = "Optimized softmax mode is supported in recompute training mode only in causal(triangular) mask case"

CTCLoss = refused("hpex.kernels.CTCLoss", "it serves training; torch.nn.functional.ctc_loss runs on the host")


def recompute_sdp_enabled() -> bool:
    """Whether fused attention keeps no weights."""
    return _RECOMPUTE[0]


def enable_recompute_sdp(enabled: bool) -> None:
    """Fused attention keeps no weights from now on, or keeps them."""
    _RECOMPUTE[0] = enabled


@contextmanager
def sdp_kernel(enable_recompute: bool = True) -> Iterator[dict[str, object]]:
    """A block in which fused attention keeps no weights."""
    before, _RECOMPUTE[0] = _RECOMPUTE[0], enable_recompute
    try:
        yield {}
    finally:
        _RECOMPUTE[0] = before


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


class FusedSDPA:
    """Attention in one kernel."""

    @staticmethod
    def apply(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        softmax_mode: str = "None",
        recompute_mode: bool | None = None,
        valid_sequence_lengths: Tensor | None = None,
        padding_side: str = "left",
        return_dropout_mask: bool = False,
        return_attn_probs: bool = False,
    ) -> Any:
        """softmax(q k^T * scale + mask) v, with fewer key/value heads than query heads if need be.

        Returns:
            The result, then what was asked for of the weights and the dropout mask.

        Raises:
            AssertionError: lengths are given together with a mask, without causality, or where gradients are wanted; weights
                or a dropout mask are wanted from a kernel that does not keep them.
        """
        factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        with_grad = _needs_grad(query, key, value)
        recompute = (recompute_sdp_enabled() if recompute_mode is None else recompute_mode) and not return_attn_probs
        lengths = valid_sequence_lengths is not None
        for wrong, what in (
            (return_attn_probs and with_grad, "return_attn_probs is supported only for inference mode"),
            (recompute and with_grad and softmax_mode.lower() == "fast" and not is_causal, _FAST),
            (lengths and (not is_causal or with_grad or attn_mask is not None), LENGTHS),
            (recompute and return_dropout_mask, "Return_dropout_mask is not supported in recompute mode"),
        ):
            if wrong:
                raise AssertionError(what)
        grouped = is_gqa(query, key)
        if grouped:
            query, key, value, attn_mask = gqa_input_reshape_fwd(query, key, value, attn_mask)
        if with_grad:
            weights = torch.softmax(attention.scores(query, key, attn_mask, factor, is_causal), -1)
            kept = torch.nn.functional.dropout(torch.ones_like(weights), dropout_p)
            out = torch.matmul(weights * kept, value.to(torch.float32)).to(query.dtype)
            parts = [out, weights, (kept > 0).to(torch.uint8)]
        else:
            head: tuple[Any, ...] = (query, key, value, attn_mask, dropout_p, factor, is_causal)
            tail = (softmax_mode.lower(), valid_sequence_lengths, padding_side.lower())
            ops: Any = torch.ops.hpu
            parts = list(ops.sdpa_recomp_fwd(*head, False, *tail) if recompute else ops.sdpa_fwd(*head, *tail))
        wanted = [True, return_attn_probs, return_dropout_mask]
        results = [part for part, want in zip(parts, wanted, strict=False) if want]
        results = [gqa_output_reshape(part) if grouped else part for part in results]
        return results[0] if len(results) == 1 else tuple(results)


class PySDPA:
    """Attention written out in plain ops."""

    @staticmethod
    def apply(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, with_slice: bool = False) -> Tensor:
        """softmax(q k^T / sqrt(d)) v, `[batch, heads, length, dim]`; slices save memory on the device."""
        scale = 1 / math.sqrt(query.shape[-1])
        weights = torch.matmul(query, key.transpose(-2, -1))
        if is_causal and not _needs_grad(query, key, value):
            weights = torch.ops.hpu.scaled_triangular_softmax_retain(weights.flatten(end_dim=1), scale)[0].view_as(
                weights
            )
        else:
            hidden = torch.ones_like(weights, dtype=torch.bool).triu(1) if is_causal else None
            weights = weights * scale if hidden is None else (weights * scale).masked_fill(hidden, -math.inf)
            weights = torch.softmax(weights, -1)
        return torch.matmul(weights, value)


class PySDPAHinted(PySDPA):
    """The same; its hints order the device's work."""


class CustomSoftmax:
    """softmax over the last dim."""

    @staticmethod
    def apply(input: Tensor, flavor: int) -> Tensor:
        """The softmax; flavours differ in speed on the device."""
        found: Tensor = torch.ops.hpu.custom_softmax(input, flavor)
        return found


class RmsNormBwdMode(Enum):
    """How the device computes gradients."""

    DEFAULT = 0
    STATIC_CASE_WIDTH_PARTITIONING = 1


class FusedRMSNorm:
    """Root-mean-square norm in one kernel."""

    @staticmethod
    def apply(
        data_in: Tensor, gamma: Tensor, eps: float, use_stages: bool = True, bwd_mode: Any = 0, fast_math: bool = False
    ) -> Tensor:
        """The normalised values; the other arguments choose kernels."""
        if _needs_grad(data_in, gamma):
            return norms.rms_norm(data_in, gamma, eps)[0]
        name = "rms_norm_fast" if fast_math else "rms_norm"
        found: Tensor = getattr(torch.ops.hpu, name)(data_in, gamma, eps)[0]
        return found


class RotaryPosEmbeddingMode(Enum):
    """Which features form a pair."""

    BLOCKWISE = 0
    PAIRWISE = 1


def apply_rotary_pos_emb(
    p: Tensor,
    cos: Tensor,
    sin: Tensor | None = None,
    position_ids: Tensor | None = None,
    offset: int = 0,
    mode: RotaryPosEmbeddingMode = RotaryPosEmbeddingMode.BLOCKWISE,
) -> Tensor:
    """Rotary embedding; operands of different dtypes meet in float32, if one of them is, else in p's dtype.

    Without `sin`, `cos` is ChatGLM's cache of both.
    """
    if sin is None:
        return RotaryPosEmbeddingHelperV3.apply(p, cos)
    dtype = torch.float32 if torch.float32 in (p.dtype, cos.dtype, sin.dtype) else p.dtype
    operands = p.to(dtype), sin.to(dtype), cos.to(dtype)
    if _needs_grad(p, cos, sin):
        return norms.rotary_pos_embedding(*operands, position_ids, offset, mode.value)
    found: Tensor = torch.ops.hpu.rotary_pos_embedding(*operands, position_ids, offset, mode.value)
    return found


class RotaryPosEmbeddingHelperV1:
    """Rotary embedding from an offset."""

    @staticmethod
    def apply(p: Tensor, cos: Tensor, sin: Tensor, offset: int) -> Tensor:
        """Features from `offset` of cos and sin."""
        return apply_rotary_pos_emb(p, cos, sin, None, offset)


class RotaryPosEmbeddingHelperV2:
    """Rotary embedding at positions."""

    @staticmethod
    def apply(p: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor) -> Tensor:
        """Rows of cos and sin."""
        return apply_rotary_pos_emb(p, cos, sin, position_ids)


class RotaryPosEmbeddingHelperV3:
    """Rotary embedding of the first features, as ChatGLM has it."""

    @staticmethod
    def apply(p: Tensor, rope_cache: Tensor) -> Tensor:
        """Neighbouring features form pairs.

        Args:
            p: `[sequence, batch, heads, dim]`.
            rope_cache: `[sequence or more, batch or 1, pairs, 2]`: cosine and sine; features beyond 2 * pairs stay as they are.
        """
        rows, rotated = p.shape[0], 2 * rope_cache.shape[-2]
        angles = rope_cache[:rows].reshape(rows, -1, 1, rope_cache.shape[-2], 2).to(p.dtype)
        cos, sin = (angles[..., which].repeat_interleave(2, dim=-1) for which in (0, 1))
        turned = apply_rotary_pos_emb(p[..., :rotated], cos, sin, mode=RotaryPosEmbeddingMode.PAIRWISE)
        return torch.cat((turned, p[..., rotated:]), -1) if rotated < p.shape[-1] else turned
