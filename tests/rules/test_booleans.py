"""Ops on flags: bitwise that of PyTorch, in any layout; what is added to flags may not make them numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

aten = torch.ops.aten
PAIRS = (
    aten.add.Tensor, aten.ge.Tensor, aten.gt.Tensor, aten.le.Tensor, aten.lt.Tensor, aten.ne.Tensor, aten.maximum.default,
    aten.minimum.default,
)  # fmt: skip
Tensors = Callable[..., st.SearchStrategy[torch.Tensor]]


@pytest.mark.parametrize("op", PAIRS, ids=str)
@given(data=st.data())
def test_two_of_them(op: Any, data: st.DataObject, same: Callable[..., None], tensors: Tensors) -> None:
    x = data.draw(tensors((torch.bool,), rank=(0, 3), sizes=(0, 3)))
    same(op, x, x.flip(0) if x.dim() else x)
    same(op, x, torch.tensor(True))


@pytest.mark.parametrize(
    "op", [aten.max.dim, aten.min.dim, aten.cummax.default, aten.cummin.default, aten.mode.default]
)
@given(data=st.data())
def test_along_a_dim(op: Any, data: st.DataObject, same: Callable[..., None], tensors: Tensors) -> None:
    x = data.draw(tensors((torch.bool,), rank=(1, 3), sizes=(1, 4)))
    same(op, x, data.draw(st.integers(-x.dim(), x.dim() - 1)))


@pytest.mark.parametrize("op", [aten.amax.default, aten.amin.default])
@given(data=st.data(), keepdim=st.booleans())
def test_over_dims(op: Any, data: st.DataObject, keepdim: bool, same: Callable[..., None], tensors: Tensors) -> None:
    x = data.draw(tensors((torch.bool,), rank=(1, 3), sizes=(1, 4)))
    same(op, x, sorted(data.draw(st.sets(st.integers(0, x.dim() - 1)))), keepdim)


@given(places=st.lists(st.integers(0, 2), min_size=4, max_size=4), accumulate=st.booleans())
def test_by_index(places: list[int], accumulate: bool, same: Callable[..., None]) -> None:
    x, index = torch.tensor([True, False, False]), torch.tensor(places)
    source = torch.tensor([False, True, False, False])
    same(aten.index_add.default, x, 0, index, source)
    same(aten.scatter_add.default, x, 0, index, source)
    same(aten.put.default, x, index.unique(), source[: len(index.unique())], accumulate)
    for reduce in ("amax", "amin"):
        same(aten.scatter_reduce.two, x, 0, index, source, reduce, include_self=accumulate)


def test_through_the_whole_legalisation(legally: Callable[..., Any]) -> None:
    x = torch.tensor([[True, False], [False, True]])
    ours = legally(lambda x: (x != x.t(), torch.maximum(x, x.t()), x + x.flip(0), x.amax(1), x.sign()), x)
    theirs = (x != x.t(), torch.maximum(x, x.t()), x + x.flip(0), x.amax(1), x.sign())
    assert all(torch.equal(left, right) for left, right in zip(ours, theirs, strict=True))
