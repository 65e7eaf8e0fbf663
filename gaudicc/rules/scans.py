"""Rules for running extremes, `cummax` and `cummin` with indices, and for running counts of flags.

A scan of ceil(log2(n)) rounds: after round r each entry holds the extreme of the 2^r entries up to it. Of equal entries the later
one wins and a NaN stays, as in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gaudicc.rules.rule import Rule

aten = torch.ops.aten


def running(wins: Callable[..., Tensor], x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The running extreme of `x` along `dim` and where it stands, int64.

    Args:
        wins: `ge` or `le`: whether the later of two entries replaces the earlier.
        x: any shape.
        dim: the dim of the scan.
    """
    if not x.dim() or not x.numel():
        return aten.clone(x), aten.full(list(x.shape), 0, dtype=torch.int64, device=x.device)
    dim %= x.dim()
    size = x.shape[dim]
    shape = [size if d == dim else 1 for d in range(x.dim())]
    places = aten.arange.start(0, size, dtype=torch.int64, device=x.device)
    best, at = x, aten.clone(aten.expand(aten.reshape(places, shape), list(x.shape)))
    shift = 1
    while shift < size:
        earlier, later = aten.slice.Tensor(best, dim, 0, size - shift), aten.slice.Tensor(best, dim, shift, size)
        replaces = wins(later, earlier)
        if x.dtype.is_floating_point:
            stays = aten.logical_not(aten.isnan(earlier))
            replaces = aten.logical_or(aten.isnan(later), aten.logical_and(stays, replaces))
        best = _joined(best, aten.where.self(replaces, later, earlier), dim, shift)
        chosen = aten.where.self(
            replaces, aten.slice.Tensor(at, dim, shift, size), aten.slice.Tensor(at, dim, 0, size - shift)
        )
        at = _joined(at, chosen, dim, shift)
        shift *= 2
    return best, at


def _joined(whole: Tensor, tail: Tensor, dim: int, shift: int) -> Tensor:
    result: Tensor = aten.cat([aten.slice.Tensor(whole, dim, 0, shift), tail], dim)
    return result


def running_count(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """`cumsum` of flags and bytes, which the device counts as int32."""
    result: Tensor = aten.cumsum(aten._to_copy(x, dtype=torch.int32), dim, dtype=dtype or torch.int64)
    return result


def _narrow(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> str | None:
    return None if x.dtype in (torch.bool, torch.int8) else "the device adds up this dtype itself, or does not cast it"


RULES = (
    Rule("running-count", (aten.cumsum.default,), running_count, check=_narrow, cost="one cast to int32"),
    Rule(
        "cummax", (aten.cummax.default,), partial(running, aten.ge.Tensor),
        cost="ceil(log2(n)) rounds over values and indices instead of one pass",
    ),
    Rule(
        "cummin", (aten.cummin.default,), partial(running, aten.le.Tensor),
        cost="ceil(log2(n)) rounds over values and indices instead of one pass",
    ),
)  # fmt: skip
