"""Sub-graphs of several layers on the emulated device: fewer launches, shared recipes, the same values."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

LAYERS = 5


class Layer(nn.Module):
    """A block with a cache, so that state is written inside a piece of several layers."""

    cache: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.register_buffer("cache", torch.zeros(6, 4))

    def forward(self, x: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.norm(self.linear(x)))
        self.cache.index_copy_(0, row, x)
        return x + self.cache.mean(0)


class Stack(nn.Module):
    """Nothing but layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, x: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, row)
        return x


@pytest.mark.parametrize(("layers", "launches", "recipes"), [(1, 5, 1), (2, 3, 2), (4, 2, 2), (5, 1, 1)])
def test_launches_and_recipes(mode: str, layers: int, launches: int, recipes: int) -> None:
    import gaudicc
    import gaudicc.emulator
    from gaudicc.emulator.ledger import Kind
    from gaudicc.passes import DEFAULT_PIPELINE
    from gaudicc.passes.partition_layers import PartitionLayers

    torch.manual_seed(0)
    model = Stack().eval()
    passes = [PartitionLayers(layers=layers) if isinstance(p, PartitionLayers) else p for p in DEFAULT_PIPELINE]
    inputs: tuple[Any, ...] = (torch.randn(1, 4), torch.tensor([1]))
    on_cpu = gaudicc.compile(model, inputs, device="cpu")
    account = gaudicc.emulator.account()
    compiled = gaudicc.compile(model, inputs, device="hpu", passes=passes)
    compiled.warm_up()
    assert account.count(Kind.COMPILE) == recipes
    account.clear()
    for row in (2, 4, 2):
        given = (torch.randn(1, 4), torch.tensor([row]))
        torch.testing.assert_close(compiled(*given), on_cpu(*given))
    assert account.count(Kind.COMPILE) == account.count(Kind.FALLBACK) == 0
    if mode == "lazy":
        told = {int(re.search(r"(\d+) sub-graphs", entry.what)[1]) for entry in account.entries(Kind.REPLAY)}  # type: ignore[index]
        assert told == {launches}
    else:
        assert account.count(Kind.HIT) >= 3 * launches
