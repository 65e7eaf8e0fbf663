"""Autocast baked in: `autocast=dtype` around the model, and regions of the model's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.capture import capture
from gaudicc.errors import InputError

BF16 = torch.bfloat16


class Layers(nn.Module):
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.add_(1)
        wide = self.norm(self.up(x))
        with torch.autocast("cpu", enabled=False):
            exact = wide.float() @ self.down.weight.t()
        return self.down(wide).softmax(-1), exact


class Region(Layers):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.autocast("cpu", BF16):
            low, exact = super().forward(x)
        return low.float() + 1, exact


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_compiled_model_casts_as_eager_does_under_autocast(size: int) -> None:
    model = Layers().eval()
    shapes = {"x": {0: Dim("n", min=1, max=8)}}
    compiled = gaudicc.compile(model, (torch.randn(3, 4),), dynamic_shapes=shapes, autocast=BF16)
    x = torch.randn(size, 4)
    with torch.no_grad(), torch.autocast("cpu", BF16):
        expected = model(x)
    assert [value.dtype for value in expected] == [BF16, torch.float32]
    assert_same(compiled(x), expected)
    assert "forward" not in vars(model)


@pytest.mark.parametrize("autocast", [None, BF16])
def test_a_region_of_the_models_own(autocast: torch.dtype | None) -> None:
    model = Region().eval()
    x = torch.randn(3, 4)
    compiled = gaudicc.compile(model, (x,), autocast=autocast)
    assert_same(compiled(x), model(x))


def test_a_function_and_a_forward_set_on_the_instance() -> None:
    def product(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    a, b = torch.randn(2, 3), torch.randn(3, 2)
    assert gaudicc.compile(product, (a, b), autocast=BF16)(a, b).dtype == BF16
    model: Any = nn.Linear(3, 2).eval()
    model.forward = own = lambda x: product(x, b)
    assert gaudicc.compile(model, (a,), autocast=BF16)(a).dtype == BF16
    assert vars(model)["forward"] is own


def test_an_exported_program_is_not_cast_anew() -> None:
    exported = torch.export.export(nn.Linear(3, 2).eval(), (torch.randn(2, 3),))
    with pytest.raises(InputError, match="cannot be cast anew"):
        capture(exported, autocast=BF16)


def test_a_dtype_that_autocast_does_not_know() -> None:
    with pytest.raises(InputError, match=r"autocast is torch\.float32"):
        capture(nn.Linear(3, 2).eval(), (torch.randn(2, 3),), autocast=torch.float32)


def test_a_transformers_model() -> None:
    pytest.importorskip("transformers", reason="needs gaudicc[models]")
    from gaudicc.models.transformers_models import build, example_inputs

    model = build("llama")
    inputs = example_inputs(model)
    with torch.no_grad(), torch.autocast("cpu", BF16):
        expected = model(**inputs).logits
    found = gaudicc.compile(model, inputs, autocast=BF16)(**inputs).logits
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2 * float(expected.abs().max()))
