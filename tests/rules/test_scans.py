"""Running extremes: bitwise those of PyTorch, NaN and equal entries included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from gaudicc.rules.scans import RULES

aten = torch.ops.aten
DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.int32)


@pytest.mark.parametrize("op", [aten.cummax.default, aten.cummin.default])
@given(data=st.data())
def test_values_and_places(
    op: Any, data: st.DataObject, same: Callable[..., None], tensors: Callable[..., Any]
) -> None:
    x = data.draw(tensors(DTYPES, rank=(0, 3), sizes=(0, 9)))
    same(op, x, data.draw(st.integers(-max(x.dim(), 1), max(x.dim(), 1) - 1)))


@given(data=st.data(), dtype=st.sampled_from([None, torch.int32, torch.int64]))
def test_counts_of_flags(
    data: st.DataObject, dtype: Any, same: Callable[..., None], tensors: Callable[..., Any]
) -> None:
    x = data.draw(tensors((torch.bool, torch.int8), rank=(0, 3), sizes=(0, 9)))
    same(aten.cumsum.default, x, data.draw(st.integers(-max(x.dim(), 1), max(x.dim(), 1) - 1)), dtype=dtype)


def test_rounds_grow_with_the_logarithm() -> None:
    (cummax,) = [rule for rule in RULES if rule.name == "cummax"]
    graph = make_fx(cummax.rewrite)(torch.randn(1024), 0)
    assert sum(node.target is aten.cat.default for node in graph.graph.nodes) == 2 * 10
