"""recognize-moe: experts as capture writes them, for every routing, and what only looks like them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from gaudicc.kernels import grouped_linear
from gaudicc.nodes import op_name
from gaudicc.passes.decompose import Decompose
from gaudicc.passes.recognize_moe import RecognizeMoe
from gaudicc.program import Program

Act = Callable[[Tensor], Tensor]
INPUTS = (torch.randn(5, 4), torch.tensor([[0, 1], [2, 2], [1, 0], [2, 0], [1, 1]]), torch.rand(5, 2))
WEIGHTS = {"gate_up": torch.randn(3, 6, 4), "down": torch.randn(3, 4, 3)}


def mixtures(program: Program) -> list[str]:
    """The activation of each mixture."""
    nodes = [node for _, module in program.graphs() for node in module.graph.nodes]
    return [node.args[5] for node in nodes if op_name(node) == "gaudicc.moe"]


def gated(inner: Tensor, act: Act) -> Tensor:
    gate, up = inner.chunk(2, dim=-1)
    return act(gate) * up


def mixture(
    x: Tensor, table: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, gate: Callable[[Tensor], Tensor]
) -> Tensor:
    """As `gaudicc.capture.experts` writes it."""
    tokens, chosen = table.shape
    group = table.reshape(-1)
    rows = x.unsqueeze(1).expand(-1, chosen, -1).reshape(-1, x.shape[-1])
    result = grouped_linear(gate(grouped_linear(rows, gate_up, group)), down, group)
    weighted: Tensor = (result * weights.reshape(-1, 1)).view(tokens, chosen, -1)
    return weighted.sum(dim=1).to(x.dtype)


def silu_mixture(x: Tensor, table: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return mixture(x, table, weights, gate_up, down, lambda inner: gated(inner, functional.silu))


def decomposed(program: Program) -> Program:
    return Decompose().run(program).program


def test_before_and_after(capture_of: Any, alone: Any, text_of: Any) -> None:
    after, record = alone(RecognizeMoe(), decomposed(capture_of(silu_mixture, *INPUTS, **WEIGHTS)))
    assert not record.notes
    assert_expected_inline(
        text_of(after),
        """\
graph root:
  %p_gate_up: f32[3, 6, 4] = weight gate_up
  %p_down: f32[3, 4, 3] = weight down
  %x: f32[5, 4] = input x
  %rest_0: i64[5, 2] = input args[0]
  %rest_1: f32[5, 2] = input args[1]
  %0: i64[10] = aten.view(%rest_0, [-1])
  %1: f32[10, 1] = aten.view(%rest_1, [-1, 1])
  %2: i64[5, 2] = aten.view(%0, [5, 2])
  %3: f32[5, 2] = aten.view(%1, [5, 2])
  %4: f32[5, 4] = gaudicc.moe(%x, %2, %3, %p_gate_up, %p_down, 'silu')
  return (%4)
