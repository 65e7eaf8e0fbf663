"""Which Python callable runs an ATen op on the CPU with the least dispatch, and what is known about it.

Measured on CPU: `torch.add(a, b, out=c)` takes 1.9 us on a tensor of 64 elements, `torch.ops.aten.add.Tensor(a, b)` 4.0.
All private torch names that the CPU device uses are in this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._C import _AutoDispatchBelowAutograd, _nn

_aten = torch.ops.aten

below_autograd: Callable[[], Any] = _AutoDispatchBelowAutograd
"""No autograd dispatch, as under inference_mode, but tensors made inside are ordinary ones and versions are kept."""

packed_linear = torch.ops.mkldnn._linear_pointwise.default


def pack_linear(weight: torch.Tensor) -> torch.Tensor:
    """The layout that oneDNN prefers for a `[out, in]` weight; it is the same one for every row count above 1 (measured)."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
    return packed


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN packs linears of this dtype on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


@dataclass(frozen=True, slots=True)
class Callee:
    """How an op is called.

    Attributes:
        function: takes the op's own arguments.
        out: it also takes `out=` and then allocates nothing.
    """

    function: Callable[..., Any]
    out: bool = True


_CALLEES: dict[Any, Callee] = {
    _aten.add.Tensor: Callee(torch.add),
    _aten.sub.Tensor: Callee(torch.sub),
    _aten.mul.Tensor: Callee(torch.mul),
    _aten.div.Tensor: Callee(torch.div),
    _aten.neg.default: Callee(torch.neg),
    _aten.exp.default: Callee(torch.exp),
    _aten.log.default: Callee(torch.log),
    _aten.rsqrt.default: Callee(torch.rsqrt),
    _aten.sqrt.default: Callee(torch.sqrt),
    _aten.reciprocal.default: Callee(torch.reciprocal),
    _aten.sin.default: Callee(torch.sin),
    _aten.cos.default: Callee(torch.cos),
    _aten.tanh.default: Callee(torch.tanh),
    _aten.sigmoid.default: Callee(torch.sigmoid),
    _aten.erf.default: Callee(torch.erf),
    _aten.abs.default: Callee(torch.abs),
    _aten.hypot.default: Callee(torch.hypot),
    _aten.pow.Tensor_Scalar: Callee(torch.pow),
    _aten.silu.default: Callee(_nn.silu),
    _aten.gelu.default: Callee(_nn.gelu),
    _aten.relu.default: Callee(torch.relu, out=False),
    _aten.maximum.default: Callee(torch.maximum),
    _aten.minimum.default: Callee(torch.minimum),
    _aten.clamp.default: Callee(torch.clamp),
    _aten.where.self: Callee(torch.where),
    _aten.eq.Tensor: Callee(torch.eq),
    _aten.eq.Scalar: Callee(torch.eq),
    _aten.ne.Tensor: Callee(torch.ne),
    _aten.ne.Scalar: Callee(torch.ne),
    _aten.lt.Tensor: Callee(torch.lt),
    _aten.lt.Scalar: Callee(torch.lt),
    _aten.le.Tensor: Callee(torch.le),
    _aten.le.Scalar: Callee(torch.le),
    _aten.gt.Tensor: Callee(torch.gt),
    _aten.gt.Scalar: Callee(torch.gt),
    _aten.ge.Tensor: Callee(torch.ge),
    _aten.ge.Scalar: Callee(torch.ge),
    _aten.logical_not.default: Callee(torch.logical_not),
    _aten.bitwise_and.Tensor: Callee(torch.bitwise_and),
    _aten.bitwise_or.Tensor: Callee(torch.bitwise_or),
    _aten.bitwise_not.default: Callee(torch.bitwise_not),
    _aten.mm.default: Callee(torch.mm),
    _aten.mv.default: Callee(torch.mv),
    _aten.bmm.default: Callee(torch.bmm),
    _aten.addmm.default: Callee(torch.addmm),
    _aten.addmv.default: Callee(torch.addmv),
    _aten.baddbmm.default: Callee(torch.baddbmm),
    _aten.cat.default: Callee(torch.cat),
    _aten.mean.dim: Callee(torch.mean),
    _aten.sum.dim_IntList: Callee(torch.sum),
    _aten.amax.default: Callee(torch.amax),
    _aten.amin.default: Callee(torch.amin),
    _aten.argmax.default: Callee(torch.argmax),
    _aten.cumsum.default: Callee(torch.cumsum),
    _aten.linalg_vector_norm.default: Callee(torch.linalg.vector_norm),
    _aten._softmax.default: Callee(torch._softmax, out=False),
    _aten.reshape.default: Callee(torch.reshape, out=False),
    _aten.gather.default: Callee(torch.gather),
    _aten.index_select.default: Callee(torch.index_select),
    _aten.embedding.default: Callee(torch.embedding, out=False),
    _aten.native_layer_norm.default: Callee(torch.native_layer_norm, out=False),
    _aten.layer_norm.default: Callee(torch.layer_norm, out=False),
    _aten.linear.default: Callee(_nn.linear, out=False),
    _aten.scaled_dot_product_attention.default: Callee(_nn.scaled_dot_product_attention, out=False),
    _aten._scaled_dot_product_flash_attention_for_cpu.default: Callee(
        torch._scaled_dot_product_flash_attention_for_cpu,
        out=False,
    ),
}

