"""Ops on bytes: bitwise that of PyTorch, what leaves the eight bits included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.rules import unsigned

aten = torch.ops.aten
BYTES = st.lists(st.integers(0, 255), min_size=3, max_size=3).map(lambda each: torch.tensor(each, dtype=torch.uint8))
PAIRS = [rule.ops[0] for rule in unsigned.RULES if rule.ops[0]._overloadname == "Tensor"]
WITH_NUMBER = [rule.ops[0] for rule in unsigned.RULES if rule.ops[0]._overloadname.endswith("Scalar")]
SHIFTS = {op for op in (*PAIRS, *WITH_NUMBER) if "shift" in str(op)}


@given(op=st.sampled_from(PAIRS), x=BYTES, y=BYTES)
def test_two_of_them(op: Any, x: torch.Tensor, y: torch.Tensor, same: Callable[..., None]) -> None:
    same(op, x, y % 40 if op in SHIFTS else y)
    same(op, x, y[:1])
    if op not in (aten.sub.Tensor, aten.rsub.Tensor):  # eager subtracts no flags
        same(op, x, y > 3)


@given(op=st.sampled_from(WITH_NUMBER), x=BYTES, number=st.integers(0, 255))
def test_with_a_number(op: Any, x: torch.Tensor, number: int, same: Callable[..., None]) -> None:
    same(op, x, number % 40 if op in SHIFTS else number)


@given(x=BYTES, y=BYTES, alpha=st.integers(-255, 255))
def test_alone_and_scaled(x: torch.Tensor, y: torch.Tensor, alpha: int, same: Callable[..., None]) -> None:
    same(aten.bitwise_not.default, x)
    for op in (aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor):
        same(op, x, y, alpha=alpha)
    for op in (aten.sub.Scalar, aten.rsub.Scalar):
        same(op, x, 200, alpha)
    same(aten.add.Tensor, x, 200)


@pytest.mark.parametrize("op", [aten.bitwise_and.Tensor, aten.add.Tensor, aten.__lshift__.Tensor])
def test_what_gives_no_bytes_has_no_rule(op: Any) -> None:
    (rule,) = [rule for rule in unsigned.RULES if op in rule.ops]
    x = torch.tensor([1, 2], dtype=torch.uint8)
    assert rule.check(x, x) is None
    assert rule.check(x, x.to(torch.int32)) == "it is no op on bytes"
    assert rule.check(x > 1, x > 1) == "it gives no bytes"


def test_through_the_whole_legalisation(legally: Callable[..., Any]) -> None:
    def packed(x: torch.Tensor) -> Any:
        low, high = x & 15, x >> 4
        return (low << 4) | high, ~x, x ^ high, x + x, x - low * 3, 7 - x

    x = torch.arange(256).to(torch.uint8)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(legally(packed, x), packed(x), strict=True))
