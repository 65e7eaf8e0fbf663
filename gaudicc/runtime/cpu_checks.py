"""What a recording checks while it is replayed: its inputs, indices into state, strides of its outputs."""

from __future__ import annotations

from typing import Any

import torch

from gaudicc.errors import ShapeError, StateError, Where


def check_input(given: torch.Tensor, expected: tuple[torch.Size, torch.dtype, tuple[int, ...]]) -> torch.Tensor:
    """An input as it was recorded; one that only has other strides is copied.

    Raises:
        ShapeError: another shape, dtype or device, or no tensor.
    """
    shape, dtype, stride = expected
    if not isinstance(given, torch.Tensor) or given.shape != shape or given.dtype is not dtype or not given.is_cpu:
        raise ShapeError(
            f"an input is {_describe(given)}, the recording takes {_names(dtype)}{list(shape)} on cpu",
            where=Where(stage="replay"),
            hint="record the segment for this shape, or pad the input to the recorded one",
        )
    if given.stride() == stride:
        return given
    return exactly(given, tuple(shape), stride)


def check_index(index: torch.Tensor, low: int, size: int) -> None:
    """Refuses an index outside a state buffer before anything is written.

    Raises:
        StateError: an index is below `low`, or not below `size`.
    """
    if index.numel() == 0:
        return
    smallest, largest = (index, index) if index.numel() == 1 else index.aminmax()
    if int(smallest) < low or int(largest) >= size:
        raise StateError(
            f"index {int(largest) if int(largest) >= size else int(smallest)} is outside a state buffer of {size}",
            where=Where(stage="replay"),
            hint="nothing was written; the position must lie inside the buffer",
        )


def exactly(value: torch.Tensor, size: tuple[int, ...], stride: tuple[int, ...], copy: bool = False) -> torch.Tensor:
    """`value` with these strides; a copy if they differ or if one is asked for."""
    if not copy and value.stride() == stride:
        return value
    extent = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if value.numel() else 0
    result = torch.empty(extent, dtype=value.dtype).as_strided(size, stride)
    if any(step == 0 and n > 1 for n, step in zip(size, stride, strict=True)):
        first = tuple(slice(0, 1) if step == 0 else slice(None) for step in stride)
        result[first].copy_(value[first])
        return result
    return result.copy_(value)


def _describe(given: Any) -> str:
    if not isinstance(given, torch.Tensor):
        return f"of type {type(given).__name__}"
    return f"{_names(given.dtype)}{list(given.shape)} on {given.device.type}"


def _names(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
