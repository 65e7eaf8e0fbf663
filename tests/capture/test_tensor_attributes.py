"""Plain tensors of modules that forward writes to are state, as buffers are."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim

import gaudicc
from gaudicc.errors import UnsupportedInputError


class Layer(nn.Module):
    """With caches as llama has them."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = torch.zeros(4, 9)
        self.table = torch.randn(9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.cache = self.cache.to(x)
        rows, length = x.shape
        self.cache[:rows, 2 : 2 + length] = x
        return self.cache[:rows, : 2 + length].cumsum(1) + self.table[: 2 + length]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.layers
        out: torch.Tensor = first(x)[:, 2:] + second(x * 2)[:, :-2]
        return out


def test_caches_that_are_no_buffers() -> None:
    model = Model().eval()
    dims = {0: Dim("rows", min=1, max=4), 1: Dim("length", min=1, max=7)}
    buckets = [{"rows": 4, "length": 7}]
    held = [vars(layer)["cache"] for layer in model.layers]
    compiled = gaudicc.compile(model, (torch.randn(2, 5),), dynamic_shapes={"x": dims}, buckets=buckets)
    assert all(vars(layer)["cache"] is cache for layer, cache in zip(model.layers, held, strict=True))
    assert not any(layer._buffers for layer in model.layers)
    for shape in ((2, 5), (1, 1), (4, 7), (3, 2)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), model(x))


def test_what_no_module_holds_is_named() -> None:
    cache = torch.zeros(4)

    def model(x: torch.Tensor) -> torch.Tensor:
        cache[:2] = x
        return cache + 1

    with pytest.raises(UnsupportedInputError, match="does not hold as a buffer"):
        gaudicc.compile(model, (torch.randn(2),))
