"""Rules for triangular systems of small static size, by substitution: one row after the other, no series."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gaudicc.pipeline import Numerics
from gaudicc.rules.rule import Rule

aten = torch.ops.aten
LARGEST = 32  # rows; the graph grows with them


def transposed(a: Tensor) -> Tensor:
    """The last two dims swapped."""
    result: Tensor = aten.transpose.int(a, -2, -1)
    return result


def broadcast_batch(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the batch dims of the two."""
    batch = list(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
    return aten.expand(a, [*batch, *a.shape[-2:]]), aten.expand(b, [*batch, *b.shape[-2:]])


def substitute(a: Tensor, b: Tensor, *, upper: bool, unit: bool = False) -> Tensor:
    """The x of `a x = b`, `a` triangular `[..., n, n]`, `b` `[..., n, k]`; batch dims broadcast."""
    a, b = broadcast_batch(a, b)
    size = a.shape[-1]
    if not b.numel() or not size:
        empty: Tensor = aten.full(list(b.shape), 0, dtype=b.dtype, device=b.device)
        return empty
    known: Any = None
    for row in reversed(range(size)) if upper else range(size):
        line = aten.slice.Tensor(a, -2, row, row + 1)
        value = aten.slice.Tensor(b, -2, row, row + 1)
        if known is not None:
            left = aten.slice.Tensor(line, -1, row + 1, size) if upper else aten.slice.Tensor(line, -1, 0, row)
            value = aten.sub.Tensor(value, torch.matmul(left, known))
        if not unit:
            value = aten.div.Tensor(value, aten.slice.Tensor(line, -1, row, row + 1))
        parts = [value] if known is None else [value, known] if upper else [known, value]
        known = aten.cat(parts, -2)
    result: Tensor = known
    return result


def solve_triangular(a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """`linalg.solve_triangular`."""
    if left:
        return substitute(a, b, upper=upper, unit=unitriangular)
    return transposed(substitute(transposed(a), transposed(b), upper=not upper, unit=unitriangular))


def triangular_solve(
    b: Tensor, a: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> tuple[Tensor, Tensor]:
    """`torch.triangular_solve`: the solution and a copy of the matrix."""
    matrix = transposed(a) if transpose else a
    wide, _ = broadcast_batch(a, b)
    return substitute(matrix, b, upper=upper != transpose, unit=unitriangular), aten.clone(wide)


def cholesky_solve(b: Tensor, factor: Tensor, upper: bool = False) -> Tensor:
    """The x of `L L^T x = b`."""
    lower = transposed(factor) if upper else factor
    return substitute(transposed(lower), substitute(lower, b, upper=False), upper=True)


def cholesky_inverse(factor: Tensor, upper: bool = False) -> Tensor:
    """The inverse of `L L^T`."""
    return cholesky_solve(identity(factor, factor.shape[-1]), factor, upper)


def identity(like: Tensor, size: int) -> Tensor:
    """The identity `[size, size]` in the dtype of `like`."""
    line = aten.arange.start(0, size, dtype=torch.int32, device=like.device)
    result: Tensor = aten._to_copy(aten.eq.Tensor(aten.unsqueeze(line, 1), line), dtype=like.dtype)
    return result


def small(*matrices: Tensor) -> str | None:
    """Why matrices do not fit: their size or dtype."""
    if any(matrix.dtype is not torch.float32 for matrix in matrices):
        return "it computes in float32 only"
    rows = max(max(matrix.shape[-2:]) for matrix in matrices)
    return f"its matrix has {rows} rows or columns, more than {LARGEST}" if rows > LARGEST else None


def _small(a: Tensor, *args: Any, **options: Any) -> str | None:
    return small(a)


def _small_second(b: Tensor, a: Tensor, *args: Any) -> str | None:
    return small(a) if b.dtype is torch.float32 else "it computes in float32 only"


RULES = (
    Rule(
        "solve-triangular", (aten.linalg_solve_triangular.default,), solve_triangular, check=_small,
        numerics=Numerics.ROUNDING, cost="five ops per row of the matrix, which at most 32 has",
    ),
    Rule(
        "triangular-solve", (aten.triangular_solve.default,), triangular_solve, check=_small_second,
        numerics=Numerics.ROUNDING, cost="five ops per row of the matrix, which at most 32 has",
    ),
    Rule(
        "cholesky-solve", (aten.cholesky_solve.default, aten._cholesky_solve_helper.default), cholesky_solve,
        check=_small_second, numerics=Numerics.ROUNDING, cost="two triangular systems",
    ),
    Rule(
        "cholesky-inverse", (aten.cholesky_inverse.default,), cholesky_inverse, check=_small,
        numerics=Numerics.ROUNDING, cost="two triangular systems",
    ),
)  # fmt: skip
