"""Pooling by windows of varying places: values and places, bitwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

aten = torch.ops.aten


@given(data=st.data(), dims=st.sampled_from([2, 3]))
def test_adaptive(data: st.DataObject, dims: int, same: Callable[..., None], tensors: Callable[..., Any]) -> None:
    x = data.draw(tensors(rank=(dims + 1, dims + 2), sizes=(1, 5)))
    parts = data.draw(st.lists(st.integers(1, 6), min_size=dims, max_size=dims))
    same({2: aten.adaptive_max_pool2d.default, 3: aten.adaptive_max_pool3d.default}[dims], x, parts)


@given(data=st.data(), rank=st.sampled_from([3, 4]))
def test_windows_as_columns(
    data: st.DataObject, rank: int, same: Callable[..., None], tensors: Callable[..., Any]
) -> None:
    x = data.draw(tensors(rank=(rank, rank), sizes=(1, 5)))
    kernel, dilation, stride = (data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=2)) for _ in range(3))
    reach = [step * (width - 1) + 1 for step, width in zip(dilation, kernel, strict=True)]
    padding = [
        data.draw(st.integers(max(0, -(-(wide - size) // 2)), 3))
        for wide, size in zip(reach, x.shape[-2:], strict=True)
    ]
    same(aten.im2col.default, x, kernel, dilation, padding, stride)


@given(data=st.data(), dims=st.sampled_from([2, 3]))
def test_fractional(data: st.DataObject, dims: int, same: Callable[..., None]) -> None:
    sizes = data.draw(st.lists(st.integers(3, 8), min_size=dims, max_size=dims))
    kernel = [data.draw(st.integers(1, size - 1)) for size in sizes]
    parts = [data.draw(st.integers(1, size - width)) for size, width in zip(sizes, kernel, strict=True)]
    x = torch.randn(2, 2, *sizes, generator=torch.Generator().manual_seed(0))
    samples = torch.rand(2, 2, dims, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 9))))
    op = {2: aten.fractional_max_pool2d.default, 3: aten.fractional_max_pool3d.default}[dims]
    same(op, x, kernel, parts, samples)
