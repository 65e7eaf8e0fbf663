"""Rules for ops that generate indices: `triu_indices`, `tril_indices`.

Both are listed as supported and reported to fall back or crash (gaudi-pytorch-bridge; see docs/targets.md, reported bad). The
row of an entry is found among the cumulative row lengths, exactly and in integers; a closed form would need the square root of
an integer, which float32 gets wrong from 2^24 on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gaudicc.rules.rule import Rule

aten = torch.ops.aten


def tril_indices(row: int, col: int, offset: int = 0, **options: Any) -> Tensor:
    """Coordinates of the lower triangle of `[row, col]` in row-major order, `[2, n]`."""
    rows = _range(row, options)
    counts = aten.clamp(aten.add.Tensor(rows, offset + 1), 0, col)
    total = sum(min(max(r + offset + 1, 0), col) for r in range(row))
    return _coordinates(total, counts, aten.mul.Tensor(rows, 0), options)


def triu_indices(row: int, col: int, offset: int = 0, **options: Any) -> Tensor:
    """Coordinates of the upper triangle of `[row, col]` in row-major order, `[2, n]`."""
    first = aten.clamp(aten.add.Tensor(_range(row, options), offset), 0, col)
    counts = aten.add.Tensor(aten.mul.Tensor(first, -1), col)
    total = sum(col - min(max(r + offset, 0), col) for r in range(row))
    return _coordinates(total, counts, first, options)


def _coordinates(total: int, counts: Tensor, first: Tensor, options: dict[str, Any]) -> Tensor:
    """Row r holds `counts[r]` entries, of columns `first[r], first[r] + 1, ...`.

    Entry i belongs to the first row whose cumulative count exceeds i; its column is i plus a number per row.
    """
    entries = _range(total, options)
    if not counts.shape[0]:
        none: Tensor = aten.stack([entries, entries])
        return none
    ends = aten.cumsum(counts, 0)
    rows = aten._to_copy(aten.searchsorted.Tensor(ends, entries, right=True), dtype=entries.dtype)
    shift = aten.add.Tensor(first, aten.add.Tensor(counts, aten.mul.Tensor(ends, -1)))
    columns = aten.add.Tensor(entries, aten.index_select(aten._to_copy(shift, dtype=entries.dtype), 0, rows))
    coordinates: Tensor = aten.stack([rows, columns])
    return coordinates


def _range(size: int, options: dict[str, Any]) -> Tensor:
    result: Tensor = aten.arange.start(0, size, dtype=options.get("dtype") or torch.int64, device=options.get("device"))
    return result


RULES = (
    Rule(
        "tril-indices", (aten.tril_indices.default,), tril_indices,
        cost="a search of n entries among the rows; no matrix is made",
    ),
    Rule(
        "triu-indices", (aten.triu_indices.default,), triu_indices,
        cost="a search of n entries among the rows; no matrix is made",
    ),
)  # fmt: skip
