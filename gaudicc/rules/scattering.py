"""Rules for writing into a slice, a diagonal or a strided view: the functional forms of in-place assignment to a view."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gaudicc.rules.rule import Rule
from gaudicc.rules.slicing import bounds

aten = torch.ops.aten


def slice_scatter(
    x: Tensor, src: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    """`x[start:end:step] = src`: what stands before, the new entries with those between them, what stands after."""
    dim %= x.dim()
    size = x.shape[dim]
    first, last = bounds(size, start, end)
    count = -(-(last - first) // step)
    if not count:
        copied: Tensor = aten.clone(x)
        return copied
    stop = min(first + count * step, size)
    middle = src if step == 1 else _interleaved(aten.slice.Tensor(x, dim, first, stop), src, dim, count, step)
    parts = [aten.slice.Tensor(x, dim, 0, first), middle, aten.slice.Tensor(x, dim, stop, size)]
    result: Tensor = aten.cat([part for part in parts if part.shape[dim]], dim)
    return result


def select_scatter(x: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    """`x[index] = src`: a slice of one; PyTorch's own form compares every place and chooses."""
    dim %= x.dim()
    at = index % x.shape[dim]
    return slice_scatter(x, aten.unsqueeze(src, dim), dim, at, at + 1)


def _interleaved(x: Tensor, src: Tensor, dim: int, count: int, step: int) -> Tensor:
    """The tensor with every `step`-th entry from `src`: rows of `step` entries whose first column is `src`."""
    size = x.shape[dim]
    if count * step > size:  # the last row is short: complete it with entries that are cut off again
        fill = list(x.shape)
        fill[dim] = count * step - size
        x = aten.cat([x, aten.full(fill, 0, dtype=x.dtype, device=x.device)], dim)
    rows = aten.reshape(x, [*x.shape[:dim], count, step, *x.shape[dim + 1 :]])
    rows = aten.cat([aten.unsqueeze(src, dim + 1), aten.slice.Tensor(rows, dim + 1, 1, step)], dim + 1)
    result: Tensor = aten.slice.Tensor(aten.reshape(rows, list(x.shape)), dim, 0, size)
    return result


def diagonal_scatter(x: Tensor, src: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The diagonal of two dims replaced: its entries are evenly spaced in the flattened pair of dims."""
    one, two = dim1 % x.dim(), dim2 % x.dim()
    rest = [dim for dim in range(x.dim()) if dim not in (one, two)]
    order = [*rest, one, two]
    height, width = x.shape[one], x.shape[two]
    flat = aten.reshape(aten.permute(x, order), [math.prod(x.shape[dim] for dim in rest), height * width])
    begin = offset if offset >= 0 else -offset * width
    count = src.shape[-1]
    places = aten.arange.start_step(begin, begin + count * (width + 1), width + 1, dtype=torch.int64, device=x.device)
    written = aten.index_copy(flat, 1, places, aten.reshape(src, [flat.shape[0], count]))
    shaped = aten.reshape(written, [x.shape[dim] for dim in order])
    result: Tensor = aten.permute(shaped, [order.index(dim) for dim in range(x.dim())])
    return result


def _has_entries(x: Tensor, src: Tensor, *args: int) -> str | None:
    return None if src.numel() else "the diagonal is empty"


def as_strided_scatter(
    x: Tensor, src: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor:
    """`x.as_strided(size, stride) = src`, by position in memory: sums of multiples of the strides."""
    places = aten.full([], storage_offset or 0, dtype=torch.int64, device=x.device)
    for length, step in zip(size, stride, strict=True):
        line = aten.mul.Tensor(aten.arange.start(0, length, dtype=torch.int64, device=x.device), step)
        places = aten.add.Tensor(aten.unsqueeze(places, -1), line)
    flat = aten.reshape(x, [x.numel()])
    written = aten.index_copy(flat, 0, aten.reshape(places, [src.numel()]), aten.reshape(src, [src.numel()]))
    result: Tensor = aten.reshape(written, list(x.shape))
    return result


def _within(
    x: Tensor, src: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> str | None:
    if not x.is_contiguous() or x.storage_offset():
        return "the memory of the tensor is not its values in order"
    if not src.numel():
        return "nothing is written"
    if any(length > 1 and step < 0 for length, step in zip(size, stride, strict=True)):
        return "a stride is negative"
    reach = 0
    for step, length in sorted((step, length) for step, length in zip(stride, size, strict=True) if length > 1):
        if step <= reach:
            return "entries of the view share memory: which value stays is not defined"
        reach += step * (length - 1)
    return None if (storage_offset or 0) + reach < x.numel() else "the view reaches beyond the tensor"


RULES = (
    Rule(
        "slice-scatter", (aten.slice_scatter.default,), slice_scatter,
        cost="one concatenation of the size of the tensor; with a step two more of the sliced range",
    ),
    Rule(
        "select-scatter", (aten.select_scatter.default,), select_scatter, cost="one concatenation of the size of the tensor"
    ),
    Rule(
        "diagonal-scatter", (aten.diagonal_scatter.default,), diagonal_scatter, check=_has_entries,
        cost="one copy of the tensor; two more where the two dims do not come last",
    ),
    Rule(
        "as-strided-scatter", (aten.as_strided_scatter.default,), as_strided_scatter, check=_within,
        cost="index arithmetic of the size of the view, one copy of the tensor",
    ),
)  # fmt: skip
