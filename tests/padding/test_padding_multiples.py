"""Sizes that are multiples: of a number, which the model asks for; of another size, which is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import gaudicc
from gaudicc.capture import capture
from gaudicc.errors import ModelRaisedError, ShapeError, UnsupportedInputError


class Blocks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights: torch.Tensor = x.unflatten(1, (-1, 4)).exp().sum(2).softmax(1)
        return weights


@pytest.mark.parametrize("size", [4 * Dim("n", min=1, max=8), Dim("x_1", min=4, max=32)])
def test_a_size_that_is_a_multiple(size: Any) -> None:
    model = Blocks().eval()
    buckets = [{"x_1": 16}, {"x_1": 32}]
    shapes = {"x": {1: size}}
    compiled = gaudicc.compile(model, (torch.randn(2, 12),), dynamic_shapes=shapes, buckets=buckets, verify="poison")
    assert any("poison run: 8 calls" in note for note in compiled.notes)
    for length in range(4, 33, 4):
        x = torch.randn(2, length)
        torch.testing.assert_close(compiled(x), model(x))
    with pytest.raises(ModelRaisedError, match="x_1 % 4"):
        compiled(torch.randn(2, 13))
    with pytest.raises(ShapeError, match="from 4 to 32"):
        compiled(torch.randn(2, 36))


def test_a_size_that_another_one_makes_is_refused() -> None:
    n = Dim("n", min=1, max=8)
    for size in (4 * n, Dim("m", min=4, max=32)):
        with pytest.raises(UnsupportedInputError, match="a sum or product with another"):
            gaudicc.compile(
                lambda x, y: x.repeat_interleave(4, 0) + y,
                (torch.randn(3), torch.randn(12)),
                dynamic_shapes={"x": {0: n}, "y": {0: size}},
            )


class Rounded(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        more = 4 - x.shape[1] % 4
        blocks = nn.functional.pad(x, (0, more)) * nn.functional.pad(mask, (0, more))
        return blocks.view(x.shape[0], -1, 4).sum(2)


def test_sizes_that_were_declared_equal_are_one_though_only_rounded_ones_meet() -> None:
    n = Dim("n", min=1, max=16)
    shapes = {"x": {1: n}, "mask": {1: n}}
    program = capture(Rounded().eval(), (torch.randn(2, 7), torch.ones(2, 7)), dynamic_shapes=shapes)
    assert [dim.positions for dim in program.dimensions] == [(("x", 1), ("mask", 1))]
