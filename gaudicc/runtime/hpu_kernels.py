"""`gaudicc::` ops as the kernels that Gaudi has for them. The only place where `hpu::` ops are called.

The names exist once Gaudi's software is loaded; registering them ourselves would abort a process that loads it later.
Source of schemas: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu_ops/`. Which kernels a chip has, `gaudicc.targets` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gaudicc.kernels import attention, merge_parts, moe, rms_norm, rotary, softmax_part, softmax_tile
from gaudicc.kernels.attention import plain_attention
from gaudicc.kernels.moe import plain_moe
from gaudicc.kernels.norm import plain_rms_norm
from gaudicc.kernels.rotary import plain_rotary
from gaudicc.kernels.split import plain_merge_parts, plain_softmax_part, plain_softmax_tile

_aten = torch.ops.aten


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> Tensor:  # as gaudicc::attention
    """`hpu::sdpa_recomp_fwd`; grouped heads in five dims, a mask added to the scores, masked rows zero."""
    groups, (queries, keys) = q.shape[1] // k.shape[1], (q.shape[2], k.shape[2])
    if causal and (mask is not None or queries != keys):  # the kernel takes one of the two, and squares only
        mask, causal = _below_diagonal(mask, queries, keys, q), False
    hidden = None
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.dim()) + tuple(mask.shape))
        seen = mask if mask.dtype == torch.bool else mask > float("-inf")
        hidden = ~seen.any(-1, keepdim=True)
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
    if groups > 1:
        q, k, v = q.unflatten(1, (k.shape[1], groups)), k.unsqueeze(2), v.unsqueeze(2)
        if mask is not None:
            mask = mask.unsqueeze(2) if mask.shape[1] == 1 else mask.unflatten(1, (k.shape[1], groups))
    result = torch.ops.hpu.sdpa_recomp_fwd(q, k, v, mask, 0.0, scale, causal, False, "None", None, "left")[0]
    result = result.flatten(1, 2) if groups > 1 else result
    result = result if hidden is None else result.masked_fill(hidden, 0.0)
    laid: Tensor = result.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)
    return laid


def _below_diagonal(mask: Tensor | None, queries: int, keys: int, like: Tensor) -> Tensor:
    rows = torch.arange(queries, device=like.device, dtype=torch.int32).unsqueeze(1)
    seen = torch.arange(keys, device=like.device, dtype=torch.int32).unsqueeze(0) <= rows
    if mask is None:
        return seen
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, float("-inf"))


def fused_rms_norm(x: Tensor, weight: Tensor, eps: float, scale_first: bool) -> Tensor:
    """`hpu::rms_norm`, which multiplies by the weight before it rounds, as `scale_first` asks; else one rounding less."""
    normed: Tensor = torch.ops.hpu.rms_norm(x, weight, eps)[0]
    return normed


def fused_rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """`hpu::rotary_pos_embedding` on `[positions, heads, dim]`, a row of angles each, as the vendor's tests call it."""
    dim, sizes = _heads_dim(x, cos), list(x.shape)
    assert dim is not None, "asked by `fits`"
    sizes[dim] = 1
    rows = _heads_third(x, dim)
    cos, sin = (each if list(each.shape) == sizes else each.expand(sizes) for each in (cos, sin))
    cos, sin = (_heads_third(each, dim).flatten(0, 1) for each in (cos, sin))
    turned = torch.ops.hpu.rotary_pos_embedding(rows.flatten(0, 1), sin, cos, None, 0, int(interleaved))
    return _heads_third(turned.unflatten(0, rows.shape[:2]), dim)


def _heads_third(x: Tensor, dim: int) -> Tensor:
    """`[batch, length, heads, dim]` of either layout, and back; no call where nothing moves, for lazy mode counts each."""
    return x if dim == 2 else x.transpose(1, 2)


def _heads_dim(x: Tensor, angles: Tensor) -> int | None:
    """The dim of `[batch, heads, length, dim]` or `[batch, length, heads, dim]` along which the angles do not change."""
    sizes = (1,) * (x.dim() - angles.dim()) + tuple(angles.shape)
    if x.dim() != 4 or 1 not in sizes[1:3]:
        return None
    return 1 if sizes[2] != 1 or (sizes[1] == 1 and x.shape[1] >= x.shape[2]) else 2


