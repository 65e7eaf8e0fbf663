"""Rules for small dense systems, by Gaussian elimination with partial pivoting, as LAPACK does it: one column after the other.

Each step is written on the whole matrix with masks, so that shapes stay static. Where eager raises on a singular matrix, the
result here holds infinities or NaN, as that of the `_ex` forms does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gaudicc.pipeline import Numerics
from gaudicc.rules.rule import Rule
from gaudicc.rules.triangular import broadcast_batch, identity, small, substitute, transposed

aten = torch.ops.aten


def line(size: int, like: Tensor) -> Tensor:
    """`0, 1, ..., size - 1`, int32."""
    result: Tensor = aten.arange.start(0, size, dtype=torch.int32, device=like.device)
    return result


def eliminate(a: Tensor, pivot: bool = True) -> tuple[Tensor, Tensor]:
    """LU `[..., m, n]` in one matrix, and the row that each step exchanged with its own, int32 `[..., min(m, n)]`."""
    rows, columns = a.shape[-2:]
    row, column = aten.unsqueeze(line(rows, a), 1), line(columns, a)
    none = aten.full([], -1.0, dtype=a.dtype, device=a.device)
    chosen = []
    for step in range(min(rows, columns)):
        size = aten.abs(aten.select.int(a, -1, step))
        size = aten.where.self(aten.ge.Scalar(line(rows, a), step), size, none)
        best = aten._to_copy(aten.argmax(size, -1, True), dtype=torch.int32)
        best = best if pivot else aten.full_like(best, step)
        chosen.append(best)
        a = _eliminate_one(exchanged(a, step, best) if pivot else a, step, row, column)
    if not chosen:
        return aten.clone(a), aten.full([*a.shape[:-2], 0], 0, dtype=torch.int32, device=a.device)
    return a, aten.cat(chosen, -1)


def exchanged(a: Tensor, step: int, other: Tensor) -> Tensor:
    """Rows `step` and `other` (int32 `[..., 1]`) of `[..., m, n]` exchanged."""
    row = line(a.shape[-2], a)
    mine = aten.full([], step, dtype=torch.int32, device=a.device)
    order = aten.where.self(aten.eq.Tensor(row, other), mine, row)
    order = aten.where.self(aten.eq.Scalar(row, step), other, order)
    index = aten._to_copy(aten.expand(aten.unsqueeze(order, -1), list(a.shape)), dtype=torch.int64)
    result: Tensor = aten.gather(a, -2, index)
    return result


def _eliminate_one(a: Tensor, step: int, row: Tensor, column: Tensor) -> Tensor:
    upper = aten.slice.Tensor(a, -2, step, step + 1)
    left = aten.slice.Tensor(a, -1, step, step + 1)
    pivot = aten.slice.Tensor(upper, -1, step, step + 1)
    pivot = aten.where.self(aten.eq.Scalar(pivot, 0), aten.full_like(pivot, 1), pivot)
    below, right = aten.gt.Scalar(row, step), aten.gt.Scalar(column, step)
    factor = aten.where.self(below, aten.div.Tensor(left, pivot), left)
    reduced = aten.sub.Tensor(a, aten.mul.Tensor(factor, upper))
    kept = aten.where.self(aten.eq.Scalar(column, step), factor, a)
    result: Tensor = aten.where.self(aten.logical_and(below, right), reduced, kept)
    return result


def order_of(exchanges: Tensor, rows: int) -> Tensor:
    """The row of the input that stands at each place after all exchanges, int32 `[..., rows, 1]`."""
    order: Tensor = aten.expand(aten.unsqueeze(line(rows, exchanges), 1), [*exchanges.shape[:-1], rows, 1])
    for step in range(exchanges.shape[-1]):
        order = exchanged(order, step, aten.slice.Tensor(exchanges, -1, step, step + 1))
    return order


def permutation(exchanges: Tensor, rows: int, like: Tensor) -> Tensor:
    """P of `A = P L U`."""
    order = aten.transpose.int(order_of(exchanges, rows), -2, -1)
    match = aten.eq.Tensor(aten.unsqueeze(line(rows, like), 1), order)
    result: Tensor = aten._to_copy(match, dtype=like.dtype)
    return result


def _taken(b: Tensor, order: Tensor) -> Tensor:
    index = aten._to_copy(aten.expand(order, list(b.shape)), dtype=torch.int64)
    result: Tensor = aten.gather(b, -2, index)
    return result


def solve_factored(lu: Tensor, exchanges: Tensor, b: Tensor, adjoint: bool = False) -> Tensor:
    """The x of `P L U x = b`, or of `(P L U)^T x = b`."""
    lu, b = broadcast_batch(lu, b)
    rows = lu.shape[-1]
    if not b.numel():
        empty: Tensor = aten.full(list(b.shape), 0, dtype=b.dtype, device=b.device)
        return empty
    order = aten.expand(order_of(exchanges, rows), [*lu.shape[:-2], rows, 1])
    if not adjoint:
        return substitute(lu, substitute(lu, _taken(b, order), upper=False, unit=True), upper=True)
    turned = transposed(lu)
    x = substitute(turned, substitute(turned, b, upper=False), upper=True, unit=True)
    match = aten.eq.Tensor(aten.unsqueeze(line(rows, lu), 1), aten.transpose.int(order, -2, -1))
    back = aten.argmax(aten._to_copy(match, dtype=torch.float32), -1, True)
    return _taken(x, back)


def diagonal(lu: Tensor) -> Tensor:
    """The diagonal `[..., min(m, n)]`, by a mask and a sum."""
    rows, columns = lu.shape[-2:]
    size = min(rows, columns)
    square = aten.slice.Tensor(aten.slice.Tensor(lu, -2, 0, size), -1, 0, size)
    on = aten.eq.Tensor(aten.unsqueeze(line(size, lu), 1), line(size, lu))
    kept = aten.where.self(on, square, aten.full([], 0, dtype=lu.dtype, device=lu.device))
    result: Tensor = aten.sum.dim_IntList(kept, [-1])
    return result


def failed(lu: Tensor) -> Tensor:
    """LAPACK's info: the number of the first step without a pivot, from 1, or 0; int32 `[...]`."""
    zero = aten.eq.Scalar(diagonal(lu), 0)
    size = zero.shape[-1]
    if not size:
        none: Tensor = aten.full(list(zero.shape[:-1]), 0, dtype=torch.int32, device=lu.device)
        return none
    step = aten.add.Tensor(line(size, lu), 1)
    found = aten.where.self(zero, step, aten.full([], size + 1, dtype=torch.int32, device=lu.device))
    first = aten.amin(found, [-1])
    result: Tensor = aten.where.self(
        aten.gt.Scalar(first, size), aten.full([], 0, dtype=torch.int32, device=lu.device), first
    )
    return result


