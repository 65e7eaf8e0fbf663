"""Rules for order: sorting where the device's kernel falls back, `topk` of integers, `mode`, `nanmedian`.

The device sorts floats and int16, not stably. A stable order is that of the pairs (rank of the value, place), and such a pair is
one number that float32 holds exactly while n * n <= 2^24. Integers are sorted by their 16-bit digits, least significant first.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gaudicc.rules.rule import Rule

aten = torch.ops.aten
LONGEST = 4096
_DIGITS = {torch.int64: 4, torch.int32: 2, torch.uint8: 1, torch.int8: 1, torch.bool: 1}


def places(x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """The place of every entry along `dim`, in the shape of x."""
    line = aten.arange.start(0, x.shape[dim], dtype=dtype, device=x.device)
    spread = aten.reshape(line, [x.shape[dim] if d == dim else 1 for d in range(x.dim())])
    result: Tensor = aten.expand(spread, list(x.shape))
    return result


def ascending_runs(values: Tensor, dim: int) -> Tensor:
    """For sorted values, the number of different values before each entry, int32; NaN equals NaN."""
    size = values.shape[dim]
    one, next_one = aten.slice.Tensor(values, dim, 0, size - 1), aten.slice.Tensor(values, dim, 1, size)
    differs = aten.logical_not(aten.eq.Tensor(one, next_one))
    if values.dtype.is_floating_point:
        differs = aten.logical_and(differs, aten.logical_not(aten.logical_and(aten.isnan(one), aten.isnan(next_one))))
    first = list(values.shape)
    first[dim] = 1
    flags = aten.cat([aten.full(first, False, dtype=torch.bool, device=values.device), differs], dim)
    result: Tensor = aten.cumsum(aten._to_copy(flags, dtype=torch.int32), dim, dtype=torch.int32)
    return result


def stable_order(x: Tensor, dim: int, descending: bool) -> Tensor:
    """Where the entries of a float tensor stand in its stable order, int64."""
    size = x.shape[dim]
    values, at = aten.sort(x, dim, descending)
    pair = aten.add.Tensor(aten.mul.Tensor(ascending_runs(values, dim), size), aten._to_copy(at, dtype=torch.int32))
    ordered, _ = aten.sort(aten._to_copy(pair, dtype=torch.float32), dim)
    result: Tensor = aten._to_copy(
        aten.remainder.Scalar(aten._to_copy(ordered, dtype=torch.int32), size), dtype=torch.int64
    )
    return result


def integer_order(x: Tensor, dim: int, descending: bool) -> Tensor:
    """Where the entries of an integer tensor stand in its stable order, int64: one stable sort per 16-bit digit."""
    digits = _DIGITS[x.dtype]
    order: Any = None
    rest = x if x.dtype in (torch.int32, torch.int64) else aten._to_copy(x, dtype=torch.int32)
    for index in range(digits):
        # The last digit keeps the sign; floor division by 2^16 leaves it in [-2^15, 2^15).
        upper = aten.floor_divide(rest, 1 << 16)
        digit = rest if index == digits - 1 else aten.bitwise_and.Scalar(rest, (1 << 16) - 1)
        digit, rest = aten._to_copy(digit, dtype=torch.float32), upper
        if order is None:
            order = stable_order(digit, dim, descending)
        else:
            step = stable_order(aten.gather(digit, dim, order), dim, descending)
            order = aten.gather(order, dim, step)
    result: Tensor = order
    return result


def sort_stable(x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """A stable sort of any dtype."""
    return sort(x, dim, descending) if stable or not x.dtype.is_floating_point else aten.sort(x, dim, descending)


def sort(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """A sort of any dtype, stable too."""
    if not x.dim() or not x.numel():
        return aten.clone(x), aten.full(list(x.shape), 0, dtype=torch.int64, device=x.device)
    dim %= x.dim()
    order = (stable_order if x.dtype.is_floating_point else integer_order)(x, dim, descending)
    return aten.gather(x, dim, order), order


def _sortable(x: Tensor, dim: int = -1, descending: bool = False) -> str | None:
    if x.dim() and x.shape[dim] > LONGEST:
        return f"it sorts more than {LONGEST} entries, whose places float32 does not hold exactly"
    if x.dtype.is_floating_point and x.dtype.itemsize > 4:
        return "float64 values do not fit float32"
    return None if x.dtype in _DIGITS or x.dtype.is_floating_point else f"{x.dtype} has no digits here"


def _stable_sortable(x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> str | None:
    return _sortable(x, dim)


def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """The first k of the sorted integers."""
    values, order = sort(x, dim, largest)
    if not x.dim():
        return values, order
    return aten.slice.Tensor(values, dim, 0, k), aten.slice.Tensor(order, dim, 0, k)


def _integers(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> str | None:
    return "the device's own topk takes floats" if x.dtype.is_floating_point else _sortable(x, dim)


def mode(x: Tensor, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The most frequent value, the smallest of several, and its last place.

    NaN differs from NaN and is larger than all others; where there is any, eager's choice depends on the order of its sort.
    """
    if not x.dim():
        return aten.clone(x), aten.full([], 0, dtype=torch.int64, device=x.device)
    dim %= x.dim()
    size = x.shape[dim]
    values, _ = aten.sort(x, dim) if x.dtype.is_floating_point else sort(x, dim)
    runs = ascending_runs(values, dim)
    if x.dtype.is_floating_point:  # here NaN differs from NaN
        missing = aten._to_copy(aten.isnan(values), dtype=torch.int32)
        runs = aten.add.Tensor(runs, aten.cumsum(missing, dim, dtype=torch.int32))
    counts = aten.scatter_add(
        aten.full(list(x.shape), 0, dtype=torch.float32, device=x.device), dim,
        aten.clamp(aten._to_copy(runs, dtype=torch.int64), 0, size - 1),
        aten.full(list(x.shape), 1, dtype=torch.float32, device=x.device),
    )  # fmt: skip
    longest = aten.argmax(counts, dim, True)
    first = aten.argmax(aten._to_copy(aten.eq.Tensor(runs, longest), dtype=torch.float32), dim, True)
    value = aten.gather(values, dim, first)
    at = places(x, dim, torch.int32)
    same = aten.where.self(aten.eq.Tensor(x, value), at, aten.full([], 0, dtype=torch.int32, device=x.device))
    index = aten._to_copy(aten.amax(same, [dim], True), dtype=torch.int64)
    return (value, index) if keepdim else (aten.squeeze.dim(value, dim), aten.squeeze.dim(index, dim))


