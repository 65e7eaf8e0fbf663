"""Autocast on `hpu`: bfloat16 unless told otherwise, with Gaudi's own lists of ops.

Unlike CUDA, `softmax`, `log_softmax`, `layer_norm`, `mean` and `mul` run in the lower precision. Source: HabanaAI/
gaudi-pytorch-bridge 1.19.0, `hpu_ops/autocast_helpers.h`; the two variables name files with other lists, one op a line.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from gaudicc.emulator.tensor import DEVICE
from gaudicc.targets.calls import OpCall, map_values, tensors_in

LOWER = frozenset(
    (
        "addmm", "addbmm", "batch_norm", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
        "conv_transpose2d", "conv_transpose3d", "dot", "dropout", "feature_dropout", "group_norm", "instance_norm",
        "layer_norm", "leaky_relu", "linear", "matmul", "mean", "mm", "mul", "mv", "softmax", "log_softmax",
        "scaled_dot_product_attention",
    )
)  # fmt: skip
FP32 = frozenset(
    (
        "acos", "addcdiv", "asin", "atan2", "bilinear", "binary_cross_entropy", "binary_cross_entropy_with_logits", "cdist",
        "cosh", "cosine_embedding_loss", "cosine_similarity", "cross_entropy_loss", "dist", "div", "divide", "embedding",
        "embedding_bag", "erfinv", "exp", "expm1", "hinge_embedding_loss", "huber_loss", "kl_div", "l1_loss", "log", "log10",
        "log1p", "log2", "logsumexp", "margin_ranking_loss", "mse_loss", "multi_margin_loss", "multilabel_margin_loss",
        "nll_loss", "pdist", "poisson_nll_loss", "pow", "reciprocal", "renorm", "rsqrt", "sinh", "smooth_l1_loss",
        "soft_margin_loss", "softplus", "tan", "topk", "triplet_margin_loss", "true_divide",
    )
)  # fmt: skip
PROMOTE = frozenset(["add", "addcmul", "cat", "sub", "stack"])
FIRST_ONLY = frozenset(["layer_norm", "group_norm", "instance_norm", "batch_norm"])
_KEY = torch._C._dispatch_key_parse("AutocastPrivateUse1")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_LIBRARIES: list[Library] = []


def register() -> None:
    """Give the ops of the lists their autocast kernels, and set the default dtype."""
    torch.set_autocast_dtype(DEVICE, torch.bfloat16)
    library = Library("aten", "IMPL")
    lower = _names("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", LOWER)
    fp32 = _names("PT_HPU_AUTOCAST_FP32_OPS_LIST", FP32) - lower
    for name in sorted(lower | fp32 | PROMOTE):
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads():
            op = getattr(packet, overload)
            if "out" in overload or any(argument.is_out for argument in op._schema.arguments):
                continue
            policy = _lower_first if name in FIRST_ONLY and name in lower else _lower if name in lower else None
            policy = policy or (_fp32 if name in fp32 else _widest)
            library.impl(op._schema.name.split("::")[1] + _suffix(overload), _kernel(op, policy), "AutocastPrivateUse1")
    _LIBRARIES.append(library)


Policy = Callable[[OpCall], OpCall]


def _kernel(op: Any, policy: Policy) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_KEY)):
            call = policy(OpCall(op, args, kwargs))
            return op(*call.args, **call.kwargs)

    return run


def _to(dtype: torch.dtype) -> Callable[[object], object]:
    def cast(leaf: object) -> object:
        if isinstance(leaf, Tensor) and leaf.device.type == DEVICE and leaf.dtype in _FLOATS and leaf.dtype != dtype:
            return leaf.to(dtype)
        return leaf

    return cast


def _lower(call: OpCall) -> OpCall:
    return call.map(_to(torch.get_autocast_dtype(DEVICE)))


def _lower_first(call: OpCall) -> OpCall:
    first = map_values(call.args[0], _to(torch.get_autocast_dtype(DEVICE)))
    return OpCall(call.op, (first, *call.args[1:]), call.kwargs)


def _fp32(call: OpCall) -> OpCall:
    return call.map(_to(torch.float32))


def _widest(call: OpCall) -> OpCall:
    dtypes = {tensor.dtype for tensor in tensors_in((call.args, call.kwargs)) if tensor.dtype in _FLOATS}
    if len(dtypes) < 2:
        return call
    return call.map(_to(torch.float32))


def _suffix(overload: str) -> str:
    return "" if overload == "default" else f".{overload}"


def _names(variable: str, default: frozenset[str]) -> frozenset[str]:
    file = os.environ.get(variable)
    if not file:
        return default
    listed = frozenset(Path(file).read_text(encoding="utf-8").split())
    return frozenset(name for name in listed if hasattr(torch.ops.aten, name))
