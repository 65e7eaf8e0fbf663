"""Rules for QR of small static size, by Householder reflections as LAPACK's `geqrf` chooses them: one per column."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gaudicc.pipeline import Numerics
from gaudicc.rules.elimination import line
from gaudicc.rules.rule import Rule
from gaudicc.rules.triangular import identity, small, transposed

aten = torch.ops.aten


def factor(a: Tensor) -> tuple[Tensor, Tensor]:
    """R above and the reflections below the diagonal `[..., m, n]`, and their factors tau `[..., min(m, n)]`."""
    rows, columns = a.shape[-2:]
    row, column = aten.unsqueeze(line(rows, a), 1), line(columns, a)
    zero, one = (aten.full([], value, dtype=a.dtype, device=a.device) for value in (0.0, 1.0))
    taus = []
    for step in range(min(rows, columns)):
        below = aten.gt.Scalar(row, step)
        left = aten.slice.Tensor(a, -1, step, step + 1)
        alpha = aten.slice.Tensor(left, -2, step, step + 1)
        rest = aten.where.self(below, left, zero)
        length = aten.sum.dim_IntList(aten.mul.Tensor(rest, rest), [-2], True)
        flat = aten.eq.Scalar(length, 0)
        size = aten.sqrt(aten.add.Tensor(aten.mul.Tensor(alpha, alpha), length))
        beta = aten.where.self(aten.lt.Scalar(alpha, 0), size, aten.mul.Tensor(size, -1))
        beta = aten.where.self(flat, alpha, beta)
        divisor = aten.where.self(flat, one, aten.sub.Tensor(alpha, beta))
        tau = aten.where.self(
            flat, zero, aten.div.Tensor(aten.sub.Tensor(beta, alpha), aten.where.self(flat, one, beta))
        )
        v = aten.where.self(aten.eq.Scalar(row, step), one, aten.div.Tensor(rest, divisor))
        taus.append(aten.squeeze.dim(tau, -1))
        stored = aten.where.self(below, v, aten.where.self(aten.eq.Scalar(row, step), beta, left))
        right = aten.gt.Scalar(column, step)
        a = aten.where.self(right, reflect(a, v, tau), aten.where.self(aten.eq.Scalar(column, step), stored, a))
    if not taus:
        return aten.clone(a), aten.full([*a.shape[:-2], 0], 0, dtype=a.dtype, device=a.device)
    return a, aten.cat(taus, -1)


def reflect(a: Tensor, v: Tensor, tau: Tensor) -> Tensor:
    """`a - tau v (v^T a)`."""
    along = torch.matmul(transposed(v), a)
    result: Tensor = aten.sub.Tensor(a, aten.mul.Tensor(aten.mul.Tensor(v, tau), along))
    return result


def apply(packed: Tensor, taus: Tensor, c: Tensor, *, turned: bool) -> Tensor:
    """`Q c`, or `Q^T c` if turned, of all reflections in `packed`."""
    count = taus.shape[-1]
    row = aten.unsqueeze(line(packed.shape[-2], packed), 1)
    zero, one = (aten.full([], value, dtype=packed.dtype, device=packed.device) for value in (0.0, 1.0))
    for step in range(count) if turned else reversed(range(count)):
        stored = aten.slice.Tensor(packed, -1, step, step + 1)
        v = aten.where.self(aten.gt.Scalar(row, step), stored, zero)
        v = aten.where.self(aten.eq.Scalar(row, step), one, v)
        tau = aten.unsqueeze(aten.slice.Tensor(taus, -1, step, step + 1), -1)
        c = reflect(c, v, tau)
    return c


def _columns_of_q(packed: Tensor, taus: Tensor, count: int) -> Tensor:
    rows = packed.shape[-2]
    start = aten.slice.Tensor(identity(packed, rows), -1, 0, count)
    start = aten.clone(aten.expand(start, [*packed.shape[:-2], rows, count]))
    return apply(packed, taus, start, turned=False)


def qr(a: Tensor, mode: str = "reduced") -> tuple[Tensor, Tensor]:
    """Q and R; Q is empty in mode `r`."""
    rows, columns = a.shape[-2:]
    packed, taus = factor(a)
    kept = rows if mode == "complete" else min(rows, columns)
    row, column = aten.unsqueeze(line(rows, a), 1), line(columns, a)
    upper = aten.where.self(aten.gt.Tensor(row, column), aten.full([], 0, dtype=a.dtype, device=a.device), packed)
    r = aten.clone(aten.slice.Tensor(upper, -2, 0, kept))
    if mode == "r":
        return aten.full([0], 0, dtype=a.dtype, device=a.device), r
    return _columns_of_q(packed, taus, kept), r


def product(packed: Tensor, taus: Tensor) -> Tensor:
    """`linalg.householder_product`: the first columns of Q, as many as the matrix has."""
    return _columns_of_q(packed, taus, packed.shape[-1])


def ormqr(packed: Tensor, taus: Tensor, c: Tensor, left: bool = True, transpose: bool = False) -> Tensor:
    """`Q c`, `Q^T c`, `c Q` or `c Q^T`."""
    if left:
        return apply(packed, taus, c, turned=transpose)
    return transposed(apply(packed, taus, transposed(c), turned=not transpose))


def _small(a: Tensor, *args: Any) -> str | None:
    return small(a)


def _rule(name: str, op: Any, rewrite: Any, cost: str) -> Rule:
    return Rule(name, (op,), rewrite, check=_small, numerics=Numerics.ROUNDING, cost=f"{cost}; at most 32 rows")


RULES = (
    _rule("qr", aten.linalg_qr.default, qr, "25 ops of the size of the matrix per column, 8 more for Q"),
    _rule("geqrf", aten.geqrf.default, factor, "25 ops of the size of the matrix per column"),
    _rule("householder-product", aten.linalg_householder_product.default, product, "8 ops of its size per column"),
    _rule("ormqr", aten.ormqr.default, ormqr, "8 ops of the size of the operand per column"),
)
