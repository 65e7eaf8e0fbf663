"""Static forms of ops whose output has as many rows as data says: rows at the front, in order, and their number.

On Gaudi `nonzero_static` runs on the host and integers sort with gaps, so rows are moved by a running count and one
scatter whose dump row takes what is not kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

aten = torch.ops.aten


def places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where the kept positions of a flat mask stand, in order.

    Args:
        mask: bool `[size]`.

    Returns:
        int64 `[size]`: the kept positions, then zeros; int64 `[]`: how many there are.
    """
    size = mask.shape[0]
    count = aten.cumsum.default(aten._to_copy.default(mask, dtype=torch.int64), 0)
    number = (
        aten.full.default([], 0, dtype=torch.int64)
        if isinstance(size, int) and not size
        else aten.select.int(count, 0, -1)
    )
    dump = aten.full.default([size], size, dtype=torch.int64)
    slot = aten.where.self(mask, aten.sub.Tensor(count, 1), dump)
    kept = aten.full.default([size + 1], 0, dtype=torch.int64)
    moved = aten.scatter.src(kept, 0, slot, aten.arange.default(size, dtype=torch.int64))
    return aten.slice.Tensor(moved, 0, 0, size), number


def nonzero(x: Tensor) -> tuple[Tensor, Tensor]:
    """`nonzero(x)` as `[numel, rank]` rows and their number; rows behind it are zeros."""
    flat = aten.reshape.default(x, [-1])
    mask = flat if flat.dtype is torch.bool else aten.ne.Scalar(flat, 0)
    position, number = places(mask)
    columns, rest = [], position
    for size in reversed(x.shape):
        size = size if isinstance(size, torch.SymInt) else max(size, 1)  # of a dynamic size of 0 nothing is kept
        columns.append(aten.remainder.Scalar(rest, size))
        rest = aten.div.Tensor_mode(rest, size, rounding_mode="floor")
    found = aten.stack.default(columns[::-1], 1) if columns else aten.slice.Tensor(aten.unsqueeze(position, 1), 1, 0, 0)
    return found, number


def selected(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`x[mask]` for a mask over the first dims of `x`: the rows at the front, and their number."""
    rank = mask.dim()
    rows = aten.reshape.default(x, [mask.numel(), *x.shape[rank:]])
    position, number = places(aten.reshape.default(mask, [-1]))
    return aten.index_select.default(rows, 0, position), number


def written(x: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """`x[mask] = rows`, for rows at the front of a tensor with at least as many."""
    rank = mask.dim()
    flat = aten.reshape.default(mask, [-1])
    order = aten.sub.Tensor(aten.cumsum.default(aten._to_copy.default(flat, dtype=torch.int64), 0), 1)
    last = rows.shape[0] - 1 if isinstance(rows.shape[0], torch.SymInt) else max(rows.shape[0] - 1, 0)
    picked = aten.index_select.default(rows, 0, aten.clamp.default(order, 0, last))
    new = aten.reshape.default(picked, list(x.shape))
    wide = aten.reshape.default(mask, [*mask.shape, *[1] * (x.dim() - rank)])
    result: Tensor = aten.where.self(aten.expand.default(wide, list(x.shape)), new, x)
    return result


def repeated(repeats: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """`repeat_interleave(repeats)`, where the repeats add up to at most `size`: indices, and how many."""
    ends = aten.cumsum.default(repeats, 0)
    position = aten.arange.default(size, dtype=torch.int64)
    before = aten.le.Tensor(aten.unsqueeze.default(ends, 0), aten.unsqueeze.default(position, 1))
    index = aten.sum.dim_IntList(aten._to_copy.default(before, dtype=torch.int64), [1])
    return aten.clamp.default(index, 0, repeats.shape[0] - 1), aten.select.int(ends, 0, repeats.shape[0] - 1)


def unique(x: Tensor, length: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`unique(x)` of all values.

    Args:
        x: any shape; with a length, `[size]`, and what lies behind sorts last.
        length: int64 `[]`: how many elements are valid, from the front.

    Returns:
        The sorted values, for every element which of them it is, how often each is there, and how many there are.
    """
    ordered, order = aten.sort.stable(aten.reshape.default(x, [-1]), stable=True, dim=-1, descending=False)
    values, group, counts, number = runs(ordered, length)
    inverse = aten.scatter.src(aten.full.default([ordered.shape[0]], 0, dtype=torch.int64), 0, order, group)
    return values, aten.reshape.default(inverse, list(x.shape)), counts, number


def runs(x: Tensor, length: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`unique_consecutive(x)`: as `unique` without sorting."""
    flat = aten.reshape.default(x, [-1])
    size = flat.shape[0]
    changes = aten.ne.Tensor(aten.slice.Tensor(flat, 0, 1, size), aten.slice.Tensor(flat, 0, 0, max(size - 1, 0)))
    starts = aten.cat.default([aten.full.default([min(size, 1)], True, dtype=torch.bool), changes], 0)
    one = aten.full.default([size], 1, dtype=torch.int64)
    if length is not None:
        valid = aten.lt.Tensor(aten.arange.default(size), length)
        starts, one = aten.logical_and.default(starts, valid), aten._to_copy.default(valid, dtype=torch.int64)
    position, number = places(starts)
    group = aten.sub.Tensor(aten.cumsum.default(aten._to_copy.default(starts, dtype=torch.int64), 0), 1)
    group = aten.clamp.default(group, 0)
    counts = aten.index_add.default(aten.full.default([size], 0, dtype=torch.int64), 0, group, one)
    inverse = aten.reshape.default(group, list(x.shape))
    return aten.index_select.default(flat, 0, position), inverse, counts, number
