"""recognize-rotary: the forms of Llama and GPT-J, bit for bit, and what only looks like them."""

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

from gaudicc.nodes import op_name
from gaudicc.passes.decompose import Decompose
from gaudicc.passes.recognize_rotary import RecognizeRotary
from gaudicc.program import Program

X, ANGLES = torch.randn(2, 4, 3, 8), torch.randn(2, 1, 3, 8)


def turned_forms(program: Program) -> list[bool]:
    """Whether neighbours make the pairs, for each op."""
    nodes = [node for _, module in program.graphs() for node in module.graph.nodes]
    return [node.args[3] for node in nodes if op_name(node) == "gaudicc.rotary"]


def decomposed(program: Program) -> Program:
    return Decompose().run(program).program


def halves(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def neighbours(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, turn: Callable[[Tensor], Tensor] = halves) -> Tensor:
    return (x * cos) + (turn(x) * sin)


def test_before_and_after(capture_of: Any, alone: Any, text_of: Any) -> None:
    after, record = alone(RecognizeRotary(), capture_of(rotated, X, ANGLES, ANGLES + 1))
    assert not record.notes
    assert_expected_inline(
        text_of(after),
        """\
graph root:
  %x: f32[2, 4, 3, 8] = input x
  %rest_0: f32[2, 1, 3, 8] = input args[0]
  %rest_1: f32[2, 1, 3, 8] = input args[1]
  %0: f32[2, 4, 3, 8] = gaudicc.rotary(%x, %rest_0, %rest_1, False)
  return (%0)
""",
    )


@given(data=st.data(), turn=st.sampled_from([halves, neighbours]))
def test_values_are_bitwise_kept(
    data: st.DataObject, turn: Callable[[Tensor], Tensor], capture_of: Any, alone: Any
) -> None:
    batch, heads, length = (data.draw(st.integers(0, 3)) for _ in range(3))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    heads_first = data.draw(st.booleans())
    x = torch.randn(batch, length, heads, 6).to(dtype)
    angles = torch.randn(data.draw(st.sampled_from([1, batch])), length, 1, 6).to(dtype)
    if heads_first:
        x, angles = x.transpose(1, 2), angles.transpose(1, 2)
    if data.draw(st.booleans()):
        x = x.contiguous()
    program = decomposed(capture_of(lambda x, cos, sin: rotated(x, cos, sin, turn), x, angles.cos(), angles.sin()))
    after, record = alone(RecognizeRotary(), program)
    assert turned_forms(after) == [turn is neighbours]
    assert not record.notes
    assert not alone(RecognizeRotary(), after)[1].modified


def partial(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.cat([rotated(x[..., :4], cos[..., :4], sin[..., :4]), x[..., 4:]], dim=-1)


def test_a_part_of_the_features(capture_of: Any, alone: Any) -> None:
    after, _ = alone(RecognizeRotary(), capture_of(partial, X, ANGLES, ANGLES + 1))
    assert turned_forms(after) == [False]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, cos, sin: halves(x) * sin, "added"),
        (lambda x, cos, sin: x * cos - halves(x) * sin, "added"),
        (lambda x, cos, sin: torch.add(x * cos, halves(x) * sin, alpha=2), "added"),
        (lambda x, cos, sin: (x + 1) * cos + halves(x) * sin, "input times a cosine"),
        (lambda x, cos, sin: cos + halves(x) * sin, "input times a cosine"),
        (lambda x, cos, sin: x * 0.5 + halves(x) * sin, "not tensors"),
        (lambda x, cos, sin: x * cos + halves(x) * sin[0], "dtype or shape"),
        (lambda x, cos, sin: x * cos.double() + halves(x) * sin.double(), "dtype or shape"),
        (lambda x, cos, sin: rotated(x[0], cos[0], sin[0]), "no angles for all heads"),
        (lambda x, cos, sin: rotated(x, cos.expand_as(x), sin.expand_as(x)), "no angles for all heads"),
        (lambda x, cos, sin: x * cos + torch.stack((-x[..., 1::2], x[..., ::2]), -1).mT.flatten(-2) * sin, "side by side"),
    ],
)  # fmt: skip
def test_near_misses_stay_and_are_noted(
    function: Callable[..., Tensor], reason: str, capture_of: Any, text_of: Any
) -> None:
    program = capture_of(function, X, ANGLES, ANGLES + 1)
    before = text_of(program)
    result = RecognizeRotary().run(program)
    assert not result.modified
    assert text_of(result.program) == before
    (note,) = result.notes
    assert re.search(reason, note), note


@pytest.mark.parametrize(
    "turn",
    [
        lambda x: torch.cat((x[..., 4:], x[..., :4]), -1),
        lambda x: torch.cat((-x[..., 4:], x[..., 4:]), -1),
        lambda x: torch.cat((-x[..., :4], x[..., 4:]), -1),
        lambda x: torch.cat((-x[..., 2:], x[..., :2]), -1),
        lambda x: torch.cat((-x[:, 2:], x[:, :2]), 1),
        lambda x: torch.cat((-x[..., 4:], (x + 1)[..., :4]), -1),
        lambda x: torch.stack((-x[..., ::2], x[..., 1::2]), -1).flatten(-2),
        lambda x: torch.cat((-x[..., ::2], x[..., 1::2]), -1),
    ],
    ids=["sign", "same half", "halves not swapped", "no halves", "heads", "two inputs", "neighbours kept", "strides"],
)
def test_what_turns_no_pairs_stays(turn: Callable[[Tensor], Tensor], capture_of: Any) -> None:
    result = RecognizeRotary().run(capture_of(lambda x, c, s: rotated(x, c, s, turn), X, ANGLES, ANGLES))
    assert not result.modified
    assert not result.notes


@pytest.mark.parametrize(("family", "interleaved"), [("llama", False), ("gptj", True)])
def test_the_forms_of_transformers(family: str, interleaved: bool, alone: Any) -> None:
    models = pytest.importorskip("gaudicc.models.transformers_models", reason="needs gaudicc[models]")
    from gaudicc.capture import capture

    model = models.build(family)
    after, _ = alone(RecognizeRotary(), decomposed(capture(model, models.example_inputs(model))))
    assert turned_forms(after) == [interleaved] * 2
