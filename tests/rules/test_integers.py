"""Integer subtraction as addition: exact in two's complement, also where it wraps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gaudicc.rules.integers import reversed_subtract, subtract

aten = torch.ops.aten
DTYPES = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8]


@st.composite
def integers(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """Values all over the range, its ends among them."""
    dtype = draw(st.sampled_from(DTYPES))
    info = torch.iinfo(dtype)
    count = torch.Size(shape).numel()
    value = st.one_of(st.sampled_from([info.min, info.max, 0, 1]), st.integers(info.min, info.max))
    values = draw(st.lists(value, min_size=count, max_size=count))
    return torch.tensor(values, dtype=dtype).view(shape)


SHAPES = st.sampled_from([((2, 3), (2, 3)), ((2, 3), (3,)), ((1,), (2, 1)), ((), (3,)), ((0, 2), (1, 2)), ((), ())])


@given(data=st.data(), shapes=SHAPES, alpha=st.integers(-5, 5))
def test_tensors(data: st.DataObject, shapes: tuple[tuple[int, ...], tuple[int, ...]], alpha: int) -> None:
    x, y = (data.draw(integers(shape)) for shape in shapes)
    for op, rule in ((aten.sub.Tensor, subtract), (aten.rsub.Tensor, reversed_subtract)):
        expected, found = op(x, y, alpha=alpha), rule(x, y, alpha=alpha)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


@given(data=st.data(), scalar=st.integers(-100, 100), alpha=st.integers(-5, 5))
def test_scalars(data: st.DataObject, scalar: int, alpha: int) -> None:
    x = data.draw(integers((2, 2)))
    for op, rule in ((aten.sub.Scalar, subtract), (aten.rsub.Scalar, reversed_subtract)):
        expected, found = op(x, scalar, alpha), rule(x, scalar, alpha)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


@pytest.mark.parametrize("op", [aten.sub.Tensor, aten.sub.Scalar])
def test_layouts_do_not_matter(op: Any) -> None:
    x = torch.arange(12).view(3, 4).t()
    y: Any = x.flip(0) if op is aten.sub.Tensor else 5
    assert torch.equal(subtract(x, y), op(x, y))
