"""Rules for putting and adding up integers by index, and for their largest and smallest: the device does so for floats only.

Sums go to `index_add`, which takes integers, by the position of each entry in the flattened tensor. A largest integer is found
by its 16-bit digits, most significant first, which float32 holds exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gaudicc.rules.rule import Rule

aten = torch.ops.aten
_DIGITS = {torch.int64: 4, torch.int32: 2}
_BASE = 1 << 16


def scatter_add(x: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """`x[..., index, ...] += src`, one `index_add` of the flattened tensors."""
    if not x.dim():
        whole = scatter_add(_line(x), 0, _line(index), _line(src))
        scalar: Tensor = aten.reshape(whole, [])
        return scalar
    if not index.numel():
        copied: Tensor = aten.clone(x)
        return copied
    place = aten._to_copy(index, dtype=torch.int64)
    given = _cut(src, list(index.shape))
    total: Tensor | None = None
    for d, size in enumerate(index.shape):
        line = place if d == dim % x.dim() else _along(size, d, x.dim(), x.device)
        step = aten.mul.Tensor(line, math.prod(x.shape[d + 1 :]))
        total = step if total is None else aten.add.Tensor(total, step)
    assert total is not None, "the index has as many dims as the tensor"
    flat = aten.index_add(_line(x), 0, _line(total), _line(given))
    result: Tensor = aten.reshape(flat, list(x.shape))
    return result


def _line(x: Tensor) -> Tensor:
    result: Tensor = aten.reshape(x, [x.numel()])
    return result


def _along(size: int, dim: int, rank: int, device: torch.device) -> Tensor:
    line = aten.arange.start(0, size, dtype=torch.int64, device=device)
    result: Tensor = aten.reshape(line, [size if d == dim else 1 for d in range(rank)])
    return result


def _cut(src: Tensor, shape: list[int]) -> Tensor:
    """The corner of the source that the index speaks of."""
    for d, size in enumerate(shape):
        if src.shape[d] != size:
            src = aten.slice.Tensor(src, d, 0, size)
    return src


def scatter_reduce(
    x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Sum, largest or smallest of integers; without `include_self` what is written to counts for nothing."""
    if not x.dim():
        whole = scatter_reduce(_line(x), 0, _line(index), _line(src), reduce, include_self=include_self)
        scalar: Tensor = aten.reshape(whole, [])
        return scalar
    if not index.numel():
        copied: Tensor = aten.clone(x)
        return copied
    if reduce == "sum":
        return scatter_add(x if include_self else aten.scatter.value(x, dim, index, 0), dim, index, src)
    given = _cut(src, list(index.shape))
    if reduce == "amin":  # the complement turns the order around
        x, given = _complement(x), _complement(given)
    untouched = aten.full(list(x.shape), False, dtype=torch.bool, device=x.device)
    touched = untouched if include_self else aten.scatter.value(untouched, dim, index, True)
    best = _largest(x, dim, index, given, touched)
    return _complement(best) if reduce == "amin" else best


def _largest(x: Tensor, dim: int, index: Tensor, src: Tensor, overwritten: Tensor) -> Tensor:
    """Digit by digit: only entries that agree with the best so far offer their next digit."""
    low = aten.full([], -math.inf, dtype=torch.float32, device=x.device)
    alive, offered = aten.logical_not(overwritten), None
    result: Tensor | None = None
    for own, theirs in zip(_digits(x), _digits(src), strict=True):
        base = aten.where.self(alive, own, low)
        offer = theirs if offered is None else aten.where.self(offered, theirs, low)
        best = aten.scatter_reduce.two(base, dim, index, offer, "amax")
        same = aten.eq.Tensor(offer, aten.gather(best, dim, index))
        offered = same if offered is None else aten.logical_and(offered, same)
        alive = aten.logical_and(alive, aten.eq.Tensor(base, best))
        digit = aten._to_copy(aten._to_copy(best, dtype=torch.int32), dtype=x.dtype)
        result = digit if result is None else aten.add.Tensor(aten.mul.Tensor(result, _BASE), digit)
    assert result is not None, "an integer has digits"
    return result


def _digits(x: Tensor) -> list[Tensor]:
    """The 16-bit digits in float32, the most significant first and with the sign."""
    rest, digits = x, []
    for _ in range(_DIGITS[x.dtype] - 1):
        upper = aten.floor_divide(rest, _BASE)
        digits.append(aten.bitwise_and.Scalar(rest, _BASE - 1))
        rest = upper
    return [aten._to_copy(digit, dtype=torch.float32) for digit in (rest, *reversed(digits))]


def _complement(x: Tensor) -> Tensor:
    result: Tensor = aten.add.Tensor(aten.mul.Tensor(x, -1), -1)
    return result


def put(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """Values put at positions of the flattened tensor; negative ones count from its end."""
    if not index.numel():
        copied: Tensor = aten.clone(x)
        return copied
    place = _line(aten.where.self(aten.lt.Scalar(index, 0), aten.add.Tensor(index, x.numel()), index))
    write = aten.index_add if accumulate else aten.index_copy
    result: Tensor = aten.reshape(write(_line(x), 0, place, _line(source)), list(x.shape))
    return result


def _puts(x: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> str | None:
    return None if x.dtype in _DIGITS else "it puts int32 and int64 only"


def _integers(x: Tensor, dim: int, index: Tensor, src: Tensor) -> str | None:
    return None if x.dtype in _DIGITS else "it adds up int32 and int64 only"


def _reducible(
    x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> str | None:
    if reduce not in ("sum", "amax", "amin"):
        return f"integers have no {reduce} by index here"
    return _integers(x, dim, index, src)


RULES = (
    Rule("integer-put", (aten.put.default,), put, check=_puts, cost="index arithmetic of the size of the source"),
    Rule(
        "integer-scatter-add", (aten.scatter_add.default,), scatter_add, check=_integers,
        cost="index arithmetic of the size of the source",
    ),
    Rule(
        "integer-scatter-reduce", (aten.scatter_reduce.two,), scatter_reduce, check=_reducible,
        cost="index arithmetic for a sum; for the largest and smallest a float reduction and a gather per 16-bit digit",
    ),
)  # fmt: skip
