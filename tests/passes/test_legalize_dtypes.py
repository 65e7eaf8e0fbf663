"""legalize-dtypes: complex tensors as pairs of reals, equal to what PyTorch computes on complex ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import gaudicc
from gaudicc.errors import UnsupportedOpError
from gaudicc.models import cuda_style_llm
from gaudicc.rules.complex_pairs import RULES, Pair

aten = torch.ops.aten
SPECIAL = [0.0, -0.0, 1.5, -2.0, 1e20, float("inf"), float("nan")]

# One call per rule, as a function of two complex tensors of shape [2, 3, 4] and a real one that broadcasts with them.
CALLS: dict[Any, Callable[[Any, Any, Tensor], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    aten.view_as_real.default: lambda a, b, r: ((a,), {}),
    aten.real.default: lambda a, b, r: ((a,), {}),
    aten.imag.default: lambda a, b, r: ((a,), {}),
    aten.complex.default: lambda a, b, r: ((r, r + 1), {}),
    aten.polar.default: lambda a, b, r: ((r, r + 1), {}),
    aten.abs.default: lambda a, b, r: ((a,), {}),
    aten.angle.default: lambda a, b, r: ((a,), {}),
    aten._conj.default: lambda a, b, r: ((a,), {}),
    aten._conj_physical.default: lambda a, b, r: ((a,), {}),
    aten.conj_physical.default: lambda a, b, r: ((a,), {}),
    aten.resolve_conj.default: lambda a, b, r: ((a,), {}),
    aten.alias.default: lambda a, b, r: ((a,), {}),
    aten.clone.default: lambda a, b, r: ((a,), {"memory_format": torch.contiguous_format}),
    aten._to_copy.default: lambda a, b, r: ((a,), {"dtype": torch.complex128}),
    aten.mul.Tensor: lambda a, b, r: ((a, b), {}),
    aten.mul.Scalar: lambda a, b, r: ((a, 1.5 - 2j), {}),
    aten.div.Tensor: lambda a, b, r: ((a, r), {}),
    aten.add.Tensor: lambda a, b, r: ((a, b), {"alpha": 2}),
    aten.sub.Tensor: lambda a, b, r: ((r, b), {}),
    aten.neg.default: lambda a, b, r: ((a,), {}),
    aten.exp.default: lambda a, b, r: ((a,), {}),
    aten.view.default: lambda a, b, r: ((a, [2, -1]), {}),
    aten._unsafe_view.default: lambda a, b, r: ((a, [6, 4]), {}),
    aten.reshape.default: lambda a, b, r: ((a, [4, 6]), {}),
    aten.expand.default: lambda a, b, r: ((a, [5, -1, 3, 4]), {}),
    aten.unsqueeze.default: lambda a, b, r: ((a, -1), {}),
    aten.squeeze.dim: lambda a, b, r: ((a, -2), {}),
    aten.select.int: lambda a, b, r: ((a, -1, 1), {}),
    aten.slice.Tensor: lambda a, b, r: ((a, -2, 1, 3), {}),
    aten.index_select.default: lambda a, b, r: ((a, -1, torch.tensor([3, 0])), {}),
    aten.transpose.int: lambda a, b, r: ((a, 0, -1), {}),
    aten.permute.default: lambda a, b, r: ((a, [-1, 0, 1]), {}),
    aten.index.Tensor: lambda a, b, r: ((a, [None, torch.tensor([2, 0])]), {}),
    aten.cat.default: lambda a, b, r: (([a, b], -1), {}),
    aten.sum.dim_IntList: lambda a, b, r: ((a, [-1]), {}),
}

# All others are bitwise equal, infinities and NaN included, of which a complex product has no one right answer.
ROUNDED = (
    aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.exp.default, aten.polar.default, aten.abs.default,
    aten.angle.default,
)  # fmt: skip


def test_every_rule_is_called() -> None:
    assert set(RULES) == {*CALLS, aten.view_as_complex.default}


def paired(value: Any) -> Any:
    if isinstance(value, list):
        return [paired(item) for item in value]
    return Pair(torch.view_as_real(value)) if isinstance(value, Tensor) and value.is_complex() else value


@pytest.mark.parametrize("op", CALLS, ids=str)
@given(data=st.data())
def test_pairs_compute_what_complex_tensors_do(op: Any, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    a, b = (torch.view_as_complex(torch.randn(2, 3, 4, 2, generator=generator)) for _ in range(2))
    real = torch.randn(3, 1, generator=generator)
    if op not in ROUNDED:
        real[0] = data.draw(st.sampled_from(SPECIAL))
        torch.view_as_real(a)[0, 0, 0] = torch.tensor([data.draw(st.sampled_from(SPECIAL)) for _ in range(2)])
    args, kwargs = CALLS[op](a, b, real)
    expected = op(*args, **kwargs)
    result = RULES[op](*(paired(arg) for arg in args), **kwargs)
    assert isinstance(result, Pair) == expected.is_complex()
    parts = torch.view_as_real(expected.resolve_conj()) if isinstance(result, Pair) else expected
    found = result.parts if isinstance(result, Pair) else result
    assert found.dtype == parts.dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if op in ROUNDED else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(found, parts, equal_nan=True, **tolerance)


class Rotary(nn.Module):
    """Complex RoPE in two identical layers, with a complex weight."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.register_buffer("frequencies", torch.polar(torch.ones(6, 4), torch.rand(6, 4)))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            paired_x = torch.view_as_complex(layer(x).unflatten(-1, (4, 2)))
            x = torch.view_as_real(paired_x * self.frequencies[: x.shape[1]]).flatten(-2)
        return x


