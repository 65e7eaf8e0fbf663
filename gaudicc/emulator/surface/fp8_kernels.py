"""`habana_frameworks.torch.hpex.kernels.fp8_fused_sdpa`: attention in one kernel, with operands in fp8.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpex/kernels/Fp8FusedSDPA.py`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gaudicc.emulator.surface import kernels
from gaudicc.emulator.surface.grouped import gqa_input_reshape_fwd, gqa_output_reshape, is_gqa
from gaudicc.errors import DeviceError

__all__ = ["fp8_fused_sdpa"]


def fp8_fused_sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    softmax_mode: str = "None",
    d_scale_q: Any = None,
    d_scale_k: Any = None,
    d_scale_v: Any = None,
    q_scale_s: Any = None,
    q_scale_o: Any = None,
    d_scale_s: Any = None,
    is_amax_s: bool = False,
    is_amax_o: bool = False,
    valid_seq_len: Tensor | None = None,
    seq_padding_type: str = "left",
    recompute: bool | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """softmax(q k^T * scale + mask) v, each operand scaled back from fp8, with the largest weight and the largest result.

    Raises:
        AssertionError: lengths are given together with a mask, or without causality.
        DeviceError: gradients are wanted.
    """
    if torch.is_grad_enabled() and any(each.requires_grad for each in (q, k, v)):
        raise DeviceError(
            "gradients of hpex.kernels.fp8_fused_sdpa are not emulated: it serves training",
            hint="call it under torch.no_grad(), or run this part on a Gaudi",
        )
    if valid_seq_len is not None and (not is_causal or attn_mask is not None):
        raise AssertionError(kernels.LENGTHS)
    grouped = is_gqa(q, k)
    if grouped:
        q, k, v, attn_mask = gqa_input_reshape_fwd(q, k, v, attn_mask)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    head: tuple[Any, ...] = (q, k, v, attn_mask, dropout_p, factor, is_causal)
    scales = (d_scale_q, d_scale_k, d_scale_v, q_scale_s, q_scale_o, d_scale_s)
    mode, tail = softmax_mode.lower(), (valid_seq_len, seq_padding_type.lower())
    ops: Any = torch.ops.hpu
    if kernels.recompute_sdp_enabled() if recompute is None else recompute:
        parts = ops.fp8_sdpa_recomp_fwd(*head, False, mode, *scales, is_amax_s, is_amax_o, *tail)
        out, amax_s, amax_o = parts[0], parts[4], parts[5]
    else:
        parts = ops.fp8_sdpa_fwd(*head, mode, *scales, is_amax_s, *tail)
        out, amax_s, amax_o = parts[0], parts[3], None
    return gqa_output_reshape(out) if grouped else out, amax_s, amax_o
