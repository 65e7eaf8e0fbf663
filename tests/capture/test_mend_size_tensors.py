"""Sizes that a model computes with torch, as tensors of no dims: for every size, and on both sides of a branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.export import Dim

import gaudicc

FLAGS = ([0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1])


def in_chunks(x: Any) -> Any:
    count = torch.div(x.size(1), 4, rounding_mode="trunc")
    chunks = x.view(x.size(0), count, 4)
    assert list(chunks.size()) == [x.size(0), count, 4]
    if x.sum() > 0:
        chunks = chunks + x.new_ones((x.size(0), count - 1 + 1, 4))
    halves = torch.floor_divide(count * 2, 2)
    return chunks.flatten(1).reshape(x.size(0), halves, 4)


def with_global_keys(x: Any, flags: Any) -> Any:
    """As longformer: scores of chosen keys stand before the others, and are cut off again."""
    chosen = flags > 0
    some = chosen.any().item()
    if some:
        most = chosen.long().sum()
        scores = torch.cat([x.new_ones(x.size(0), most), x], -1)
    else:
        scores = x
    scores = scores.softmax(-1)
    if some:
        first = scores.narrow(-1, 0, most)
        scores = scores.narrow(-1, most, scores.size(-1) - most) + first.sum(-1, keepdim=True)
        assert list(first.size()) == [x.size(0), most]
    return scores


def a_window(x: Any, flags: Any) -> Any:
    return x.narrow(1, (flags > 0).sum(), 2)


def up_to(x: Any, flags: Any) -> Any:
    return x.narrow(1, 0, (flags > 0).sum()) * 2


def test_a_size_that_torch_divides() -> None:
    length = 4 * Dim("length", min=1, max=8)
    x = torch.randn(2, 12)
    compiled = gaudicc.compile(in_chunks, (x,), dynamic_shapes={"x": {1: length}}, buckets=[{"x_1": 32}])
    for size in (4, 12, 32):
        for sign in (1, -1):
            x = torch.rand(2, size) * sign
            torch.testing.assert_close(compiled(x), in_chunks(x), rtol=0, atol=0)


@pytest.mark.parametrize("function", [with_global_keys, a_window, up_to])
def test_sizes_that_were_read(function: Callable[[Any, Any], Any]) -> None:
    compiled = gaudicc.compile(function, (torch.randn(2, 6), torch.tensor(FLAGS[2])))
    for flags in FLAGS:
        given = torch.randn(2, 6), torch.tensor(flags)
        torch.testing.assert_close(compiled(*given), function(*given))


def test_a_window_that_does_not_fit_raises() -> None:
    compiled = gaudicc.compile(a_window, (torch.randn(2, 5), torch.tensor(FLAGS[2])))
    for flags in FLAGS[:4]:
        given = torch.randn(2, 5), torch.tensor(flags)
        torch.testing.assert_close(compiled(*given), a_window(*given), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="exceeds"):
        compiled(torch.randn(2, 5), torch.tensor(FLAGS[4]))