def fused_moe(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, activation: str) -> Tensor:
    """`hpu::mixture_of_experts` for so many experts at once; a call passes over the choices of the others' experts."""
    weights = weights if weights.dtype == x.dtype else weights.to(x.dtype)
    total: Tensor | None = None
    for first in range(0, gate_up.shape[0], _EXPERTS):
        both, last = gate_up[first : first + _EXPERTS].unbind(0), down[first : first + _EXPERTS].unbind(0)
        span = (first, first + len(both) - 1)
        part = torch.ops.hpu.mixture_of_experts(x, experts, weights, list(both), list(last), True, activation, *span)
        total = part if total is None else total + part
    assert total is not None, "a mixture has experts"
    return total


_EXPERTS = 64
"""Of one call; software before 1.21 takes no more. Source: vllm-project/vllm-gaudi, `vllm_gaudi/extension/ops.py`."""


def plain_index(x: Tensor, indices: Sequence[Tensor]) -> Tensor:
    """`hpu::plain_index`: `hpu_backend` leaves `aten::index` outside its clusters."""
    taken: Tensor = torch.ops.hpu.plain_index(x, list(indices))
    return taken


def _addcmul(x: Tensor, left: Tensor, right: Tensor, *, value: float = 1) -> Tensor:
    """`hpu_backend` leaves `aten::addcmul` outside its clusters."""
    return x + value * (left * right)


def _one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """`hpu_backend` decomposes `aten::one_hot`, and later PyTorch's parts assert on the host that each class is in range."""
    numbers = torch.arange(num_classes, device=classes.device, dtype=classes.dtype)
    return (classes.unsqueeze(-1) == numbers).to(torch.int64)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A function that stands for one op in a piece.

    Attributes:
        run: takes the op's arguments.
        uses: ops that it calls, judged in its stead.
    """

    run: Callable[..., Any]
    uses: tuple[str, ...]


_MASKING = ("aten::masked_fill.Scalar", "aten::clone")
FUSED: dict[Any, Kernel] = {
    attention: Kernel(fused_attention, ("hpu::sdpa_recomp_fwd", *_MASKING)),
    rms_norm: Kernel(fused_rms_norm, ("hpu::rms_norm",)),
    rotary: Kernel(fused_rotary, ("hpu::rotary_pos_embedding",)),
    moe: Kernel(fused_moe, ("hpu::mixture_of_experts.fused_weights", "aten::add.Tensor")),
}
"""Semantic ops with a kernel."""

PLAIN: dict[Any, Callable[..., Any]] = {
    attention: plain_attention,
    moe: plain_moe,
    rms_norm: plain_rms_norm,
    rotary: plain_rotary,
    softmax_tile: plain_softmax_tile,
    softmax_part: plain_softmax_part,
    merge_parts: plain_merge_parts,
}
"""Semantic ops in ATen, where there is no kernel or it does not compute the same.

The vendor's softmax kernels have no sink and give NaN in rows that are masked throughout.
"""

COMPILE_KERNELS: dict[Any, Kernel] = {_aten.index.Tensor: Kernel(plain_index, ("hpu::plain_index",))}
COMPILE_PLAIN: dict[Any, Callable[..., Any]] = {_aten.addcmul.default: _addcmul, _aten.one_hot.default: _one_hot}
"""What `hpu_backend` would place in eager mode. Source: `dynamo/compile_backend/shared_layer.py`, `passes.py`."""


def fits(op: Any, args: tuple[Any, ...]) -> bool:
    """Whether a kernel computes what the op means, for these arguments: tensors on any device."""
    if op is rms_norm:
        return bool(args[0].dtype == args[1].dtype)
    if op is rotary:
        x, cos, sin = args[:3]
        return cos.shape == sin.shape and {cos.dtype, sin.dtype} == {x.dtype} and _heads_dim(x, cos) is not None
    if op is moe:
        return bool(args[0].dtype == args[3].dtype == args[4].dtype)
    if op is _aten.index.Tensor:
        return all(isinstance(index, Tensor) and index.dtype != torch.bool for index in args[1])
    return True
