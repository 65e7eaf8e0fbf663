"""Bags of embeddings: sums, means and maxima, empty bags and padding included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gaudicc
from gaudicc.errors import UnsupportedOpError
from gaudicc.rules.bags import embedding_bag

aten = torch.ops.aten


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4), mode=st.integers(0, 2), weighted=st.booleans(),
    last=st.booleans(), padding=st.sampled_from([-1, 2]),
)  # fmt: skip
def test_every_mode(dtype: torch.dtype, sizes: list[int], mode: int, weighted: bool, last: bool, padding: int) -> None:
    table = torch.randint(-8, 9, (6, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
    words = torch.randint(0, 6, (sum(sizes),), generator=torch.Generator().manual_seed(1))
    starts = torch.tensor([0, *sizes]).cumsum(0)[: None if last else -1]
    samples = torch.full((sum(sizes),), 0.5, dtype=dtype) if weighted and mode == 0 else None
    args = (table, words, starts, False, mode, False, samples, last, padding)
    torch.testing.assert_close(
        embedding_bag(*args)[0], aten._embedding_bag_forward_only(*args)[0], rtol=2e-2, atol=1e-5
    )


def test_only_the_bags_themselves_have_a_form(legally: Callable[..., Any]) -> None:
    table, words, starts = torch.randn(5, 2), torch.tensor([0, 4, 1]), torch.tensor([0, 2])
    with pytest.raises(UnsupportedOpError, match="result 2"):
        legally(lambda t, w, s: aten._embedding_bag_forward_only(t, w, s)[2], table, words, starts)


def test_what_is_not_read_of_them_needs_no_bound() -> None:
    """Places and sizes of bags are int64, and nobody knows what bounds them."""
    bag, words, starts = nn.EmbeddingBag(5, 3).eval(), torch.tensor([0, 4, 1]), torch.tensor([0, 2])
    compiled = gaudicc.compile(bag, (words, starts))
    torch.testing.assert_close(compiled(words, starts), bag(words, starts).detach())


def test_a_module_with_training_flags(legally: Callable[..., Any]) -> None:
    bag = nn.Embedding(5, 3, sparse=True, scale_grad_by_freq=True).eval()
    words = torch.tensor([[0, 4], [1, 1]])
    (found,) = legally(bag, words)
    assert torch.equal(found, bag(words).detach())
