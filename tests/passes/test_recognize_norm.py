"""recognize-norm: the forms of Llama, Gemma and T5, bit for bit, and what only looks like them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from gaudicc.capture import capture
from gaudicc.nodes import op_name
from gaudicc.passes.recognize_norm import RecognizeNorm
from gaudicc.program import Program

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def norms(program: Program) -> list[tuple[float, bool]]:
    """The epsilon of each norm op, and whether the weight comes before rounding."""
    nodes: list[fx.Node] = [node for _, module in program.graphs() for node in module.graph.nodes]
    return [node.args[2:] for node in nodes if op_name(node) == "gaudicc.rms_norm"]  # type: ignore[misc]


def llama(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(F32)
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * normed.to(x.dtype)


def gemma(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (normed * (1.0 + weight.float())).type_as(x)


def t5(x: Tensor, weight: Tensor) -> Tensor:
    variance = x.to(F32).pow(2).mean(-1, keepdim=True)
    return weight * (x * torch.rsqrt(variance + 1e-6)).to(weight.dtype)


def test_before_and_after(capture_of: Any, alone: Any, text_of: Any) -> None:
    after, _ = alone(
        RecognizeNorm(), capture_of(llama, torch.randn(2, 8, dtype=BF16), weight=torch.ones(8, dtype=BF16))
    )
    assert_expected_inline(
        text_of(after),
        """\
graph root:
  %p_weight: bf16[8] = weight weight
  %x: bf16[2, 8] = input x
  %0: bf16[2, 8] = gaudicc.rms_norm(%x, %p_weight, 1e-06, False)
  return (%0)
