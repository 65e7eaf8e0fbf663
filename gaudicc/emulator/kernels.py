"""Runs one call on the CPU in the device's stead: its random numbers, its freer dtypes, and ops that the CPU lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gaudicc.emulator import affine
from gaudicc.emulator.generator import hpu_generator, using_hpu_generator
from gaudicc.targets import op_name
from gaudicc.targets.calls import OpCall, map_values, on_meta, tensors_in

_NARROW_FLOATS = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)
_GAPS = (
    "not implemented for",
    "Expected a long tensor",
    "expected scalar type Long",
    "must be long",
    "Expected tensor for",
)
_BY_ROW = frozenset(
    {"aten::index_select", "aten::index_copy", "aten::index_copy_", "aten::index_reduce", "aten::index_reduce_"}
)
"""Ops with arguments (values, dim, row numbers)."""


def execute(call: OpCall) -> object:
    """Run a call on CPU tensors.

    Args:
        call: with plain CPU tensors, narrowed as the device would.

    Returns:
        What the op gives; random ops draw from the device's generator.

    Raises:
        RuntimeError: it gives a sparse tensor, for which the device has no memory.
    """
    result = _execute(call)
    for tensor in tensors_in(result):
        if tensor.layout is not torch.strided:
            raise RuntimeError(f"{op_name(call.op)}: the device holds no sparse tensor ({tensor.layout})")
    return result


def _execute(call: OpCall) -> object:
    own = _KERNELS.get(op_name(call.op))
    if own is not None:
        return own(*call.args, **call.kwargs)
    if torch.Tag.nondeterministic_seeded in call.op.tags:
        return _random(call)
    try:
        return call.run()
    except (RuntimeError, IndexError) as error:
        if not any(gap in str(error) for gap in _GAPS):
            if op_name(call.op) in _BY_ROW and "out of" in str(error):
                return _from_the_end(call).run()
            if "refer to a single memory location" in str(error):  # the device reads all before it writes
                return call.map(
                    lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, keep_written=True
                ).run()
            raise
        return _wider(call)


def _from_the_end(call: OpCall) -> OpCall:
    """Row numbers below 0 count from the end.

    vllm-project/vllm-gaudi fills lists of blocks up with -1 in its defragmentation, HabanaAI/vllm-hpu-extension takes the
    largest score of each request by them (`ops.py`, `grouped_max`).
    """
    arguments: tuple[Any, ...] = call.args
    values, dim, index, *rest = arguments
    rows = torch.where(index < 0, index + values.shape[dim], index)
    return OpCall(call.op, (values, dim, rows, *rest), call.kwargs)


def _random(call: OpCall) -> object:
    named = call.named()
    takes = any(argument.name == "generator" for argument in call.op._schema.arguments)
    if not takes:
        with using_hpu_generator():
            return call.run()
    if named.get("generator") is None:
        call = OpCall(call.op, call.args, {**call.kwargs, "generator": hpu_generator()})
    try:
        return call.run()
    except RuntimeError as error:
        if not any(gap in str(error) for gap in _GAPS):
            raise
        return _wider(call)


_INDICES = {torch.int32: torch.int64, **dict.fromkeys(_NARROW_FLOATS, torch.float32)}
_WHOLE = dict.fromkeys((torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64), torch.float32)


def _wider(call: OpCall) -> object:
    """Run in float32 and with int64 indices what the CPU's kernels refuse, whole numbers in float32 too if they must be."""
    try:
        return _widened(call, _INDICES)
    except (RuntimeError, IndexError) as error:
        if "not implemented for" not in str(error):
            raise
        return _widened(call, _INDICES | _WHOLE)


def _widened(call: OpCall, wider: Mapping[torch.dtype, torch.dtype]) -> object:
    """Run with other dtypes, and give back the dtypes asked for."""
    written = call.written()
    copies: dict[int, Tensor] = {}

    def widen(leaf: object) -> object:
        if isinstance(leaf, Tensor):
            wide = wider.get(leaf.dtype)
            return leaf if wide is None else copies.setdefault(id(leaf), leaf.to(wide))
        return torch.float32 if leaf in _NARROW_FLOATS else leaf

    result = call.map(widen).run()
    for tensor in written:
        if id(tensor) in copies:
            tensor.copy_(copies[id(tensor)])
    originals = {id(copies[id(tensor)]): tensor for tensor in written if id(tensor) in copies}
    declared = iter(_declared(call, result))

    def restore(leaf: object) -> object:
        if not isinstance(leaf, Tensor):
            return leaf
        dtype = next(declared)
        return originals[id(leaf)] if id(leaf) in originals else leaf.to(dtype)

    return map_values(result, restore)


