"""Integers added up and compared by index: bitwise that of PyTorch, wrapping, repeated places and untouched entries included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

aten = torch.ops.aten
EXTREMES = [0, 1, -1, 7, 7, 2**31 - 1, -(2**31), 2**16, -(2**16), 65535]
VALUES = {torch.int32: EXTREMES, torch.int64: [*EXTREMES, 2**62, -(2**63), 2**40 + 1, 2**40]}
SHAPES = [(), (1,), (5,), (0,), (3, 4), (1, 4), (2, 0), (2, 3, 2)]


def drawn(data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    count = torch.Size(shape).numel()
    values = data.draw(st.lists(st.sampled_from(VALUES[dtype]), min_size=count, max_size=count))
    return torch.tensor(values, dtype=dtype).reshape(shape)


def scattered(data: st.DataObject, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """A tensor, a dim, an index no larger than the source, and a source that may be larger than the index."""
    x = drawn(data, shape, dtype)
    dim = data.draw(st.integers(-max(len(shape), 1), max(len(shape), 1) - 1))
    rows = shape[dim] if shape else 1
    smaller = tuple(data.draw(st.integers(0, size)) for size in shape)
    high = max(rows - 1, 0)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    index = torch.randint(0, high + 1, smaller if rows else tuple(0 for _ in shape), generator=generator)
    layout = data.draw(st.booleans())
    x = x.t() if layout and x.dim() == 2 and x.shape[0] == x.shape[1] else x
    return x, dim, index, drawn(data, shape, dtype)


@pytest.mark.parametrize("dtype", VALUES)
@given(data=st.data(), shape=st.sampled_from(SHAPES))
def test_sums(dtype: torch.dtype, data: st.DataObject, shape: tuple[int, ...], same: Callable[..., None]) -> None:
    same(aten.scatter_add.default, *scattered(data, shape, dtype))


@pytest.mark.parametrize("dtype", VALUES)
@given(
    data=st.data(),
    shape=st.sampled_from(SHAPES),
    reduce=st.sampled_from(["sum", "amax", "amin"]),
    include=st.booleans(),
)
def test_reductions(
    dtype: torch.dtype,
    data: st.DataObject,
    shape: tuple[int, ...],
    reduce: str,
    include: bool,
    same: Callable[..., None],
) -> None:
    same(aten.scatter_reduce.two, *scattered(data, shape, dtype), reduce, include_self=include)


@pytest.mark.parametrize("dtype", VALUES)
@given(data=st.data(), shape=st.sampled_from([(1,), (5,), (3, 4)]), accumulate=st.booleans())
def test_puts(
    dtype: torch.dtype, data: st.DataObject, shape: tuple[int, ...], accumulate: bool, same: Callable[..., None]
) -> None:
    x = drawn(data, shape, dtype)
    index = torch.tensor(data.draw(st.lists(st.integers(-x.numel(), x.numel() - 1), max_size=4)), dtype=torch.int64)
    if not accumulate:  # of several values for one place eager keeps any
        index = (index % x.numel()).unique() - x.numel()
    same(aten.put.default, x, index, drawn(data, tuple(index.shape), dtype), accumulate)


def test_through_the_whole_legalisation(legally: Callable[..., Any]) -> None:
    x, at = torch.tensor([[5, -3, 2], [9, 9, 1]]), torch.tensor([[0, 1, 1], [0, 0, 1]])
    for reduce in ("sum", "amax", "amin"):
        (ours,) = legally(lambda x, at, how=reduce: x.scatter_reduce(0, at, x * 3, how, include_self=False), x, at)
        assert torch.equal(ours, x.scatter_reduce(0, at, x * 3, reduce, include_self=False))