""",
    )


@given(
    data=st.data(),
    act=st.sampled_from(["silu", "gelu", "relu"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    tokens=st.integers(1, 5),
    chosen=st.integers(1, 3),
    wide=st.booleans(),
)
def test_every_mixture_keeps_its_values(
    data: st.DataObject, act: str, dtype: torch.dtype, tokens: int, chosen: int, wide: bool, capture_of: Any, alone: Any
) -> None:
    picked = data.draw(st.lists(st.integers(0, 2), min_size=tokens * chosen, max_size=tokens * chosen))
    table, weights = torch.tensor(picked).reshape(tokens, chosen), torch.rand(tokens, chosen)
    inputs = (torch.randn(tokens, 4).to(dtype), table, weights if wide else weights.to(dtype))

    def model(x: Tensor, table: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return mixture(x, table, weights, gate_up, down, lambda inner: gated(inner, getattr(functional, act)))

    program = decomposed(capture_of(model, *inputs, **{name: each.to(dtype) for name, each in WEIGHTS.items()}))
    after, record = alone(RecognizeMoe(), program)
    assert mixtures(after) == [act]
    assert not record.notes
    assert "gaudicc.grouped_linear" not in after.count_ops()


@pytest.mark.parametrize(
    "halves",
    [
        lambda inner: (inner[:, :3], inner[:, 3:]),
        lambda inner: inner.split([3, 3], -1),
        lambda inner: inner.view(-1, 2, 3).unbind(1),
        lambda inner: (inner.view(-1, 2, 3)[:, 0], inner.view(-1, 2, 3)[:, -1]),
    ],
)
@pytest.mark.parametrize("gate_first", [True, False])
def test_ways_to_take_the_gate_apart(
    halves: Callable[[Tensor], Any], gate_first: bool, capture_of: Any, alone: Any
) -> None:
    def gate(inner: Tensor) -> Tensor:
        gate, up = halves(inner)
        result: Tensor = functional.silu(gate) * up if gate_first else up * functional.silu(gate)
        return result

    def model(x: Tensor, table: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return mixture(x, table, weights, gate_up, down, gate)

    after, record = alone(RecognizeMoe(), decomposed(capture_of(model, *INPUTS, **WEIGHTS)))
    assert mixtures(after) == ["silu"]
    assert not record.notes


def ungated(inner: Tensor) -> Tensor:
    return functional.silu(inner[:, :3])


def swapped(inner: Tensor) -> Tensor:
    up, gate = inner.chunk(2, dim=-1)
    return functional.silu(gate) * up


@pytest.mark.parametrize(
    "gate",
    [
        ungated,
        swapped,
        lambda inner: functional.silu(inner[:, ::2]) * inner[:, 1::2],
        lambda inner: functional.silu(inner.view(-1, 3, 2)[:, :, 0]) * inner.view(-1, 3, 2)[:, :, 1],
        lambda inner: functional.silu(inner[:, :3]) * inner[:, :3],
        lambda inner: gated(inner, torch.tanh),
        lambda inner: gated(inner, lambda x: functional.gelu(x, approximate="tanh")),
        lambda inner: gated(inner + 1, functional.silu),
        lambda inner: gated(inner, functional.silu).clamp(max=7.0),
    ],
)
def test_experts_with_gates_of_their_own_stay(gate: Act, capture_of: Any) -> None:
    program = capture_of(lambda x, t, w, gate_up, down: mixture(x, t, w, gate_up, down, gate), *INPUTS, **WEIGHTS)
    result = RecognizeMoe().run(decomposed(program))
    assert not result.modified
    (note,) = result.notes
    assert "no gate that is known" in note


def two_tables(x: Tensor, table: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Any:
    rows = x.unsqueeze(1).expand(-1, 2, -1).reshape(-1, 4)
    inner = gated(grouped_linear(rows, gate_up, table.reshape(-1)), functional.silu)
    return grouped_linear(inner, down, table.flip(1).reshape(-1))


def no_copies(x: Tensor, table: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Any:
    group = table[:, 0]
    return grouped_linear(gated(grouped_linear(x, gate_up, group), functional.silu), down, group)


def unweighted(x: Tensor, table: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Any:
    group, rows = table.reshape(-1), x.unsqueeze(1).expand(-1, 2, -1).reshape(-1, 4)
    result = grouped_linear(gated(grouped_linear(rows, gate_up, group), functional.silu), down, group)
    return result.view(5, 2, 4).sum(1)


def over_tokens(x: Tensor, table: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Any:
    group, rows = table.reshape(-1), x.unsqueeze(1).expand(-1, 2, -1).reshape(-1, 4)
    result = grouped_linear(gated(grouped_linear(rows, gate_up, group), functional.silu), down, group)
    return (result * weights.reshape(-1, 1)).view(5, 2, 4).sum(0)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (two_tables, "different groups"),
        (no_copies, "no copies of tokens"),
        (unweighted, "not weighted and summed"),
        (over_tokens, "not weighted and summed"),
    ],
)
def test_near_misses_stay_and_are_noted(function: Callable[..., Any], reason: str, capture_of: Any) -> None:
    result = RecognizeMoe().run(decomposed(capture_of(function, *INPUTS, **WEIGHTS)))
    assert not result.modified
    assert any(re.search(reason, note) for note in result.notes), result.notes


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_the_mixtures_of_transformers(family: str, alone: Any) -> None:
    models = pytest.importorskip("gaudicc.models.transformers_models", reason="needs gaudicc[models]")
    from gaudicc.capture import capture

    model = models.build(family)
    after, _ = alone(RecognizeMoe(), decomposed(capture(model, models.example_inputs(model))))
    assert set(mixtures(after)) == {"silu"}
    assert "gaudicc.grouped_linear" not in after.count_ops()
