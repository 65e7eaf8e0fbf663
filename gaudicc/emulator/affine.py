"""Affine quantisation as the device has it, `quantized_decomposed::`.

Results in fp8 are not rounded to whole numbers first, one zero point may serve all channels, and operands of any float dtype
are taken. Per channel it computes in the input's dtype.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu_ops/backend/quant_dequant_gen.cpp`; the formulas are those of its
`tests/pytest_working/any_mode/test_hpu_quant_dequant.py`; one zero point for all channels: intel/neural-compressor's tests.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Number = Tensor | float | int


def _quantized(values: Tensor, scale: Number, zero: Number, low: Number, high: Number, dtype: torch.dtype) -> Tensor:
    scaled = values / scale
    whole = scaled if dtype.is_floating_point else scaled.round()
    return (whole + zero).clamp(torch.as_tensor(low), torch.as_tensor(high)).to(dtype)


def _restored(values: Tensor, scale: Number, zero: Number, dtype: torch.dtype | None) -> Tensor:
    return ((values.to(torch.float32) - zero) * scale).to(dtype or torch.float32)


def _beside(values: Tensor, of_channel: Tensor, axis: int) -> Tensor:
    """A vector over the channels, or one value for all, with the dims of the values."""
    return of_channel.to(values.dtype).reshape([-1 if dim == axis % values.dim() else 1 for dim in range(values.dim())])


def quantize_per_tensor(
    input: Tensor, scale: Number, zero_point: Number, quant_min: Number, quant_max: Number, dtype: torch.dtype
) -> Tensor:
    """Input / scale + zero point, between two ends."""
    return _quantized(input.to(torch.float32), scale, zero_point, quant_min, quant_max, dtype)


def dequantize_per_tensor(
    input: Tensor,
    scale: Number,
    zero_point: Number,
    quant_min: Number,
    quant_max: Number,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """(input - zero point) * scale; float32 unless told otherwise."""
    return _restored(input, scale, zero_point, out_dtype)


def quantize_per_channel(
    input: Tensor, scales: Tensor, zero_points: Tensor, axis: int, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Tensor:
    """The same with a scale for each channel."""
    scale, zero = (_beside(input, each, axis) for each in (scales, zero_points))
    return _quantized(input * scale.reciprocal(), 1, zero, quant_min, quant_max, dtype)


def dequantize_per_channel(
    input: Tensor,
    scales: Tensor,
    zero_points: Tensor | None,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The same with a scale for each channel."""
    wide = input.to(torch.float32)
    zero: Number = 0 if zero_points is None else _beside(wide, zero_points, axis)
    return _restored(wide, _beside(wide, scales, axis), zero, out_dtype)


_OVERLOADS = ("", ".tensor", ".tensor2")
KERNELS: dict[str, Callable[..., Tensor]] = {
    "quantized_decomposed::quantize_per_channel": quantize_per_channel,
    "quantized_decomposed::dequantize_per_channel": dequantize_per_channel,
    **{f"quantized_decomposed::quantize_per_tensor{end}": quantize_per_tensor for end in _OVERLOADS},
    **{f"quantized_decomposed::dequantize_per_tensor{end}": dequantize_per_tensor for end in _OVERLOADS},
}
