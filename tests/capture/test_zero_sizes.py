"""A size of 0 at which the model raises in eager PyTorch is none of the compiled model: it computes nothing of pads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

import gaudicc
from gaudicc.capture import capture
from gaudicc.errors import ModelRaisedError, ShapeError

RAISING: dict[str, Callable[[Tensor], Any]] = {
    "max": lambda x: x.max(1).values,
    "max-of-all": lambda x: x.max(),
    "median": lambda x: x.median(1).values,
    "index-select": lambda x: x.index_select(1, torch.tensor([0])),
    "gather": lambda x: x.gather(1, torch.zeros(2, 1, 3, dtype=torch.int64)),
    "topk": lambda x: x.topk(1, 1).values,
    "conv": lambda x: F.conv1d(x.mT, torch.ones(3, 3, 3), padding=1),
}


@pytest.mark.parametrize("name", RAISING)
def test_where_eager_raises_so_does_the_compiled_model(name: str) -> None:
    model = RAISING[name]
    compiled = gaudicc.compile(
        model, (torch.randn(2, 5, 3),), dynamic_shapes={"x": {1: Dim("n", max=8)}}, buckets=[{"n": 8}], verify="poison"
    )
    for n in (1, 8):
        x = torch.randn(2, n, 3)
        torch.testing.assert_close(compiled(x), model(x))
    with pytest.raises((IndexError, RuntimeError)) as eager:
        model(torch.randn(2, 0, 3))
    with pytest.raises(ModelRaisedError, match=f"raises {type(eager.value).__name__} where n is 0"):
        compiled(torch.randn(2, 0, 3))
    with pytest.raises(ShapeError, match="n runs from 1 to 8"):
        compiled(torch.randn(2, 9, 3))


def test_a_size_of_0_that_eager_takes_stays() -> None:
    sizes = {"x": {0: Dim("b", max=4), 1: Dim("n", max=8)}}
    program = capture(RAISING["max"], (torch.randn(2, 5, 3),), dynamic_shapes=sizes)
    assert {dim.name: dim.low for dim in program.dimensions} == {"b": 0, "n": 1}
    compiled = gaudicc.compile(RAISING["max"], (torch.randn(2, 5, 3),), dynamic_shapes=sizes, on_miss="split")
    assert compiled(torch.zeros(0, 5, 3)).shape == (0, 3)


def test_a_recurrent_layer_without_a_least_length() -> None:
    layer = nn.LSTM(3, 4, batch_first=True).eval()
    compiled = gaudicc.compile(layer, (torch.randn(2, 5, 3),), dynamic_shapes={"input": {1: Dim("n", max=8)}})
    x = torch.randn(2, 1, 3)
    torch.testing.assert_close(compiled(x), layer(x))


def test_a_model_that_eager_cannot_run_keeps_its_sizes() -> None:
    def model(x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            raise RuntimeError("not here")
        return x.sum(1)

    program = capture(model, (torch.randn(2, 5),), dynamic_shapes={"x": {1: Dim("n", max=8)}})
    assert program.dimensions[0].low == 0
