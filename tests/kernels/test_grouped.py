"""Experts by blocks: equal to one product a row for every routing, with few rows more than there are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.kernels import grouped_linear
from gaudicc.kernels.grouped import block_of, plain_grouped_linear


@given(data=st.data(), groups=st.integers(1, 6), width=st.integers(0, 4), out=st.integers(0, 5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_routing(data: st.DataObject, dtype: torch.dtype, groups: int, width: int, out: int) -> None:
    chosen = data.draw(st.lists(st.integers(0, groups - 1), max_size=30))
    group = torch.tensor(chosen, dtype=torch.int64)
    rows = torch.randint(-8, 9, (len(chosen), width)).to(dtype)
    weight = torch.randint(-8, 9, (groups, out, width)).to(dtype)
    products = [weight[index] @ row for row, index in zip(rows, chosen, strict=True)]
    expected = torch.stack(products) if products else rows.new_zeros(0, out)
    assert torch.equal(grouped_linear(rows, weight, group), expected)
    assert torch.equal(plain_grouped_linear(rows, weight, group), expected)


def test_an_expert_that_no_row_asks_for_is_not_read() -> None:
    weight = torch.randn(3, 2, 4)
    weight[1] = torch.nan
    rows, group = torch.randn(7, 4), torch.tensor([0, 2, 2, 0, 2, 2, 2])
    assert torch.isfinite(plain_grouped_linear(rows, weight, group)).all()


@given(rows=st.integers(1, 10_000), groups=st.integers(1, 256))
def test_work_and_copies_are_bounded(rows: int, groups: int) -> None:
    block = block_of(rows, groups)
    blocks = (rows + groups * (block - 1)) // block
    assert blocks * block <= rows + groups * (block - 1) < 2 * max(rows, groups)
    assert blocks <= max(rows, 3 * groups)
