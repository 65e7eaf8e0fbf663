"""Counting by bins: the counts of PyTorch, exactly, edges included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

aten = torch.ops.aten


@given(data=st.data(), bins=st.integers(1, 9), low=st.integers(-3, 1), width=st.integers(0, 4))
def test_histc(
    data: st.DataObject, bins: int, low: int, width: int, same: Callable[..., None], tensors: Callable[..., Any]
) -> None:
    x = data.draw(tensors(wild=False, sizes=(0, 6)))
    same(aten.histc.default, x, bins, low, low + width)


@given(data=st.data(), bins=st.integers(1, 9), density=st.booleans(), weighted=st.booleans(), ranged=st.booleans())
def test_histogram(
    data: st.DataObject, bins: int, density: bool, weighted: bool, ranged: bool,
    same: Callable[..., None], tensors: Callable[..., Any],
) -> None:  # fmt: skip
    x = data.draw(tensors(wild=False, sizes=(1, 6))).contiguous()
    weight = x.abs() + 1 if weighted else None
    span = (-3.0, 2.5) if ranged else None
    same(aten.histogram.bin_ct, x, bins, range=span, weight=weight, density=density)


@given(data=st.data(), right=st.booleans(), out_int32=st.booleans())
def test_bucketize(
    data: st.DataObject, right: bool, out_int32: bool, same: Callable[..., None], tensors: Callable[..., Any]
) -> None:
    x = data.draw(tensors((torch.float32, torch.int64), rank=(0, 3)))
    same(aten.bucketize.Tensor, x, torch.tensor([-1, 0, 0, 2]).to(x.dtype), right=right, out_int32=out_int32)


@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=3), points=st.integers(1, 12), weighted=st.booleans())
def test_points(counts: list[int], points: int, weighted: bool, same: Callable[..., None]) -> None:
    x = torch.randn(points, len(counts), generator=torch.Generator().manual_seed(points))
    weight = x[:, 0].abs() if weighted else None
    same(aten._histogramdd_bin_edges.default, x, counts)
    same(aten._histogramdd_from_bin_cts.default, x, counts, weight=weight)