def _has_mode(x: Tensor, dim: int = -1, keepdim: bool = False) -> str | None:
    if x.dim() and not x.numel():
        return "there is nothing to choose from"
    return _sortable(x, dim) if x.dtype in (torch.int32, torch.int64) else _is_float(x)


def _is_float(x: Tensor) -> str | None:
    fits = x.dtype.is_floating_point and x.dtype.itemsize <= 4
    return None if fits else "the device sorts floats, and bytes have no mode here"


def nanmedian_dim(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower median of what is not NaN: NaN sorts last, so its place follows from their number."""
    if not x.dim():
        return aten.clone(x), aten.full([], 0, dtype=torch.int64, device=x.device)
    dim %= x.dim()
    values, order = aten.sort(x, dim)
    missing = aten.sum.dim_IntList(aten._to_copy(aten.isnan(x), dtype=torch.int32), [dim], True, dtype=torch.int32)
    count = aten.add.Tensor(aten.mul.Tensor(missing, -1), x.shape[dim])
    middle = aten.clamp(aten.floor_divide(aten.add.Tensor(count, -1), 2), 0)
    middle = aten._to_copy(middle, dtype=torch.int64)
    value, index = aten.gather(values, dim, middle), aten.gather(order, dim, middle)
    return (value, index) if keepdim else (aten.squeeze.dim(value, dim), aten.squeeze.dim(index, dim))


def nanmedian(x: Tensor) -> Tensor:
    """The lower median of all entries that are not NaN."""
    flat = aten.reshape(x, [x.numel()])
    return nanmedian_dim(flat, 0)[0]


def _has_median(x: Tensor, dim: int = 0, keepdim: bool = False) -> str | None:
    return _is_float(x) if x.numel() else "there is nothing to choose from"


RULES = (
    Rule(
        "stable-sort", (aten.sort.stable,), sort_stable, check=_stable_sortable,
        cost="two sorts instead of one for floats, two per 16-bit digit for integers",
    ),
    Rule("integer-sort", (aten.sort.default,), sort, check=_sortable, cost="two float sorts per 16-bit digit"),
    Rule("integer-topk", (aten.topk.default,), topk, check=_integers, cost="a whole sort: two float sorts per 16-bit digit"),
    Rule(
        "mode", (aten.mode.default,), mode, check=_has_mode,
        cost="a sort (of integers two per 16-bit digit), a running count and one addition by index",
    ),
    Rule("nanmedian", (aten.nanmedian.default,), nanmedian, check=_has_median, cost="a whole sort"),
    Rule("nanmedian-dim", (aten.nanmedian.dim,), nanmedian_dim, check=_has_median, cost="a whole sort"),
)  # fmt: skip
