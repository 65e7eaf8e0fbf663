"""Four-bit weights: eight of them in an int32, the first in the lowest bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _unpack(packed: Tensor, signed: bool) -> Tensor:
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
    values = (packed.to(torch.int32).unsqueeze(-1) >> shifts) & 15
    values = torch.where(values > 7, values - 16, values) if signed else values
    return values.flatten(-2)


def _converted(input: Tensor, scale: Tensor, zero_point: Tensor | None, out_dtype: torch.dtype, signed: bool) -> Tensor:
    values = _unpack(input, signed).to(torch.float32)
    if zero_point is not None:
        packed = zero_point.dtype is torch.int32 and zero_point.shape == input.shape
        values = values - (_unpack(zero_point, signed) if packed else zero_point).to(torch.float32)
    return (values * scale.to(torch.float32)).to(out_dtype)


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
