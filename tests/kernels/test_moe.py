"""A mixture of experts: the sum over a token's experts, for every routing; its plain form is the same sum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.kernels import moe
from gaudicc.kernels.moe import ACTIVATIONS, plain_moe


@given(data=st.data(), experts=st.integers(1, 5), chosen=st.integers(1, 3), tokens=st.integers(0, 6))
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_routing(data: st.DataObject, activation: str, experts: int, chosen: int, tokens: int) -> None:
    picked = st.lists(st.integers(0, experts - 1), min_size=tokens * chosen, max_size=tokens * chosen)
    table = torch.tensor(data.draw(picked), dtype=torch.int64).reshape(tokens, chosen)
    x, weights = torch.randn(tokens, 4), torch.rand(tokens, chosen)
    gate_up, down = torch.randn(experts, 6, 4), torch.randn(experts, 4, 3)
    expected = torch.zeros(tokens, 4)
    for token in range(tokens):
        for slot in range(chosen):
            gate, up = (gate_up[table[token, slot]] @ x[token]).chunk(2)
            inner = ACTIVATIONS[activation](gate) * up
            expected[token] += weights[token, slot] * (down[table[token, slot]] @ inner)
    for function in (moe, plain_moe):
        found = function(x, table, weights, gate_up, down, activation)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_weights_of_another_dtype_are_rounded_at_the_end() -> None:
    x, table = torch.randn(3, 4).bfloat16(), torch.tensor([[0, 1], [1, 1], [0, 0]])
    gate_up, down = torch.randn(2, 6, 4).bfloat16(), torch.randn(2, 4, 3).bfloat16()
    found = [function(x, table, torch.rand(3, 2), gate_up, down, "silu") for function in (moe, plain_moe)]
    assert {each.dtype for each in found} == {torch.bfloat16}


def test_an_expert_that_no_token_asks_for_is_not_read() -> None:
    gate_up, down = torch.randn(3, 6, 4), torch.randn(3, 4, 3)
    gate_up[1], down[1] = torch.nan, torch.nan
    table = torch.tensor([[0, 2], [2, 0]])
    for function in (moe, plain_moe):
        assert torch.isfinite(function(torch.randn(2, 4), table, torch.rand(2, 2), gate_up, down, "silu")).all()