def _declared(call: OpCall, result: object) -> list[torch.dtype]:
    """The dtypes that a call's results would have; where even the meta kernel refuses, float32 stands for the operands'."""
    try:
        return [tensor.dtype for tensor in tensors_in(on_meta(call).run())]
    except (RuntimeError, IndexError):
        low = next((tensor.dtype for tensor in call.tensors() if tensor.dtype in _NARROW_FLOATS), torch.float32)
        return [low if tensor.dtype is torch.float32 else tensor.dtype for tensor in tensors_in(result)]


def _convolution(*args: Any) -> Tensor:
    return torch.ops.aten.convolution.default(*args)  # type: ignore[no-any-return]


def _convolution_backward(grad: Tensor, values: Tensor, weight: Tensor, *rest: Any, **named: Any) -> object:
    return torch.ops.aten.convolution_backward.default(grad, values, weight, [grad.shape[1]], *rest, **named)


def _masked_scale(values: Tensor, mask: Tensor, scale: float) -> Tensor:
    return values * mask.to(values.dtype) * scale


def _fused_dropout(values: Tensor, keep: float, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    mask = torch.empty_like(values, dtype=torch.float32).bernoulli_(keep, generator=generator or hpu_generator())
    return values * mask.to(values.dtype) / keep, mask.to(torch.uint8)


def _add_relu(left: Tensor, right: Tensor | float, alpha: float = 1) -> Tensor:
    """Product, sum and relu, each rounded to its dtype."""
    return torch.relu(left + right * alpha)


def _scaled_mm(
    left: Tensor,
    right: Tensor,
    scale_left: Tensor,
    scale_right: Tensor,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> Tensor:
    """The product times all three scales, plus the bias; fp8 saturates."""
    from gaudicc.emulator.ops.fp8 import FP8, as_fp8

    dtype = out_dtype or left.dtype
    product = (left.to(torch.float32) @ right.to(torch.float32)) * scale_left * scale_right
    product = product if scale_result is None else product * scale_result
    product = product if bias is None else product + bias
    return as_fp8(product, dtype) if dtype in FP8 else product.to(dtype)


def _uniform(
    tensor: Tensor, low: float = 0.0, high: float = 1.0, *, generator: torch.Generator | None = None
) -> Tensor:
    """Integer tensors are filled too: uniform numbers, rounded down."""
    generator = generator or hpu_generator()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2):
        return tensor.uniform_(low, high, generator=generator)
    wide = torch.empty(tensor.shape, dtype=torch.float32).uniform_(low, high, generator=generator)
    return tensor.copy_(wide if tensor.is_floating_point() else wide.floor())


def _unique2(
    values: Tensor, sort: bool = True, return_inverse: bool = False, return_counts: bool = False
) -> tuple[Tensor | None, ...]:
    """Outputs that were not asked for are None, not empty tensors."""
    found, inverse, counts = torch.ops.aten._unique2.default(values, sort, return_inverse, return_counts)
    return found, inverse if return_inverse else None, counts if return_counts else None


def _resize_output(tensor: Tensor, size: Sequence[int], device: torch.device) -> Tensor:
    return tensor.resize_(tuple(size))


def _unique(values: Tensor, sort: bool = True, return_inverse: bool = False) -> tuple[Tensor | None, ...]:
    """See `_unique2`."""
    found, inverse = torch.ops.aten._unique.default(values, sort, return_inverse)
    return found, inverse if return_inverse else None


def _layer_norm(
    x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and factor are float32 whatever the input is (HabanaAI/gaudi-pytorch-bridge, `LayerNormHabanaMeta`)."""
    scale, shift = (None if part is None else part.float() for part in (weight, bias))
    wide, mean, factor = torch.native_layer_norm(x.float(), shape, scale, shift, eps)
    return wide.to(x.dtype), mean, factor


_KERNELS: dict[str, Callable[..., object]] = {
    "aten::native_layer_norm": _layer_norm,
    "aten::convolution_overrideable": _convolution,
    "aten::convolution_backward_overrideable": _convolution_backward,
    "aten::_resize_output_": _resize_output,
    "aten::_unique": _unique,
    "aten::_masked_scale": _masked_scale,
    "aten::_fused_dropout": _fused_dropout,
    "aten::_add_relu.Scalar": _add_relu,
    "aten::_add_relu.Tensor": _add_relu,
    "aten::_scaled_mm": _scaled_mm,
    "aten::uniform_": _uniform,
    "aten::_unique2": _unique2,
    **affine.KERNELS,
}
