"""The attention that transformers' models call, against its formula, head by head and query by query."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gaudicc.errors import UnsupportedInputError
from gaudicc.lm.attention import attention


def by_formula(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    batch, heads, queries, width = query.shape
    group = heads // key.shape[1]
    result = torch.zeros(batch, queries, heads, value.shape[3])
    for b, h, q in torch.cartesian_prod(*map(torch.arange, (batch, heads, queries))).tolist():
        scores = key[b, h // group] @ query[b, h, q] * width**-0.5
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = torch.exp(scores) * allowed[b, 0, q]
        total = weights.sum() + (0 if sinks is None else torch.exp(sinks[h]))
        result[b, q, h] = weights @ value[b, h // group] / total
    return result


@given(
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    queries=st.integers(1, 4),
    extra=st.integers(0, 3),
    softcap=st.sampled_from([None, 5.0]),
    sinks=st.booleans(),
    added=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_what_the_formula_says(
    batch: int,
    kv_heads: int,
    group: int,
    queries: int,
    extra: int,
    softcap: float | None,
    sinks: bool,
    added: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    heads, keys = kv_heads * group, queries + extra
    query = torch.randn(batch, heads, queries, 4, generator=generator)
    key, value = (torch.randn(batch, kv_heads, keys, width, generator=generator) for width in (4, 3))
    sink = torch.randn(heads, generator=generator) if sinks else None
    allowed = torch.rand(batch, 1, queries, keys, generator=generator) < 0.6
    allowed[..., 0] = True  # a row without any key has no defined result
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min) if added else allowed
    result, weights = attention(nn.Identity(), query, key, value, mask, softcap=softcap, s_aux=sink)
    assert weights is None
    torch.testing.assert_close(result, by_formula(query, key, value, allowed, softcap, sink), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part", ["position_bias", "head_mask"])
def test_a_part_that_is_not_known_is_refused_by_name(part: str) -> None:
    x = torch.zeros(1, 1, 1, 1)
    others: dict[str, Any] = {part: x}
    with pytest.raises(UnsupportedInputError, match=f"attention of Identity has a {part}"):
        attention(nn.Identity(), x, x, x, None, **others)
