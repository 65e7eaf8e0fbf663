"""Counting what is equal: runs, distinct values, histograms of integers; as many rows as there are values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gaudicc.nodes import val
from gaudicc.rules import compaction
from gaudicc.rules.bounded import Inline, Refused, Rows, filled, fixed, promised
from gaudicc.rules.bounded_order import filled_by_extreme

aten = torch.ops.aten


def unique(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`unique(x, return_inverse, return_counts)`; all three results are made, those that nobody reads are dropped."""
    x = args[0]
    if not isinstance(x, Rows):
        size = fixed(val(x).numel())
        values_, inverse, counts, length = inline(compaction.unique, x)
        return Rows(values_, 0, length), inverse, Rows(counts, 0, length, total=size)
    _refuse_matrix(x)
    whole = filled_by_extreme(inline, x, largest=True, number=float("nan"))
    values_, inverse, counts, length = inline(compaction.unique, whole, x.length)
    return Rows(values_, 0, length), Rows(inverse, 0, x.length), Rows(counts, 0, length, total=fixed(x.bound))


def runs(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`unique_consecutive(x, return_inverse, return_counts)`."""
    x, along = args[0], (args[3] if len(args) > 3 else kwargs.get("dim"))
    node = x.value if isinstance(x, Rows) else x
    if along is not None and val(node).dim() != 1:
        raise Refused("equal rows of a matrix are merged")
    if not isinstance(x, Rows):
        size = fixed(val(x).numel())
        values_, inverse, counts, length = inline(compaction.runs, x)
        return Rows(values_, 0, length), inverse, Rows(counts, 0, length, total=size)
    _refuse_matrix(x)
    values_, inverse, counts, length = inline(compaction.runs, x.value, x.length)
    return Rows(values_, 0, length), Rows(inverse, 0, x.length), Rows(counts, 0, length, total=fixed(x.bound))


def _refuse_matrix(x: Rows) -> None:
    if val(x.value).dim() != 1:
        raise Refused("its input is of unknown length, and no vector")
    fixed(x.bound)


def bincount(inline: Inline, args: Any, kwargs: Any, dim: int | None) -> Any:
    """`bincount(x, weights, minlength)`, where the program says how large the values can be, or the user promised it."""
    x, weights, least = (*args, *(None, 0)[len(args) - 1 :])[:3]
    weights, least = kwargs.get("weights", weights), kwargs.get("minlength", least)
    if not isinstance(least, int) or (isinstance(x, Rows) is not isinstance(weights, Rows) and weights is not None):
        raise Refused("its operands are of known and unknown length")
    node = x.value if isinstance(x, Rows) else x
    high = inline.range_of(node)[1] + 1
    safe = filled(inline, x, 0) if isinstance(x, Rows) else x
    inline.demand(
        inline(lambda t: aten.any.default(aten.lt.Scalar(t, 0)), safe),
        RuntimeError("bincount only supports 1-d non-negative integral inputs."),
    )
    length = inline(lambda t, n: _largest(t, n, least), safe, x.length if isinstance(x, Rows) else None)
    size = max(int(high), least) if high < 2**31 else promised(inline, length, "nothing bounds the values; clamp them")
    ones = weights.value if isinstance(weights, Rows) else weights
    counts = inline(lambda t, w, n: _counts(t, w, n, size), safe, ones, x.length if isinstance(x, Rows) else None)
    return Rows(counts, 0, length)


def _largest(x: Tensor, length: Tensor | None, least: int) -> Tensor:
    """How many counts there are."""
    if isinstance(x.shape[0], int) and not x.shape[0]:
        return aten.full.default([], least, dtype=torch.int64)  # type: ignore[no-any-return]
    most = aten.add.Scalar(aten._to_copy.default(aten.amax.default(x, [0]), dtype=torch.int64), 1)
    if length is not None:
        most = aten.where.self(aten.gt.Scalar(length, 0), most, aten.full.default([], 0, dtype=torch.int64))
    return aten.clamp.default(most, least)  # type: ignore[no-any-return]


def _counts(x: Tensor, weights: Tensor | None, length: Tensor | None, size: int) -> Tensor:
    dtype = torch.int64 if weights is None else torch.float32 if weights.dtype is torch.float32 else torch.float64
    each = aten.full.default([x.shape[0]], 1, dtype=dtype) if weights is None else weights.to(dtype)
    if length is not None:
        valid = aten.lt.Tensor(aten.arange.default(x.shape[0]), length)
        each = aten.where.self(valid, each, aten.full.default([], 0, dtype=dtype))
    at = aten.clamp.default(aten._to_copy.default(x, dtype=torch.int64), 0, max(size - 1, 0))
    return aten.index_add.default(aten.full.default([size], 0, dtype=dtype), 0, at, each)  # type: ignore[no-any-return]