def lu_factor(a: Tensor, *, pivot: bool = True, check_errors: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """LU, LAPACK's pivots and info."""
    lu, exchanges = eliminate(a, pivot)
    return lu, aten.add.Tensor(exchanges, 1), failed(lu)


def lu_unpack(
    lu: Tensor, pivots: Tensor, unpack_data: bool = True, unpack_pivots: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """P, L and U of a packed factorisation."""
    rows, columns = lu.shape[-2:]
    size = min(rows, columns)
    row, column = aten.unsqueeze(line(rows, lu), 1), line(columns, lu)
    zero = aten.full([], 0, dtype=lu.dtype, device=lu.device)
    empty = aten.full([0], 0, dtype=lu.dtype, device=lu.device)
    p = permutation(aten.add.Tensor(pivots, -1), rows, lu) if unpack_pivots else empty
    if not unpack_data:
        return p, empty, empty
    below = aten.where.self(aten.gt.Tensor(row, column), lu, zero)
    lower = aten.where.self(aten.eq.Tensor(row, column), aten.full([], 1, dtype=lu.dtype, device=lu.device), below)
    upper = aten.where.self(aten.gt.Tensor(row, column), zero, lu)
    return p, aten.clone(aten.slice.Tensor(lower, -1, 0, size)), aten.clone(aten.slice.Tensor(upper, -2, 0, size))


def lu_of(a: Tensor, *, pivot: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """P, L and U of a matrix; P is empty without pivoting."""
    lu, exchanges = eliminate(a, pivot)
    return lu_unpack(lu, aten.add.Tensor(exchanges, 1), True, pivot)


def lu_solve(lu: Tensor, pivots: Tensor, b: Tensor, *, left: bool = True, adjoint: bool = False) -> Tensor:
    """The x of `A x = b`, of `A^T x = b`, or the same from the right."""
    exchanges = aten.add.Tensor(pivots, -1)
    if left:
        return solve_factored(lu, exchanges, b, adjoint)
    return transposed(solve_factored(lu, exchanges, transposed(b), not adjoint))


def solve(
    a: Tensor, b: Tensor, *, left: bool = True, check_errors: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The x of `a x = b` or of `x a = b`, with LU, pivots and info."""
    vector = b.dim() == 1 or (a.dim() - 1 == b.dim() and b.shape == a.shape[:-1])
    matrix = aten.unsqueeze(b, -1) if vector else b
    lu, exchanges = eliminate(a)
    x = (
        solve_factored(lu, exchanges, matrix)
        if left
        else transposed(solve_factored(lu, exchanges, transposed(matrix), True))
    )
    return aten.squeeze.dim(x, -1) if vector else x, lu, aten.add.Tensor(exchanges, 1), failed(lu)


def inverse(a: Tensor, *, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    """The inverse and info."""
    lu, exchanges = eliminate(a)
    return solve_factored(lu, exchanges, identity(a, a.shape[-1])), failed(lu)


def _parity(exchanges: Tensor, like: Tensor) -> Tensor:
    same = aten.eq.Tensor(exchanges, line(exchanges.shape[-1], exchanges))
    one = aten.full([], 1, dtype=like.dtype, device=like.device)
    signs = aten.where.self(same, one, aten.mul.Tensor(one, -1))
    result: Tensor = aten.prod.dim_int(signs, -1)
    return result


def determinant(a: Tensor) -> tuple[Tensor]:
    """The determinant; its factors are not those of eager, which factors the transposed matrix."""
    lu, exchanges = eliminate(a)
    return (aten.mul.Tensor(aten.prod.dim_int(diagonal(lu), -1), _parity(exchanges, a)),)


def log_determinant(a: Tensor) -> tuple[Tensor, Tensor]:
    """The sign of the determinant and the logarithm of its size."""
    lu, exchanges = eliminate(a)
    pivots = diagonal(lu)
    sign = aten.mul.Tensor(aten.prod.dim_int(aten.sign(pivots), -1), _parity(exchanges, a))
    return sign, aten.sum.dim_IntList(aten.log(aten.abs(pivots)), [-1])


def _small(a: Tensor, *args: Any, **options: Any) -> str | None:
    return small(a)


def _rule(name: str, op: Any, rewrite: Any, cost: str) -> Rule:
    return Rule(name, (op,), rewrite, check=_small, numerics=Numerics.ROUNDING, cost=f"{cost}; at most 32 rows")


RULES = (
    _rule("lu-factor", aten.linalg_lu_factor_ex.default, lu_factor, "20 ops of the size of the matrix per column"),
    _rule("lu", aten.linalg_lu.default, lu_of, "20 ops of the size of the matrix per column"),
    _rule("lu-unpack", aten.lu_unpack.default, lu_unpack, "8 small ops per row"),
    _rule("lu-solve", aten.linalg_lu_solve.default, lu_solve, "20 small ops per row"),
    _rule("solve", aten._linalg_solve_ex.default, solve, "20 ops of the size of the matrix per column, 20 per row"),
    _rule("inverse", aten.linalg_inv_ex.default, inverse, "20 ops of the size of the matrix per column, 20 per row"),
    _rule("determinant", aten._linalg_det.default, determinant, "20 ops of the size of the matrix per column"),
    _rule("log-determinant", aten._linalg_slogdet.default, log_determinant, "20 ops of the matrix's size per column"),
)
