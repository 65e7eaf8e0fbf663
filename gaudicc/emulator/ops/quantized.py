"""Four-bit weights: eight of them in an int32, the first in the lowest bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gaudicc.emulator.ops.fp8 import FP8


def _unpack(packed: Tensor, signed: bool) -> Tensor:
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
    values = (packed.to(torch.int32).unsqueeze(-1) >> shifts) & 15
    values = torch.where(values > 7, values - 16, values) if signed else values
    return values.flatten(-2)


def _converted(input: Tensor, scale: Tensor, zero_point: Tensor | None, out_dtype: torch.dtype, signed: bool) -> Tensor:
    """A packed zero point is taken off as an integer, any other in the output's dtype, in which the scale is applied too."""
    wide = torch.float32 if out_dtype in FP8 else out_dtype
    values = _unpack(input, signed)
    if zero_point is None:
        shifted = values.to(wide)
    elif zero_point.dtype is torch.int32:
        shifted = (values - _for_rows(_unpack(zero_point, signed), values)).to(wide)
    else:
        shifted = values.to(wide) - _for_rows(zero_point, values).to(wide)
    return (shifted * _for_rows(scale, values).to(wide)).to(out_dtype)


def _for_rows(factors: Tensor, values: Tensor) -> Tensor:
    """Factors with fewer rows than the values hold for groups of as many rows each."""
    if factors.dim() < 2 or factors.shape[-2] in (1, values.shape[-2]):
        return factors
    return factors.repeat_interleave(values.shape[-2] // factors.shape[-2], -2)


def convert_from_int4(input: Tensor, scale: Tensor, zero_point: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """(values - zero point) * scale, eight values for each int32 of the last dim."""
    return _converted(input, scale, zero_point, out_dtype, True)


def convert_from_uint4(input: Tensor, scale: Tensor, zero_point: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """The same without a sign."""
    return _converted(input, scale, zero_point, out_dtype, False)


_SCHEMA = "(Tensor input, Tensor scale, Tensor? zero_point, ScalarType out_dtype) -> Tensor"

OPS: dict[str, Callable[..., Any]] = {
    f"convert_from_int4{_SCHEMA}": convert_from_int4,
    f"convert_from_uint4{_SCHEMA}": convert_from_uint4,
}
