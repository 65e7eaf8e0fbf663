"""Rules for counting by bins: `bucketize`, `histc`, `histogram`, `histogramdd`.

An entry adds its weight to its bin by `index_add`; entries outside add nothing. Counts are exact up to 2^24 in float32, which is
where eager's own float counts end too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gaudicc.pipeline import Numerics
from gaudicc.rules.rule import Rule

aten = torch.ops.aten


def bucketize(x: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """`bucketize` is `searchsorted` with its operands swapped."""
    result: Tensor = aten.searchsorted.Tensor(boundaries, x, out_int32=out_int32, right=right)
    return result


def histc(x: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """Counts in `bins` equal bins; the bin of an entry by linear interpolation, as PyTorch computes it."""
    flat = aten.reshape(x, [x.numel()])
    low, high = _ends(flat, (min, max) if min != max else None, 1.0, min)
    place = aten.mul.Tensor(aten.add.Tensor(flat, aten.mul.Tensor(low, -1)), bins)
    place = aten.div.Tensor(place, aten.add.Tensor(high, aten.mul.Tensor(low, -1)))
    return _counted(flat, place, None, (low, high), bins)


def _ends(flat: Tensor, given: Sequence[float] | None, margin: float, empty: float) -> tuple[Tensor, Tensor]:
    """The outer edges: as given, or the extremes of the data, moved apart by `margin` where they are equal."""
    options: dict[str, Any] = {"dtype": flat.dtype, "device": flat.device}
    if given is not None:
        low, high = (aten.full([], value, **options) for value in given)
        return low, high
    if not flat.numel():
        return aten.full([], empty - margin, **options), aten.full([], empty + margin, **options)
    low, high = aten.amin(flat, [0]), aten.amax(flat, [0])
    same = aten.eq.Tensor(low, high)
    return (
        aten.where.self(same, aten.add.Tensor(low, -margin), low),
        aten.where.self(same, aten.add.Tensor(high, margin), high),
    )


def _counted(flat: Tensor, place: Tensor, weight: Tensor | None, ends: tuple[Tensor, Tensor], bins: int) -> Tensor:
    inside = aten.logical_and(aten.ge.Tensor(flat, ends[0]), aten.le.Tensor(flat, ends[1]))
    index = aten._to_copy(aten.where.self(inside, place, aten.full_like(flat, 0)), dtype=torch.int32)
    amount = aten.full_like(flat, 1) if weight is None else weight
    amount = aten.where.self(inside, amount, aten.full_like(amount, 0))
    counts = aten.full([bins], 0, dtype=flat.dtype, device=flat.device)
    result: Tensor = aten.index_add(counts, 0, aten.clamp(index, 0, bins - 1), amount)
    return result


def _has_bins(x: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> str | None:
    if not (math.isfinite(min) and math.isfinite(max)) or min > max:
        return "the range is not finite or not ascending"
    return "it counts in float32 only" if x.dtype is not torch.float32 else None


def _float32(x: Tensor, bins: Any = None, **options: Any) -> str | None:
    return "it counts in float32 only" if x.dtype is not torch.float32 else None


def edges(low: Tensor, high: Tensor, bins: int) -> Tensor:
    """`bins + 1` evenly spaced edges, computed from both ends towards the middle as `linspace` does."""
    step = aten.div.Tensor(aten.add.Tensor(high, aten.mul.Tensor(low, -1)), bins)
    number = aten.arange.start(0, bins + 1, dtype=low.dtype, device=low.device)
    up = aten.add.Tensor(aten.mul.Tensor(number, step), low)
    down = aten.add.Tensor(aten.mul.Tensor(aten.add.Tensor(number, -bins), step), high)
    result: Tensor = aten.where.self(aten.lt.Scalar(number, (bins + 1) // 2), up, down)
    return result


def histogram(
    x: Tensor,
    bins: int = 100,
    *,
    range: Sequence[float] | None = None,
    weight: Tensor | None = None,
    density: bool = False,
) -> tuple[Tensor, Tensor]:
    """Counts or density in equal bins, and the edges."""
    flat = aten.reshape(x, [x.numel()])
    low, high = _ends(flat, _apart(range), 0.5, 0.5)
    return histogram_of_edges(x, edges(low, high, bins), weight=weight, density=density)


def _apart(given: Sequence[float] | None) -> Sequence[float] | None:
    if given is None or given[0] != given[1]:
        return given
    return given[0] - 0.5, given[1] + 0.5


def histogram_of_edges(
    x: Tensor, bins: Tensor, *, weight: Tensor | None = None, density: bool = False
) -> tuple[Tensor, Tensor]:
    """Counts or density between given edges, and the edges."""
    columns = aten.reshape(x, [x.numel(), 1])
    return histogram_of_columns(columns, [bins], weight=weight, density=density), aten.clone(bins)


def histogram_of_columns(
    x: Tensor, bins: Sequence[Tensor], *, weight: Tensor | None = None, density: bool = False
) -> Tensor:
    """Counts or density of points `[n, dims]` between the edges of each dim; the last bin of a dim holds its upper edge."""
    rows = aten.reshape(x, [math.prod(x.shape[:-1]), x.shape[-1]])
    inside: Any = None
    place: Any = None
    for dim, ends in enumerate(bins):
        column = aten.select.int(rows, 1, dim)
        count = ends.shape[0] - 1
        low, high = aten.select.int(ends, 0, 0), aten.select.int(ends, 0, count)
        fits = aten.logical_and(aten.ge.Tensor(column, low), aten.le.Tensor(column, high))
        index = aten.add.Tensor(aten.searchsorted.Tensor(ends, aten.clone(column), out_int32=True, right=True), -1)
        index = aten.clamp(index, 0, count - 1)
        inside = fits if inside is None else aten.logical_and(inside, fits)
        place = index if place is None else aten.add.Tensor(aten.mul.Tensor(place, count), index)
    sizes = [ends.shape[0] - 1 for ends in bins]
    amount = aten.full([rows.shape[0]], 1, dtype=x.dtype, device=x.device)
    amount = amount if weight is None else aten.reshape(weight, [rows.shape[0]])
    amount = aten.where.self(inside, amount, aten.full_like(amount, 0))
    counts = aten.full([math.prod(sizes)], 0, dtype=x.dtype, device=x.device)
    counts = aten.reshape(aten.index_add(counts, 0, place, amount), sizes)
    return _density(counts, bins) if density else counts


def _density(counts: Tensor, bins: Sequence[Tensor]) -> Tensor:
    total = aten.sum.dim_IntList(counts, list(range(counts.dim())))
    counts = aten.div.Tensor(counts, total)
    for dim, ends in enumerate(bins):
        size = ends.shape[0]
        width = aten.sub.Tensor(aten.slice.Tensor(ends, 0, 1, size), aten.slice.Tensor(ends, 0, 0, size - 1))
        counts = aten.div.Tensor(counts, aten.reshape(width, [-1 if d == dim else 1 for d in range(counts.dim())]))
    return counts


def edges_of_columns(
    x: Tensor,
    bins: Sequence[int],
    *,
    range: Sequence[float] | None = None,
    weight: Tensor | None = None,
    density: bool = False,
) -> list[Tensor]:
    """The edges of every dim of points `[n, dims]`."""
    rows = aten.reshape(x, [math.prod(x.shape[:-1]), x.shape[-1]])
    result = []
    for dim, count in enumerate(bins):
        given = None if range is None else range[2 * dim : 2 * dim + 2]
        low, high = _ends(aten.select.int(rows, 1, dim), _apart(given), 0.5, 0.5)
        result.append(edges(low, high, count))
    return result


def histogram_of_counts(
    x: Tensor,
    bins: Sequence[int],
    *,
    range: Sequence[float] | None = None,
    weight: Tensor | None = None,
    density: bool = False,
) -> Tensor:
    """Counts or density of points `[n, dims]` in equal bins of each dim."""
    return histogram_of_columns(x, edges_of_columns(x, bins, range=range), weight=weight, density=density)


def _counting(name: str, op: Any, rewrite: Any, cost: str, check: Any = _float32) -> Rule:
    return Rule(name, (op,), rewrite, check=check, numerics=Numerics.ROUNDING, cost=cost)


RULES = (
    Rule("bucketize", (aten.bucketize.Tensor,), bucketize, cost="nothing: the same kernel under its other name"),
    _counting("histc", aten.histc.default, histc, "ten passes over the entries, no more memory than they take", _has_bins),
    _counting("histogram", aten.histogram.bin_ct, histogram, "a search per entry and one addition by index"),
    _counting("histogram-of-edges", aten.histogram.bins_tensor, histogram_of_edges, "a search per entry, one addition by index"),
    _counting("histogram-edges", aten._histogramdd_bin_edges.default, edges_of_columns, "two reductions per dim of the points"),
    _counting(
        "histogram-of-points", aten._histogramdd_from_bin_cts.default, histogram_of_counts,
        "a search per coordinate and one addition by index",
    ),
    _counting(
        "histogram-of-points-and-edges", aten._histogramdd_from_bin_tensors.default, histogram_of_columns,
        "a search per coordinate and one addition by index",
    ),
)  # fmt: skip
