"""Writing into views: bitwise that of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

aten = torch.ops.aten
DTYPES = (torch.float32, torch.bfloat16, torch.int32, torch.bool)
BOUND = st.one_of(st.none(), st.integers(-6, 6))


@given(data=st.data(), start=BOUND, end=BOUND, step=st.integers(1, 7))
def test_into_a_slice(
    data: st.DataObject, start: Any, end: Any, step: int, same: Callable[..., None], tensors: Callable[..., Any]
) -> None:
    x = data.draw(tensors(DTYPES, sizes=(0, 6)))
    dim = data.draw(st.integers(-x.dim(), x.dim() - 1))
    view = aten.slice.Tensor(x, dim, start, end, step)
    same(aten.slice_scatter.default, x, view.flip(dim).clone(), dim, start, end, step)


@given(data=st.data())
def test_into_one_place(data: st.DataObject, same: Callable[..., None], tensors: Callable[..., Any]) -> None:
    x = data.draw(tensors(DTYPES, sizes=(1, 5)))
    dim = data.draw(st.integers(-x.dim(), x.dim() - 1))
    index = data.draw(st.integers(-x.shape[dim], x.shape[dim] - 1))
    same(aten.select_scatter.default, x, x.select(dim, 0).clone(), dim, index)


@given(data=st.data(), offset=st.integers(-3, 3))
def test_into_a_diagonal(
    data: st.DataObject, offset: int, same: Callable[..., None], tensors: Callable[..., Any]
) -> None:
    x = data.draw(tensors(DTYPES, rank=(2, 4), sizes=(1, 4)))
    one, two = data.draw(st.permutations(range(x.dim())))[:2]
    view = x.diagonal(offset, one, two)
    if view.numel():
        same(aten.diagonal_scatter.default, x, torch.ones_like(view), offset, one, two)


@given(size=st.tuples(st.integers(1, 3), st.integers(1, 3)), offset=st.integers(0, 4), turned=st.booleans())
def test_into_strided_memory(size: tuple[int, int], offset: int, turned: bool, same: Callable[..., None]) -> None:
    x = torch.arange(24.0).reshape(4, 6)
    stride = (1, 4) if turned else (6, 2)
    same(aten.as_strided_scatter.default, x, -torch.ones(size), list(size), list(stride), offset)
