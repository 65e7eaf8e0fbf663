"""Slices with a step: bitwise those of PyTorch, whatever the bounds, shape, dtype, strides and values."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gaudicc.rules.slicing import bounds, strided_slice
from gaudicc.verify import differs

aten = torch.ops.aten
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool]
SPECIAL = [0.0, -0.0, 1.5, float("inf"), float("-inf"), float("nan")]
BOUND = st.one_of(st.none(), st.integers(-12, 12), st.sampled_from([sys.maxsize, -sys.maxsize]))


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Up to three dims of 0 to 9, contiguous, transposed, expanded or with gaps."""
    shape = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    x = torch.randn([2 * size for size in shape], generator=torch.Generator().manual_seed(0)).mul(100).to(dtype)
    layout = draw(st.sampled_from(["contiguous", "transposed", "gaps", "expanded"]))
    if dtype.is_floating_point and x.numel():
        x.view(-1)[:: max(1, x.numel() // 7)] = draw(st.sampled_from(SPECIAL))
    if layout == "gaps":
        return x[tuple(slice(None, None, 2) for _ in shape)]
    x = x[tuple(slice(0, size) for size in shape)].contiguous()
    if layout == "expanded":
        return x[:1].expand(shape) if shape[0] else x
    return x.transpose(0, -1) if layout == "transposed" else x


@given(x=tensors(), start=BOUND, end=BOUND, step=st.integers(2, 11), data=st.data())
def test_bitwise_that_of_the_op(x: Tensor, start: int | None, end: int | None, step: int, data: st.DataObject) -> None:
    dim = data.draw(st.integers(-x.dim(), x.dim() - 1))
    expected = aten.slice.Tensor(x, dim, start, end, step)
    assert differs(expected, strided_slice(x, dim, start, end, step), bitwise=True) is None


@given(size=st.integers(0, 12), start=BOUND, end=BOUND)
def test_bounds_are_those_of_python(size: int, start: int | None, end: int | None) -> None:
    first, last = bounds(size, start, end)
    assert 0 <= first <= last <= size
    assert list(range(size))[first:last] == list(range(size))[start:end]


@pytest.mark.parametrize("start", range(4))
def test_where_whole_rows_fit_nothing_is_copied_before_the_view(start: int) -> None:
    """The slices of interleaved weights, `x[..., start::4]` of 4n columns, are views."""
    x = torch.randn(3, 8)
    found = strided_slice(x, 1, start, None, 4)
    assert found.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert torch.equal(found, x[:, start::4])


@given(size=st.integers(1, 40), step=st.integers(2, 6), start=st.integers(0, 39))
def test_at_most_one_short_row_is_completed(size: int, step: int, start: int) -> None:
    padded: list[int] = []

    class Widths(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is aten.cat.default:
                padded.append(result.shape[0] - size)
            return result

    with Widths():
        strided_slice(torch.arange(size), 0, start, None, step)
    assert all(0 < added < step for added in padded)
