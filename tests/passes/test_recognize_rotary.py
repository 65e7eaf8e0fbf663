"""recognize-rotary: the forms of Llama and GPT-J, bit for bit, and what only looks like them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gaudicc.invariants import DECOMPOSED, SHAPES_GUARDED
from gaudicc.nodes import op_name
from gaudicc.passes.decompose import Decompose
from gaudicc.passes.legalize_dtypes import LegalizeDtypes
from gaudicc.passes.recognize_rotary import RecognizeRotary
from gaudicc.passes.specialize import Specialize
from gaudicc.pipeline import CAPTURED, Pipeline
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


Parts = tuple[Tensor, ...]


def turned_parts(parts: Parts, cos: Tensor, sin: Tensor) -> Parts:
    a, b = parts
    return a * cos - b * sin, b * cos + a * sin


def commuted_parts(parts: Parts, cos: Tensor, sin: Tensor) -> Parts:
    a, b = parts
    return cos * a - sin * b, a * sin + cos * b


def pairs(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)


def halves_of(x: Tensor, axis: int = -1) -> Parts:
    a, b = x.chunk(2, axis)
    return a, b


# How features are taken apart, how they are joined again, and whether neighbours are pairs.
APART: dict[str, tuple[Callable[[Tensor], Parts], Callable[[Parts], Tensor], bool]] = {
    "chunk": (halves_of, lambda p: torch.cat(p, -1), False),
    "split": (lambda x: x.split([3, 3], -1), lambda p: torch.cat(p, -1), False),
    "slices": (lambda x: (x[..., :3], x[..., 3:]), lambda p: torch.cat(p, -1), False),
    "strides": (lambda x: (x[..., ::2], x[..., 1::2]), lambda p: torch.stack(p, -1).flatten(-2), True),
    "unbind": (lambda x: pairs(x).unbind(-1), lambda p: torch.stack(p, -1).flatten(-2), True),
    "select": (lambda x: (pairs(x)[..., 0], pairs(x)[..., 1]), lambda p: torch.stack(p, -1).flatten(-2), True),
}


@settings(max_examples=8)
@given(data=st.data())
@pytest.mark.parametrize("form", APART)
def test_features_turned_by_themselves_are_bitwise_kept(
    form: str, data: st.DataObject, capture_of: Any, alone: Any
) -> None:
    apart, join, by_neighbours = APART[form]
    turn = data.draw(st.sampled_from([turned_parts, commuted_parts]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    x = torch.randn(*(data.draw(st.integers(0, 3)) for _ in range(3)), 6).to(dtype)
    if x.numel():
        x.view(-1)[0] = data.draw(st.sampled_from([-0.0, float("inf"), float("nan")]))
    angles = torch.randn(x.shape[2], 3).to(dtype)
    program = decomposed(capture_of(lambda x, cos, sin: join(turn(apart(x), cos, sin)), x, angles.cos(), angles.sin()))
    after, record = alone(RecognizeRotary(), program)
    assert turned_forms(after) == [by_neighbours]
    assert not record.notes


def test_the_product_of_complex_numbers(capture_of: Any, alone: Any) -> None:
    def model(x: Tensor, angles: Tensor) -> Tensor:
        turn = torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(torch.view_as_complex(pairs(x)) * turn).flatten(3)

    program = decomposed(capture_of(model, X, torch.randn(3, 4)))
    program, _ = Pipeline((Specialize(), LegalizeDtypes()), initial=CAPTURED | {SHAPES_GUARDED, DECOMPOSED}).run(
        program
    )
    after, record = alone(RecognizeRotary(), program)
    assert turned_forms(after) == [True]
    assert not record.notes


@pytest.mark.parametrize(
    "function",
    [
        lambda x, c, s: s * halves(x) + c * x,
        lambda x, c, s: halves(x) * s + x * c,
        lambda x, c, s: c * x + torch.cat((-halves_of(x)[1], halves_of(x)[0]), -1) * s,
    ],
)
def test_the_order_of_operands_is_free(function: Callable[..., Tensor], capture_of: Any, alone: Any) -> None:
    after, record = alone(RecognizeRotary(), decomposed(capture_of(function, X, ANGLES, ANGLES + 1)))
    assert turned_forms(after) == [False]
    assert not record.notes


HALF = ANGLES[..., :4]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, c, s: torch.cat((x[..., :4] * c - x[..., 4:] * s, x[..., 4:] * c + x[..., :4] * c), -1),
        lambda x, c, s: torch.cat((x[..., 4:] * c - x[..., :4] * s, x[..., 4:] * c + x[..., :4] * s), -1),
        lambda x, c, s: torch.cat((x[..., :4] * c - x[..., 4:] * s, (x + 1)[..., 4:] * c + x[..., :4] * s), -1),
        lambda x, c, s: torch.stack((x[..., :4] * c - x[..., 4:] * s, x[..., 4:] * c + x[..., :4] * s), -1).flatten(-2),
        lambda x, c, s: torch.cat((x[..., ::2] * c - x[..., 1::2] * s, x[..., 1::2] * c + x[..., ::2] * s), -1),
        lambda x, c, s: torch.cat(
            (torch.sub(x[..., :4] * c, x[..., 4:] * s, alpha=2), x[..., 4:] * c + x[..., :4] * s), -1
        ),
        lambda x, c, s: torch.cat((x[..., :4] * c - x[..., 4:] * s, x[..., 4:] * c + x[..., :4] * s), 2),
    ],
    ids=["sine twice", "other sign", "two inputs", "laid otherwise", "taken otherwise", "alpha", "other dim"],
)
def test_parts_that_are_no_rotation_stay(function: Callable[..., Tensor], capture_of: Any) -> None:
    result = RecognizeRotary().run(decomposed(capture_of(function, X, HALF, HALF + 1)))
    assert not result.modified


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
        (lambda x, c, s: torch.cat(turned_parts((x[..., :4], x[..., 4:]), c[..., :4], s[0, ..., :4]), -1), "dtype or shape"),
        (lambda x, c, s: torch.cat(turned_parts((x[..., :4], x[..., 4:]), x[..., :4].exp(), x[..., 4:].exp()), -1), "no angles"),
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
