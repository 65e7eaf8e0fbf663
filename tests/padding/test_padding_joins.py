"""Concatenations of parts that were split differently, and bodies that are given all results of an op at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import gaudicc

SIZES = (1, 3, 5, 8)
ROWS = {0: Dim("n", min=1, max=8)}


def check(model: Callable[..., Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    """Compares a poisoned bucket with eager at several numbers of rows."""

    def inputs(rows: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn(rows, *shape) for shape in shapes.values())

    compiled = gaudicc.compile(
        model,
        inputs(3),
        dynamic_shapes=dict.fromkeys(shapes, ROWS),
        buckets=[{"n": 4}, {"n": 8}],
        verify="poison",
        device="cpu",
    )
    for given in map(inputs, SIZES):
        torch.testing.assert_close(compiled(*given), model(*given))


@pytest.mark.parametrize("first", [True, False])
def test_a_dim_of_two_factors_beside_the_same_dim_of_one(first: bool) -> None:
    def model(tiles: Tensor, rows: Tensor) -> Tensor:
        parts = [tiles.reshape(tiles.shape[0], 16, 8), rows]
        return torch.cat(parts if first else parts[::-1], -1)

    check(model, {"tiles": (4, 4, 8), "rows": (16, 2)})


def test_rows_of_two_factors_beside_rows_of_one() -> None:
    def model(tiles: Tensor, rows: Tensor) -> Tensor:
        both = torch.cat([tiles.flatten(0, 1), rows.repeat_interleave(4, 0)], -1)
        return both.exp().sum(-1)

    check(model, {"tiles": (4, 8), "rows": (2,)})


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.query, self.both = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 16)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        normed = self.norm(x)
        keys, values = self.both(torch.cat([normed, context], 1)).chunk(2, -1)
        mixed: Tensor = torch.softmax(self.query(normed) @ keys.mT, -1) @ values
        return mixed + x


class TwoLayers(nn.Module):
    """The norm of each layer lies outside the body that both share, which is given its three results."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.token = nn.ModuleList([Layer(), Layer()]), nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, context: Tensor) -> Tensor:
        x = self.token.expand(context.shape[0], 1, 8)
        for layer in self.layers:
            x = layer(x, context)
        return x[:, 0]


def test_a_body_is_given_all_results_of_an_op() -> None:
    check(TwoLayers().eval(), {"context": (5, 8)})
