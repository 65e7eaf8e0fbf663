"""Small systems: against LAPACK, batches and empty matrices included; permutations exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gaudicc.rules import elimination, reflections, triangular

aten = torch.ops.aten
BATCH = st.sampled_from([(), (2,), (1, 2), (0,)])


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def well(batch: tuple[int, ...], size: int, seed: int) -> Tensor:
    """A matrix that is far from singular but needs pivots: its rows are turned."""
    return (matrix(*batch, size, size, seed=seed) + 2 * size * torch.eye(size)).roll(1, -2)


@given(
    batch=BATCH,
    size=st.integers(0, 6),
    columns=st.integers(0, 3),
    upper=st.booleans(),
    left=st.booleans(),
    unit=st.booleans(),
)
def test_triangular(
    batch: tuple[int, ...], size: int, columns: int, upper: bool, left: bool, unit: bool, same: Callable[..., None]
) -> None:
    a = matrix(*batch, size, size) / 4 + 2 * torch.eye(size)
    b = matrix(*batch, size, columns) if left else matrix(*batch, columns, size)
    same(aten.linalg_solve_triangular.default, a, b, upper=upper, left=left, unitriangular=unit, scale=10)


@given(batch=BATCH, size=st.integers(1, 5), upper=st.booleans())
def test_cholesky(batch: tuple[int, ...], size: int, upper: bool, same: Callable[..., None]) -> None:
    a = matrix(*batch, size, size)
    factor = torch.linalg.cholesky(a @ a.mT + size * torch.eye(size), upper=upper)
    same(aten.cholesky_inverse.default, factor, upper, scale=20)
    same(aten.cholesky_solve.default, matrix(*batch, size, 2), factor, upper, scale=20)


@given(batch=BATCH, rows=st.integers(0, 5), columns=st.integers(0, 5), pivot=st.booleans())
def test_lu(batch: tuple[int, ...], rows: int, columns: int, pivot: bool) -> None:
    a = matrix(*batch, rows, columns) + (0 if pivot else 10 * torch.eye(rows, columns))
    lu, pivots, info = elimination.lu_factor(a, pivot=pivot)
    wanted = aten.linalg_lu_factor_ex(a) if pivot else None
    if wanted is not None:
        torch.testing.assert_close(lu, wanted[0], rtol=1e-3, atol=1e-4)
        assert torch.equal(pivots, wanted[1])
        assert torch.equal(info, wanted[2])
    p, lower, upper = elimination.lu_unpack(lu, pivots)
    torch.testing.assert_close(p @ lower @ upper, a, rtol=1e-4, atol=1e-4)


@given(batch=BATCH, size=st.integers(0, 6), seed=st.integers(0, 9), left=st.booleans(), vector=st.booleans())
def test_solve(batch: tuple[int, ...], size: int, seed: int, left: bool, vector: bool) -> None:
    a = well(batch, size, seed)
    b = matrix(*batch, size) if vector else matrix(*batch, size, 2) if left else matrix(*batch, 2, size)
    left = left or vector
    wanted = aten._linalg_solve_ex(a, b, left=left)[0]
    torch.testing.assert_close(elimination.solve(a, b, left=left)[0], wanted, rtol=1e-4, atol=1e-5)


@given(batch=BATCH, size=st.integers(0, 6), left=st.booleans(), adjoint=st.booleans())
def test_lu_solve(batch: tuple[int, ...], size: int, left: bool, adjoint: bool) -> None:
    lu, pivots = torch.linalg.lu_factor(well(batch, size, 0))
    b = matrix(*batch, size, 2) if left else matrix(*batch, 2, size)
    wanted = aten.linalg_lu_solve(lu, pivots, b, left=left, adjoint=adjoint)
    found = elimination.lu_solve(lu, pivots, b, left=left, adjoint=adjoint)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@given(batch=BATCH, size=st.integers(0, 6), seed=st.integers(0, 9))
def test_determinants_and_inverse(batch: tuple[int, ...], size: int, seed: int) -> None:
    a = well(batch, size, seed) / max(size, 1)
    torch.testing.assert_close(elimination.determinant(a)[0], torch.linalg.det(a), rtol=1e-4, atol=1e-4)
    sign, size_of = elimination.log_determinant(a)
    wanted = torch.linalg.slogdet(a)
    assert torch.equal(sign, wanted[0])
    torch.testing.assert_close(size_of, wanted[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(elimination.inverse(a)[0], torch.linalg.inv(a), rtol=1e-4, atol=1e-4)


def test_a_singular_matrix_says_so() -> None:
    a = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    assert elimination.determinant(a)[0] == 0
    assert elimination.failed(elimination.eliminate(a)[0]) == 2
    assert elimination.log_determinant(a)[1] == float("-inf")
    assert not elimination.inverse(a)[0].isfinite().all()


@pytest.mark.parametrize("mode", ["reduced", "complete", "r"])
@given(batch=BATCH, rows=st.integers(0, 5), columns=st.integers(0, 5))
def test_qr(mode: str, batch: tuple[int, ...], rows: int, columns: int) -> None:
    a = matrix(*batch, rows, columns)
    for found, wanted in zip(reflections.qr(a, mode), aten.linalg_qr(a, mode), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@given(rows=st.integers(1, 5), columns=st.integers(1, 5), left=st.booleans(), transpose=st.booleans())
def test_reflections(rows: int, columns: int, left: bool, transpose: bool) -> None:
    a = matrix(rows, columns)
    packed, taus = reflections.factor(a)
    for found, wanted in zip((packed, taus), torch.geqrf(a), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    c = matrix(rows, 3) if left else matrix(3, rows)
    wanted = torch.ormqr(packed, taus, c, left, transpose)
    torch.testing.assert_close(reflections.ormqr(packed, taus, c, left, transpose), wanted, rtol=1e-4, atol=1e-5)
    if rows >= columns:
        wanted = torch.linalg.householder_product(packed, taus)
        torch.testing.assert_close(reflections.product(packed, taus), wanted, rtol=1e-4, atol=1e-5)


def test_a_column_that_is_zero_below_the_diagonal_is_not_reflected() -> None:
    taus = reflections.factor(torch.triu(matrix(4, 4)))[1]
    assert torch.equal(taus, torch.zeros(4))


def test_large_matrices_are_refused() -> None:
    assert "more than 32" in str(triangular.small(torch.empty(33, 33)))
