"""Distances between rows, as eager computes them: by differences, or by a matrix product for many rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

aten = torch.ops.aten
NORMS = st.sampled_from([0.0, 1.0, 2.0, 3.5, math.inf])


@given(
    p=NORMS,
    rows=st.integers(0, 4),
    others=st.integers(0, 4),
    width=st.integers(0, 3),
    batch=st.sampled_from([(), (2,)]),
)
def test_cdist(p: float, rows: int, others: int, width: int, batch: tuple[int, ...], same: Callable[..., None]) -> None:
    a = torch.randn(*batch, rows, width, generator=torch.Generator().manual_seed(0))
    b = torch.randn(*batch, others, width, generator=torch.Generator().manual_seed(1))
    same(aten._cdist_forward.default, a, b, p, None)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, math.inf])
def test_distances_of_what_is_no_number(p: float, same: Callable[..., None]) -> None:
    rows = torch.tensor(
        [[1.0, math.nan, math.inf], [1, 2, 3], [math.inf, -math.inf, 0], [-0.0, 0, 1e-40], [math.nan] * 3]
    )
    same(aten._cdist_forward.default, rows, rows.flip(1), p, None)
    same(aten._pdist_forward.default, rows, p)


def test_the_largest_difference_is_legal(legally: Callable[..., torch.Tensor]) -> None:
    rows = torch.tensor([[1.0, math.nan], [math.inf, 3]])
    for p in (0.0, math.inf):
        distances = legally(lambda x, p=p: torch.cdist(x, x, p=p), rows)
        torch.testing.assert_close(pytree.tree_leaves(distances)[0], torch.cdist(rows, rows, p=p), equal_nan=True)


@pytest.mark.parametrize("mode", [None, 1, 2])
def test_many_rows_are_compared_by_a_product(mode: int | None, same: Callable[..., None]) -> None:
    a = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(0))
    same(aten.cdist.default, a, a[:, :7] + 0.5, 2.0, mode, scale=10)


@given(p=NORMS, rows=st.integers(1, 5), width=st.integers(1, 3))
def test_pdist(p: float, rows: int, width: int, same: Callable[..., None]) -> None:
    same(aten._pdist_forward.default, torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)), p)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@given(p=st.sampled_from([1.0, 2.0, 3.0, math.inf]), data=st.data(), maxnorm=st.sampled_from([0.5, 2.0, 100.0]))
def test_renorm(
    dtype: torch.dtype, p: float, data: st.DataObject, maxnorm: float, same: Callable[..., None],
    tensors: Callable[..., st.SearchStrategy[torch.Tensor]],
) -> None:  # fmt: skip
    x = data.draw(tensors((dtype,), rank=(2, 3), sizes=(1, 4), wild=False))
    same(aten.renorm.default, x, p, data.draw(st.integers(0, x.dim() - 1)), maxnorm, scale=1000)
