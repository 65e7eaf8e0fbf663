"""Integers over padded dims: filled with what fits 32 bits, and right to both ends of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

import gaudicc
from gaudicc.errors import ModelRaisedError

ENDS = ((-9, 9), (3, 5), (-4, -2), (-(2**31), -(2**31) + 2), (2**31 - 3, 2**31))


def extremes(x: Tensor) -> tuple[Tensor, ...]:
    values, places = x.max(1)
    ordered, order = x.sort(dim=1, stable=True)
    found = torch.searchsorted(ordered, x[:, :1].contiguous(), right=True)
    largest = x.topk(1, 1).values
    return x.amax(1), x.amin(1), values, places, ordered, order, x.argmin(1), largest, x.max(), x.min(), found


@pytest.fixture(scope="module")
def compiled() -> Any:
    sizes = {"x": {1: Dim("n", min=1, max=16)}}
    example = (torch.randint(-9, 9, (2, 5)),)
    return gaudicc.compile(extremes, example, dynamic_shapes=sizes, buckets=[{"n": 16}], verify="poison")


@pytest.mark.parametrize("ends", ENDS)
def test_as_in_eager_at_every_length(compiled: Any, ends: tuple[int, int]) -> None:
    for size in (1, 2, 5, 15, 16):
        x = torch.randint(*ends, (2, size), generator=torch.Generator().manual_seed(size))
        assert all(torch.equal(a, b) for a, b in zip(compiled(x), extremes(x), strict=True))


def test_no_constant_leaves_32_bits(compiled: Any) -> None:
    graph = compiled.graph({"n": 16})
    numbers = [arg for node in graph.graph.nodes for arg in node.args if isinstance(arg, int)]
    held = [tensor for tensor in dict(graph.named_buffers()).values() if tensor.dtype is torch.int64]
    assert all(abs(number) < 2**31 for number in numbers)
    assert all(tensor.abs().max() < 2**31 for tensor in held if tensor.numel())


def most_marked(x: Tensor) -> Tensor:
    return (x > 0).sum(1).max()


def test_a_size_that_may_be_zero_has_buckets() -> None:
    compiled = gaudicc.compile(most_marked, (torch.randn(2, 5),), dynamic_shapes={"x": {0: Dim("n", min=0, max=8)}})
    for size in (1, 3, 8):
        x = torch.randn(size, 5)
        assert torch.equal(compiled(x), most_marked(x))
    with pytest.raises(ModelRaisedError, match="numel\\(\\) == 0"):
        compiled(torch.randn(0, 5))
