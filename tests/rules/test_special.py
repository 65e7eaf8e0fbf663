"""Bessel functions and the normal quantile in float32: the whole line, ends and poles; polynomials against their functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.rules import special
from gaudicc.rules.chebyshev import piece
from gaudicc.rules.rule import Rule

LINE = torch.cat([torch.linspace(-20, 20, 1001), torch.logspace(-6, 2, 300), -torch.logspace(-6, 2, 100)])
ENDS = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-30, -1.0, 8.0, 2.0])
UNIT = torch.cat([torch.linspace(0, 1, 1001), torch.logspace(-38, 0, 300), torch.tensor([-0.1, 1.1, math.nan])])


@pytest.mark.parametrize("rule", special.RULES, ids=lambda rule: rule.name)
def test_the_whole_line(rule: Rule) -> None:
    x = UNIT if rule.name == "ndtri" else torch.cat([LINE, ENDS])
    torch.testing.assert_close(rule.rewrite(x), rule.ops[0](x), rtol=5e-6, atol=5e-6, equal_nan=True)


@pytest.mark.parametrize("name", ["bessel-j0", "i0e", "ndtri"])
@given(x=st.floats(-50, 50, width=32))
def test_anywhere(name: str, x: float) -> None:
    (rule,) = [rule for rule in special.RULES if rule.name == name]
    at = torch.tensor([abs(x) / 50 if name == "ndtri" else x])
    torch.testing.assert_close(rule.rewrite(at), rule.ops[0](at), rtol=2e-5, atol=1e-5, equal_nan=True)


@given(low=st.floats(-3, 1), width=st.floats(0.5, 4))
@pytest.mark.parametrize("function", [torch.exp, torch.sin, lambda x: x**3 - x])
def test_a_piece_is_its_function_and_no_longer_than_it_must_be(
    function: Callable[[torch.Tensor], torch.Tensor], low: float, width: float
) -> None:
    found = piece(function, low, low + width)
    x = torch.linspace(low, low + width, 50)
    scale = function(x).abs().max().item() + 1
    assert (found(x) - function(x)).abs().max().item() < 2e-5 * scale
    assert len(found.coefficients) < 20
