"""Order: stable sorts, integers of any size, modes and medians."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.errors import UnsupportedOpError

aten = torch.ops.aten
EXTREMES = [0, 1, -1, 2**31 - 1, -(2**31), 2**16, -(2**16), 65535, 7, 7]
INTEGERS = {torch.int32: EXTREMES, torch.int64: [*EXTREMES, 2**62, -(2**63), 2**40 + 1, 2**40]}


@given(data=st.data(), descending=st.booleans())
def test_stable_sort_of_floats(
    data: st.DataObject, descending: bool, same: Callable[..., None], tensors: Callable[..., Any]
) -> None:
    x = data.draw(tensors((torch.float32, torch.bfloat16), rank=(0, 3), sizes=(0, 7)))
    dim = data.draw(st.integers(-max(x.dim(), 1), max(x.dim(), 1) - 1))
    same(aten.sort.stable, x, stable=True, dim=dim, descending=descending)


@pytest.mark.parametrize("dtype", INTEGERS)
@given(data=st.data(), descending=st.booleans())
def test_sort_of_integers(dtype: torch.dtype, data: st.DataObject, descending: bool, same: Callable[..., None]) -> None:
    values = data.draw(st.lists(st.sampled_from(INTEGERS[dtype]), min_size=0, max_size=12))
    same(aten.sort.stable, torch.tensor(values, dtype=dtype), stable=True, descending=descending)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.bool])
def test_sort_of_bytes(dtype: torch.dtype, same: Callable[..., None]) -> None:
    x = torch.tensor([[3, 0, 127, 1], [-1, 5, -128, 5]]).to(dtype)
    same(aten.sort.stable, x, stable=True, dim=0)
    same(aten.sort.stable, x, stable=True, dim=1, descending=True)


@given(values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9, unique=True), largest=st.booleans())
def test_topk_of_integers(values: list[int], largest: bool, same: Callable[..., None]) -> None:
    same(aten.topk.default, torch.tensor(values, dtype=torch.int32), len(values) // 2, 0, largest)


@given(data=st.data(), keepdim=st.booleans())
def test_mode(data: st.DataObject, keepdim: bool, same: Callable[..., None], tensors: Callable[..., Any]) -> None:
    x = data.draw(tensors(rank=(0, 3), sizes=(1, 6), wild=False))
    same(aten.mode.default, x, data.draw(st.integers(-max(x.dim(), 1), max(x.dim(), 1) - 1)), keepdim)


@pytest.mark.parametrize("dtype", INTEGERS)
@given(data=st.data(), rows=st.integers(1, 3), keepdim=st.booleans(), turned=st.booleans())
def test_mode_of_integers(
    dtype: torch.dtype, data: st.DataObject, rows: int, keepdim: bool, turned: bool, same: Callable[..., None]
) -> None:
    values = data.draw(st.lists(st.sampled_from(INTEGERS[dtype]), min_size=rows * 5, max_size=rows * 5))
    x = torch.tensor(values, dtype=dtype).reshape(rows, 5)
    same(aten.mode.default, x.t() if turned else x, 0 if turned else 1, keepdim)


@given(data=st.data(), keepdim=st.booleans())
def test_nanmedian(data: st.DataObject, keepdim: bool, same: Callable[..., None], tensors: Callable[..., Any]) -> None:
    x = data.draw(tensors(rank=(1, 3), sizes=(1, 6)))
    dim = data.draw(st.integers(-x.dim(), x.dim() - 1))
    x = (
        x + torch.arange(x.shape[dim]).reshape([-1 if d == dim % x.dim() else 1 for d in range(x.dim())]) * 16
    )  # no ties
    same(aten.nanmedian.dim, x, dim, keepdim)
    same(aten.nanmedian.default, x)


def test_long_sorts_are_refused(legally: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedOpError, match="4096"):
        legally(lambda x: x.sort(stable=True)[0], torch.randn(5000))
