"""triu_indices and tril_indices: the very numbers PyTorch gives, for any triangle of any matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.rules.index_generation import tril_indices, triu_indices

aten = torch.ops.aten
BOTH = [(aten.tril_indices.default, tril_indices), (aten.triu_indices.default, triu_indices)]
SIZE = st.integers(0, 9)


@pytest.mark.parametrize(("op", "rule"), BOTH, ids=["tril", "triu"])
@given(row=SIZE, col=SIZE, offset=st.integers(-11, 11), dtype=st.sampled_from([None, torch.int64, torch.int32]))
def test_bitwise_that_of_the_op(
    op: Any, rule: Callable[..., Any], row: int, col: int, offset: int, dtype: torch.dtype | None
) -> None:
    options = {} if dtype is None else {"dtype": dtype}
    expected = op(row, col, offset, **options)
    found = rule(row, col, offset, **options)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("op", "rule"), BOTH, ids=["tril", "triu"])
def test_every_option_of_the_schema_is_taken(op: Any, rule: Callable[..., Any]) -> None:
    options = {"dtype": torch.int32, "layout": torch.strided, "device": torch.device("cpu"), "pin_memory": False}
    assert torch.equal(rule(3, 4, 1, **options), op(3, 4, 1, **options))
    assert torch.equal(rule(3, 4), op(3, 4))


def test_no_square_root_of_an_integer_so_large_triangles_are_exact() -> None:
    """With float32 arithmetic row numbers would be wrong from about 2^24 entries on."""
    assert torch.equal(tril_indices(6000, 6000)[:, -3:], torch.tensor([[5999] * 3, [5997, 5998, 5999]]))
