"""Experts by blocks: equal to one product a row for every routing, with few rows more than there are."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.kernels import grouped, grouped_linear
from gaudicc.kernels.grouped import (
    OfBlocks,
    block_counts,
    block_of,
    multiplied,
    plain_experts,
    plain_grouped_linear,
)


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
    block, (own, more) = block_of(rows, groups), block_counts(rows, groups)
    assert rows <= (own + more) * block < 3 * max(rows, groups)
    assert more < 2 * groups or more == rows < groups


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_so_many_blocks_hold_every_routing(sizes: list[int]) -> None:
    rows, groups = max(sum(sizes), 1), len(sizes)
    block, (own, more) = block_of(rows, groups), block_counts(rows, groups)
    beside = [max(size - (block if own else 0), 0) for size in sizes]
    assert sum(-(-size // block) for size in beside) <= more


@given(data=st.data(), groups=st.integers(1, 5))
@pytest.mark.parametrize("turns", [1, 2, 4])
def test_what_is_done_to_blocks_is_done_to_rows(turns: int, data: st.DataObject, groups: int) -> None:
    """A table with one entry a group between two products, all blocks at once and in turns."""
    chosen = data.draw(st.lists(st.integers(0, groups - 1), min_size=1, max_size=30))
    group = torch.tensor(chosen, dtype=torch.int64)
    rows, first, last, bias = (
        torch.randint(-4, 5, size).float() for size in ((len(chosen), 3), (groups, 4, 3), (groups, 2, 4), (groups, 4))
    )

    def apply(blocks: torch.Tensor, of: OfBlocks) -> Iterator[torch.Tensor]:
        inner = multiplied(blocks, of(first)) + of(bias).unsqueeze(1)
        yield inner
        yield multiplied(inner.relu(), of(last))

    with patch.object(grouped, "_TURNS", ((1, turns),)):
        result = plain_experts(rows, group, groups, apply)
    inner = torch.stack([first[i] @ row + bias[i] for row, i in zip(rows, chosen, strict=True)]).relu()
    assert torch.equal(result, torch.stack([last[i] @ row for row, i in zip(inner, chosen, strict=True)]))