""",
    )


@given(data=st.data())
@pytest.mark.parametrize("form", [llama, gemma, t5])
def test_values_are_kept(
    form: Callable[[Tensor, Tensor], Tensor], data: st.DataObject, capture_of: Any, alone: Any
) -> None:
    shape = data.draw(st.lists(st.integers(0, 3), max_size=2).map(lambda sizes: [*sizes, 5]))
    dtype = data.draw(st.sampled_from([F32, BF16, F16]))
    x = torch.randn(shape).mul(data.draw(st.sampled_from([1e-4, 1.0, 1e3]))).to(dtype)
    if x.numel():
        x.view(-1)[0] = data.draw(st.sampled_from([0.0, -0.0, 1.0, float("inf"), float("nan")]))
    program = capture_of(form, x, weight=torch.randn(shape[-1]).to(dtype))
    after, record = alone(RecognizeNorm(), program)
    before_rounding = form is gemma and dtype is not F32
    assert norms(after) == [(1e-6, before_rounding)]
    assert not record.notes
    _, record = alone(RecognizeNorm(), after)
    assert not record.modified


def mean_square(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True)


NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "product": lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6),
    "square": lambda x: x * torch.rsqrt(torch.square(x).mean(-1, keepdim=True) + 1e-6),
    "sum": lambda x: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + 1e-6),
    "quotient": lambda x: x / torch.sqrt(mean_square(x) + 1e-6),
    "reciprocal": lambda x: x * torch.sqrt(mean_square(x) + 1e-6).reciprocal(),
    "one over": lambda x: x * (1.0 / torch.sqrt(mean_square(x) + 1e-6)),
    "power": lambda x: x * (mean_square(x) + 1e-6) ** -0.5,
    "squared norm": lambda x: x * torch.rsqrt(x.norm(2, -1, keepdim=True) ** 2 / x.shape[-1] + 1e-6),
    "epsilon first": lambda x: torch.rsqrt(1e-6 + mean_square(x)) * x,
}


@settings(max_examples=6)
@given(data=st.data())
@pytest.mark.parametrize("form", NORMS)
def test_ways_to_write_it(form: str, data: st.DataObject, capture_of: Any, alone: Any) -> None:
    def model(x: Tensor, weight: Tensor) -> Tensor:
        return weight * NORMS[form](x.to(F32)).to(x.dtype)

    shape = data.draw(st.lists(st.integers(0, 3), max_size=2).map(lambda sizes: [*sizes, 5]))
    x = torch.randn(shape).to(data.draw(st.sampled_from([F32, BF16, F16])))
    if x.numel():
        x.view(-1)[0] = data.draw(st.sampled_from([0.0, 100.0, float("inf"), float("nan")]))
    after, record = alone(RecognizeNorm(), capture_of(model, x, weight=torch.randn(5).to(x.dtype)))
    assert norms(after) == [(1e-6, False)]
    assert not record.notes


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("eps", [1e-5, None])
def test_the_op_of_pytorch(dtype: torch.dtype, eps: float | None, capture_of: Any, alone: Any) -> None:
    program = capture_of(
        lambda x, weight: torch.nn.functional.rms_norm(x, (5,), weight, eps),
        (torch.randn(2, 3, 5) * 1e-3).to(dtype), weight=torch.rand(5).to(dtype),
    )  # fmt: skip
    after, _ = alone(RecognizeNorm(), program)
    assert norms(after) == [(eps or torch.finfo(F32).eps, True)]


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def by_variance_and_mean(x: Tensor, variance: Tensor, mean: Tensor) -> Tensor:
    return (x - mean) / torch.sqrt(variance + 1e-5)


LAYER_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "square of the difference": lambda x: centred(x) / torch.sqrt(centred(x).pow(2).mean(-1, keepdim=True) + 1e-5),
    "one difference": lambda x: NORMS["product"](centred(x)),
    "variance": lambda x: centred(x) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5),
    "variance and mean": lambda x: by_variance_and_mean(x, *torch.var_mean(x, -1, correction=0, keepdim=True)),
    "squared deviation": lambda x: centred(x) * torch.rsqrt(x.std(-1, keepdim=True, unbiased=False).square() + 1e-5),
    "correction": lambda x: centred(x) / torch.sqrt(torch.var(x, -1, correction=0, keepdim=True) + 1e-5),
}


@pytest.mark.parametrize("form", LAYER_NORMS)
@pytest.mark.parametrize("special", [0.0, 1e3, float("inf"), float("nan")])
def test_layer_norms(form: str, special: float, capture_of: Any, alone: Any) -> None:
    def model(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return weight * LAYER_NORMS[form](x) + bias

    x = torch.randn(2, 3, 5)
    x[0, 0, 0] = special
    after, record = alone(RecognizeNorm(), capture_of(model, x, weight=torch.randn(5), bias=torch.randn(5)))
    assert after.count_ops() == {"aten.layer_norm": 1}
    assert not record.notes


@pytest.mark.parametrize(
    ("function", "ops"),
    [
        (lambda x, weight: LAYER_NORMS["variance"](x), {}),
        (lambda x, weight: LAYER_NORMS["variance"](x) * weight, {}),
        (lambda x, weight: weight * centred(x) / torch.sqrt(x.var(-1, False, keepdim=True) + 1e-5) + weight, {}),
        (lambda x, weight: weight * LAYER_NORMS["variance"](x.bfloat16().float()).bfloat16(), {"aten.mul.Tensor": 1}),
        (lambda x, weight: (weight * LAYER_NORMS["one difference"](x)).bfloat16() + weight, {"aten.add.Tensor": 1}),
    ],
    ids=["no weight", "no bias", "weight first", "weight of another dtype", "bias of another dtype"],
)
def test_layer_norms_of_which_parts_are_missing(
    function: Callable[..., Tensor], ops: dict[str, int], capture_of: Any, alone: Any
) -> None:
    after, record = alone(RecognizeNorm(), capture_of(function, torch.randn(3, 4), weight=torch.rand(4)))
    counts = {name: count for name, count in after.count_ops().items() if "to" not in name.split(".")[1]}
    assert counts == {"aten.layer_norm": 1, **ops}
    assert not record.notes


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(
    "function",
    [
        lambda x, weight: wide_norm(x.float()).to(x.dtype),
        lambda x, weight: wide_norm(x.float()),
        lambda x, weight: wide_norm(x.float()).to(x.dtype) * 2.0,
        lambda x, weight: wide_norm(x.float()).to(x.dtype) * weight[:1],
        lambda x, weight: wide_norm(x.float()).to(x.dtype) * weight[None],
        lambda x, weight: wide_norm(x.float()[:, :1]) * weight,
        lambda x, weight: wide_norm(x.float()).to(F16) * weight,
        lambda x, weight: torch.nn.functional.rms_norm(x, (4,)),
        lambda x, weight: weight.float() * x.float() * torch.rsqrt(mean_square(x.float()) + 1e-6),
        lambda x, weight: (weight.float() * x.float() * torch.rsqrt(mean_square(x.float()) + 1e-6)).to(x.dtype),
    ],
)
def test_weights_that_are_missing_or_none(
    function: Callable[..., Tensor], dtype: torch.dtype, capture_of: Any, alone: Any
) -> None:
    x = torch.tensor([[1.0, -2, 3, 0.1], [0, 0, 0, 0], [float("inf"), 1, 2, 3]]).to(dtype)
    after, record = alone(RecognizeNorm(), capture_of(function, x, weight=torch.tensor([1.0, -0.0, 2, 3]).to(dtype)))
    assert len(norms(after)) == 1
    assert "aten.rsqrt" not in after.count_ops()
    assert not record.notes


def wide_norm(x: Tensor, dims: Any = -1, eps: float = 1e-6, power: int = 2) -> Tensor:
    return x * torch.rsqrt(x.pow(power).mean(dims, keepdim=True) + eps)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, weight: wide_norm(x, 0) * weight, "mean is over"),
        (lambda x, weight: wide_norm(x, (0, 1)) * weight, "mean is over"),
        (lambda x, weight: wide_norm(x.double()) * weight, "statistics are torch.float64"),
        (lambda x, weight: wide_norm(x.bfloat16()) * weight, "statistics are torch.bfloat16"),
        (lambda x, weight: x * torch.rsqrt(x.pow(2).mean(-1, True, dtype=torch.float64) + 1e-6) * weight, "float64"),
        (lambda x, weight: weight * torch.rsqrt(x.pow(2).mean(-1, True) + 1e-6), "not multiplied with the input"),
        (lambda x, weight: (x + 1) * torch.rsqrt(x.pow(2).mean(-1, True) + 1e-6) * weight, "not multiplied"),
        (lambda x, weight: x * torch.rsqrt(mean_square(x)) * weight, "no epsilon"),
        (lambda x, weight: x / (torch.sqrt(mean_square(x)) + 1e-6) * weight, "no epsilon"),
        (lambda x, weight: centred(x) / torch.sqrt(x.var(-1, keepdim=True) + 1e-6) * weight, "one less than the size"),
        (lambda x, weight: x / torch.sqrt(x.var(-1, False, keepdim=True) + 1e-6) * weight, "input without the mean"),
        (lambda x, weight: centred(x) / torch.sqrt(x.var(0, False, keepdim=True) + 1e-6) * weight, "variance is over"),
        (lambda x, weight: x.sub(x.bfloat16().mean(-1, True)) / (x.var(-1, False, keepdim=True) + 1e-6).sqrt(), "the mean"),
        (lambda x, weight: x / (x.norm(2, -1, keepdim=True) * 0.5 + 1e-6) * weight, "before an epsilon"),
        (lambda x, weight: torch.nn.functional.normalize(x, dim=-1) * weight, "before an epsilon"),
        (lambda x, weight: weight * centred(x) / (x.std(-1, False, keepdim=True) + 1e-6), "before an epsilon"),
        (lambda x, weight: weight * centred(x) / (x.std(-1, keepdim=True) + 1e-6), "one less than the size"),
        (lambda x, weight: torch.nn.functional.rms_norm(x, (3, 4), x), "over 2 dims"),
        (lambda x, weight: torch.nn.functional.rms_norm(x.double(), (4,), weight.double()), "input is torch.float64"),
    ],
)  # fmt: skip
def test_near_misses_stay_and_are_noted(
    function: Callable[..., Tensor], reason: str, capture_of: Any, text_of: Any
) -> None:
    program = capture_of(function, torch.randn(3, 4), weight=torch.randn(4))
    before = text_of(program)
    result = RecognizeNorm().run(program)
    assert not result.modified
    assert text_of(result.program) == before
    (note,) = result.notes
    assert re.search(reason, note), note


@pytest.mark.parametrize(
    "function",
    [
        lambda x, weight: wide_norm(x, power=3) * weight,
        lambda x, weight: x * torch.rsqrt(torch.add(x.pow(2).mean(-1, True), 1e-6, alpha=2)) * weight,
        lambda x, weight: x * torch.rsqrt(x.pow(2).sum(-1, True) + 1e-6) * weight,
        lambda x, weight: torch.rsqrt(x.exp()) * weight,
    ],
    ids=["cubes", "epsilon twice", "sum", "rsqrt alone"],
)
def test_what_is_no_norm_at_all_stays(function: Callable[..., Tensor], capture_of: Any) -> None:
    result = RecognizeNorm().run(capture_of(function, torch.rand(3, 4), weight=torch.randn(4)))
    assert not result.modified
    assert not norms(result.program)


def test_a_cast_that_loses_digits_is_not_looked_through(capture_of: Any, alone: Any) -> None:
    program = capture_of(
        lambda x, weight: wide_norm(x.to(BF16).to(F32)) * weight, torch.randn(3, 4), weight=torch.randn(4)
    )
    after, _ = alone(RecognizeNorm(), program)
    assert "aten.to.dtype" in after.count_ops()


def test_integers_are_normalised_as_the_floats_they_become(capture_of: Any, alone: Any) -> None:
    program = capture_of(
        lambda x, weight: wide_norm(x.float()) * weight, torch.arange(12).view(3, 4), weight=torch.randn(4)
    )
    after, _ = alone(RecognizeNorm(), program)
    assert norms(after) == [(1e-6, False)]


def test_a_normed_value_that_is_read_twice_is_weighted_behind(capture_of: Any, alone: Any) -> None:
    def model(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        normed = wide_norm(x)
        return normed * weight, normed

    after, _ = alone(RecognizeNorm(), capture_of(model, torch.randn(3, 4), weight=torch.randn(4)))
    assert norms(after) == [(1e-6, False)]
    assert after.count_ops()["aten.mul.Tensor"] == 1


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(
    ("family", "count", "scale_first"), [("llama", 3, False), ("gemma3_text", 7, True), ("t5", 10, False)]
)
def test_the_forms_of_transformers(family: str, count: int, scale_first: bool, dtype: torch.dtype, alone: Any) -> None:
    pytest.importorskip("transformers", reason="needs gaudicc[models]")
    from gaudicc.models.transformers_models import build, example_inputs

    model: Any = build(family, dtype=dtype)
    after, record = alone(RecognizeNorm(), capture(model, example_inputs(model)))
    assert norms(after) == [(1e-6, scale_first and dtype is not F32)] * count
    assert "aten.rsqrt" not in after.count_ops()
    assert not record.notes
