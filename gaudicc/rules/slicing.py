"""Rules for numpy-style slicing: steps and negative bounds.

A slice with a step is reported to fall back or crash on large tensors (see docs/targets.md, reported bad). Every k-th entry is
column 0 of the same data seen as rows of k, which needs a contiguous slice and a view only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gaudicc.rules.rule import Rule

aten = torch.ops.aten


def bounds(size: int, start: int | None, end: int | None) -> tuple[int, int]:
    """Python's slice bounds for a dim of this size: negative ones count from the end, both are clamped."""
    first, last, _ = slice(start, end).indices(size)
    return first, max(first, last)


def strided_slice(x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    """x[..., start:end:step, ...]: view whole rows of `step`, take one column; pad only where no whole rows fit."""
    dim %= x.dim()
    size = x.shape[dim]
    first, last = bounds(size, start, end)
    count = -(-(last - first) // step)
    begin = min(first, max(size - count * step, 0))  # rows may begin earlier, up to a whole step
    begin = begin if first - begin < step else first
    whole = begin + count * step
    if whole > size:  # the last row is short: complete it with entries that are never read
        fill = list(x.shape)
        fill[dim] = whole - size
        x = aten.cat([x, aten.full(fill, 0, dtype=x.dtype, device=x.device)], dim)
    rows = x if (begin, whole) == (0, x.shape[dim]) else aten.slice.Tensor(x, dim, begin, whole)
    shape = [*x.shape[:dim], count, step, *x.shape[dim + 1 :]]
    tensor: Tensor = aten.select.int(aten.reshape(rows, shape), dim + 1, first - begin)
    return tensor


def _has_step(x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> str | None:
    return None if step != 1 else "its step is 1"


RULES = (
    Rule(
        "strided-slice", (aten.slice.Tensor,), strided_slice, check=_has_step,
        cost="copies the sliced range once where the view of rows needs it; pads at most step - 1 entries",
    ),
)  # fmt: skip