def test_no_complex_value_is_left_and_results_are_equal() -> None:
    model, x = Rotary().eval(), torch.randn(2, 5, 8)
    compiled = gaudicc.compile(model, (x,), verify="numerics")
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-6, atol=1e-6)
    for _, module in compiled.static_program().graphs():
        values = [node.meta["val"] for node in module.graph.nodes if node.op in ("placeholder", "call_function")]
        assert not any(isinstance(value, Tensor) and value.is_complex() for value in values)


def test_loading_weights_afterwards_reaches_the_pairs() -> None:
    model, x = Rotary().eval(), torch.randn(2, 5, 8)
    compiled = gaudicc.compile(model, (x,))
    other = Rotary().eval()
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(compiled(x), other(x), rtol=1e-6, atol=1e-6)


def test_the_running_example_with_cache_compiles_and_equals_eager() -> None:
    model = cuda_style_llm.build("tiny")
    inputs = cuda_style_llm.example_inputs(model, batch=2, sequence=9)
    compiled = gaudicc.compile(model, inputs)
    with torch.no_grad():
        logits, cache = model(**inputs)
    got_logits, got_cache = compiled(**inputs)
    torch.testing.assert_close(got_logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got_cache, cache, rtol=1e-5, atol=1e-5)


class Complex(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda x: torch.view_as_real(torch.linalg.inv(torch.view_as_complex(x))), "no form on pairs"),
        (lambda x: torch.view_as_real(torch.view_as_complex(x) / torch.view_as_complex(x)), "divisor is complex"),
        (torch.view_as_complex, "result of the model is complex"),
    ],
)
def test_what_has_no_pairs_is_refused_with_its_line(function: Callable[..., Any], complaint: str) -> None:
    with pytest.raises(UnsupportedOpError, match=complaint) as caught:
        gaudicc.compile(Complex(function).eval(), (torch.randn(3, 3, 2),))
    assert "test_legalize_dtypes.py" in str(caught.value)


def test_complex_arguments_are_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="argument x is complex"):
        gaudicc.compile(Complex(torch.view_as_real).eval(), (torch.randn(3, 2, dtype=torch.complex64),))
