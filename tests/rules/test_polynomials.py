"""Orthogonal polynomials: against PyTorch over degrees and arguments, at the ends, where they overflow, in any layout."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.rules.polynomials import HERMITE_LIMIT, RULES
from gaudicc.rules.rule import Rule

ids = [rule.name for rule in RULES]
LINE = torch.cat([torch.linspace(-3, 3, 301), torch.tensor([1.0, -1.0, 0.0, 0.5, 0.999, -0.999, 1.001, 9.0, -9.0])])
DEGREES = [*range(-2, 14), 20, 33, 7.9, -0.5, -math.inf]
LARGEST = torch.finfo(torch.float32).max


def agree(rule: Rule, x: torch.Tensor, n: torch.Tensor) -> None:
    """Equal to what the op gives, and to its float64 where the recurrence loses digits or is about to overflow."""
    ours, theirs, exact = rule.rewrite(x, n), rule.ops[0](x, n), rule.ops[0](x.double(), n.double())
    assert ours.shape == theirs.shape
    assert ours.dtype is torch.float32
    # Two degrees below infinity the recurrence in float32 meets infinity minus infinity; rounding decides in which.
    brink = exact.abs() > LARGEST / 1e3
    near = (ours - exact).abs() <= 1e-3 + 1e-3 * exact.abs()
    like = torch.isclose(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert bool((near | like | brink).all()), rule.name


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_every_degree_on_the_line(rule: Rule) -> None:
    degrees = torch.tensor([float(n) for n in DEGREES if math.isfinite(n)])
    agree(rule, LINE, degrees[:, None])


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_far_beyond_what_float32_holds_it_is_what_the_recurrence_gives(rule: Rule) -> None:
    x = torch.tensor([1e3, -1e3, 1e30, -1e30])
    n = torch.tensor([[60.0], [61.0], [127.0]])
    torch.testing.assert_close(rule.rewrite(x, n), rule.ops[0](x, n), equal_nan=True)


@pytest.mark.parametrize("rule", [rule for rule in RULES if "hermite" in rule.name], ids=lambda rule: rule.name)
def test_hermite_ends_at_its_limit(rule: Rule) -> None:
    x, n = torch.tensor([0.25]), torch.tensor([HERMITE_LIMIT + 1.0, HERMITE_LIMIT + 50.0])
    assert rule.rewrite(x, n).isnan().all()
    assert rule.ops[0](x, n).isnan().all()


@given(x=st.floats(-4, 4, width=32), n=st.integers(-1, 40), index=st.integers(0, len(RULES) - 1))
def test_anywhere(x: float, n: int, index: int) -> None:
    agree(RULES[index], torch.tensor([x]), torch.tensor([float(n)]))


@pytest.mark.parametrize("rule", RULES, ids=ids)
@given(data=st.data())
def test_shapes_are_broadcast_and_strides_do_not_matter(
    rule: Rule, data: st.DataObject, tensors: Callable[..., st.SearchStrategy[torch.Tensor]]
) -> None:
    x = data.draw(tensors(rank=(2, 2), sizes=(0, 3), wild=False))
    n = data.draw(tensors(rank=(1, 1), sizes=(1, 1), wild=False))
    agree(rule, x, n.abs())


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_what_is_no_number(rule: Rule) -> None:
    x, n = torch.tensor([math.nan, math.nan]), torch.tensor([0.0, 1.0])
    torch.testing.assert_close(rule.rewrite(x, n), rule.ops[0](x, n), equal_nan=True)
