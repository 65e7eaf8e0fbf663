"""Digamma and polygamma of float32: against PyTorch over the whole line, its poles and its ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.rules.gammas import LARGEST_ORDER, digamma, polygamma

aten = torch.ops.aten
LINE = torch.cat([torch.linspace(-9.3, 9.3, 601), torch.logspace(-4, 2, 300), -torch.logspace(-4, 1.2, 100)])
ENDS = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, -8.0, 0.5, -0.5, -1.5])


@pytest.mark.parametrize("n", range(LARGEST_ORDER + 1))
def test_every_order_on_the_whole_line(n: int) -> None:
    x = torch.cat([LINE, ENDS])
    torch.testing.assert_close(polygamma(n, x), aten.polygamma(n, x), rtol=1e-5, atol=5e-6, equal_nan=True)


@given(n=st.integers(2, LARGEST_ORDER), x=st.floats(-30, 30, width=32), shape=st.sampled_from([(), (0,), (1, 3)]))
def test_anywhere(n: int, x: float, shape: tuple[int, ...]) -> None:
    at = torch.full(shape, x)
    torch.testing.assert_close(polygamma(n, at), aten.polygamma(n, at), rtol=1e-4, atol=1e-5, equal_nan=True)


@given(x=st.floats(-50, 50, width=32))
def test_digamma_anywhere(x: float) -> None:
    at = torch.tensor([x])
    torch.testing.assert_close(digamma(at), aten.digamma(at), rtol=2e-5, atol=1e-5, equal_nan=True)


def test_strides_do_not_matter(same: Callable[..., None]) -> None:
    same(aten.polygamma.default, 3, LINE[:600].reshape(20, 30).t(), scale=1)
    same(aten.digamma.default, LINE[::7].expand(2, -1), scale=1)
