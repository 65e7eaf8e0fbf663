"""Functions of floats, of integers: what eager computes after its own promotion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.rules import elementwise, gammas, polynomials, promotion, special

aten = torch.ops.aten
Tensors = Callable[..., st.SearchStrategy[torch.Tensor]]
DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
ONE = [rule.ops[0] for rule in (*special.RULES, *gammas.RULES) if rule.name != "polygamma"]
TWO = [rule.ops[0] for rule in polynomials.RULES]


@pytest.mark.parametrize("op", [*ONE, aten.angle.default], ids=str)
@given(data=st.data())
def test_of_one(op: Any, data: st.DataObject, same: Callable[..., None], tensors: Tensors) -> None:
    same(op, data.draw(tensors(DTYPES, rank=(0, 3), sizes=(0, 3))), scale=4)


@pytest.mark.parametrize("op", TWO, ids=str)
@given(data=st.data())
def test_of_a_degree(op: Any, data: st.DataObject, same: Callable[..., None], tensors: Tensors) -> None:
    degree = data.draw(tensors(DTYPES, rank=(1, 2), sizes=(0, 3)))
    same(op, degree, degree, scale=4)
    same(op, degree.float() / 4, degree, scale=4)


@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_softmax(data: st.DataObject, dtype: torch.dtype, same: Callable[..., None], tensors: Tensors) -> None:
    x = data.draw(tensors(DTYPES, rank=(1, 3), sizes=(0, 3)))
    same(aten.softmax.int, x, -1, dtype)
    same(aten.polygamma.default, 2, x)


@given(data=st.data())
def test_what_every_integer_is(data: st.DataObject, same: Callable[..., None], tensors: Tensors) -> None:
    x = data.draw(tensors(DTYPES[1:], rank=(0, 3), sizes=(0, 3)))
    for name in ("round", "floor", "ceil", "trunc", "isfinite"):
        same(getattr(aten, name).default, x)


def test_each_rule_is_tried_and_leaves_floats_alone() -> None:
    tried = {*ONE, *TWO, aten.angle.default, aten.softmax.int, aten.polygamma.default}
    assert {op for rule in promotion.RULES for op in rule.ops} == tried
    x = torch.ones(2)
    for rule in promotion.RULES:
        assert rule.check(x) if rule.ops[0] is not aten.softmax.int else rule.check(x, 0, torch.float32), rule.name
    rounding, finite = (rule for rule in elementwise.RULES if rule.name in ("integer-rounding", "integer-isfinite"))
    assert rounding.check(x)
    assert finite.check(x)


def test_through_the_whole_legalisation(legally: Callable[..., Any]) -> None:
    def function(x: torch.Tensor) -> Any:
        return torch.softmax(x, 0, dtype=torch.float32), x.angle(), torch.special.i0e(x), x.round(), x.isfinite()

    x = torch.tensor([[1, 0, 3], [-2, 2, 7]])
    for ours, theirs in zip(legally(function, x), function(x), strict=True):
        torch.testing.assert_close(ours, theirs)