_MAYBE_VIEWS = frozenset(
    {"reshape", "contiguous", "to", "flatten", "_reshape_alias", "conj", "resolve_conj", "resolve_neg"}
)

# Schemas say nothing of these: the result is new to autograd, not in memory. Found by running PyTorch's op database.
_UNMARKED_VIEWS = frozenset({"_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk"})
_UNMARKED_MAYBE_VIEWS = frozenset(
    {"type_as", "conj_physical", "dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"}
)

WRITERS: dict[Any, Callable[..., Any]] = {
    _aten.index_copy.default: torch.Tensor.index_copy_,
    _aten.index_put.default: _aten.index_put_.default,
    _aten.index_add.default: torch.Tensor.index_add_,
    _aten.index_fill.int_Scalar: torch.Tensor.index_fill_,
    _aten.masked_fill.Scalar: torch.Tensor.masked_fill_,
    _aten.masked_scatter.default: torch.Tensor.masked_scatter_,
    _aten.scatter.src: torch.Tensor.scatter_,
    _aten.scatter.value: torch.Tensor.scatter_,
    _aten.scatter_add.default: torch.Tensor.scatter_add_,
    _aten.copy.default: torch.Tensor.copy_,
    _aten.fill.Scalar: torch.Tensor.fill_,
}
"""Functional op -> the same op writing its first argument in place."""


def writer(target: Any) -> Callable[..., Any] | None:
    """What writes the first argument of a functional op in place, a native kernel's own `write` among them."""
    return WRITERS.get(target) or getattr(target, "write", None)


def callee(target: Any) -> Callee:
    """The fastest way to call `target`; falls back to the overload itself."""
    known = _CALLEES.get(target)
    if known is None:
        if getattr(target, "takes_out", False):
            return Callee(target)
        return Callee(target._op if isinstance(target, torch._ops.OpOverload) else target, out=False)
    return known


def is_view(target: Any) -> bool:
    """Whether the op's result always shares the storage of its first argument."""
    name = _name(target)
    return name in _UNMARKED_VIEWS or (_aliases(target) and name not in _MAYBE_VIEWS)


def is_maybe_view(target: Any) -> bool:
    """Whether the op's result may share the storage of its first argument, depending on strides and dtype."""
    name = _name(target)
    return name in _UNMARKED_MAYBE_VIEWS or (_aliases(target) and name in _MAYBE_VIEWS)


def _name(target: Any) -> str:
    return target._schema.name.removeprefix("aten::") if isinstance(target, torch._ops.OpOverload) else ""


def _aliases(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return any(r.alias_info is not None and not r.alias_info.is_write for r in target._schema.returns)
