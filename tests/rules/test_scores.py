"""Scores of attention: batch and heads in one dim, as `bmm` and `baddbmm` want them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gaudicc.capture import capture
from gaudicc.nodes import op_name
from gaudicc.passes.recognize_attention import RecognizeAttention
from gaudicc.pipeline import CAPTURED, Pipeline
from gaudicc.program import Program
from gaudicc.targets import load_target
from gaudicc.trace import PassRecord
from gaudicc.verify import Level

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
FLAT = (torch.randn(8, 3, 4), torch.randn(8, 5, 4), torch.randn(8, 5, 4))
ALIBI = torch.randn(8, 1, 5)
MASK = torch.zeros(2, 1, 3, 5).masked_fill(torch.rand(2, 1, 3, 5) > 0.5, -1e9)


def recognized(function: Callable[..., Tensor], *inputs: Tensor, dynamic: Any = None) -> tuple[Program, PassRecord]:
    """What the pass makes of a function, compared with what it was on the example."""
    program = capture(function, inputs, dynamic_shapes=dynamic)
    program.target = load_target("gaudi3")
    after, (record,) = Pipeline((RecognizeAttention(),), initial=CAPTURED).run(program, level=Level.NUMERICS)
    return after, record


def attentions(program: Program) -> list[tuple[Any, ...]]:
    """Whether each attention op has a mask, its causal flag and its scale."""
    nodes = [node for _, module in program.graphs() for node in module.graph.nodes]
    return [(node.args[3] is not None, *node.args[4:]) for node in nodes if op_name(node) == "gaudicc.attention"]


def of_heads(scores: Tensor, v: Tensor, mask: Tensor = MASK) -> Tensor:
    """Batch and heads, one dim, apart for the softmax."""
    return torch.softmax(scores.view(2, 4, 3, 5) + mask, -1).view(8, 3, 5).bmm(v)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda q, k, v: torch.softmax(torch.baddbmm(ALIBI, q, k.mT, beta=1.0, alpha=0.5), -1) @ v, (True, False, 0.5)),
        (lambda q, k, v: torch.softmax(torch.baddbmm(ALIBI, q, k.mT, beta=0, alpha=0.5), -1) @ v, (False, False, 0.5)),
        (lambda q, k, v: of_heads(torch.baddbmm(ALIBI, q, k.mT, alpha=0.5), v), (True, False, 0.5)),
        (lambda q, k, v: of_heads(torch.baddbmm(ALIBI[:1], q, k.mT), v, MASK[0]), (True, False, 1.0)),
        (lambda q, k, v: of_heads(torch.bmm(q, k.mT) / 2, v), (True, False, 0.5)),
        (lambda q, k, v: torch.softmax((q @ k.mT).view(2, 4, 3, 5) * 0.5, -1).view(8, 3, 5) @ v, (False, False, 0.5)),
        (lambda q, k, v: of_heads((q @ k.mT).masked_fill(ALIBI > 0.5, -1e38), v), (True, False, 1.0)),
    ],
)  # fmt: skip
def test_batch_and_heads_in_one_dim(function: Attention, expected: tuple[Any, ...]) -> None:
    after, record = recognized(function, *FLAT)
    assert attentions(after) == [pytest.approx(expected)]
    assert not record.notes


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda q, k, v: of_heads(torch.baddbmm(ALIBI, q, k.mT, beta=0.5), v), "is multiplied by 0.5"),
        (lambda q, k, v: of_heads(torch.baddbmm(ALIBI, q, k.mT) * 2, v), "is multiplied with them"),
        (lambda q, k, v: of_heads(5 * torch.tanh(q @ k.mT / 5), v), "capped by a tanh"),
        (lambda q, k, v: torch.softmax((q @ k.mT).view(2, 4, 3, 5), -1) @ v.view(2, 4, 5, 4), "ranks 3, 3 and 4"),
    ],
)  # fmt: skip
def test_near_misses_stay_and_are_noted(function: Attention, reason: str) -> None:
    result = RecognizeAttention().run(capture(function, FLAT))
    assert not result.modified
    (note,) = result.notes
    assert re.search(reason, note), note


def test_batch_of_any_size() -> None:
    def model(x: Tensor) -> Tensor:
        q = x.flatten(0, 1)
        weights = torch.softmax(torch.bmm(q, q.mT).view(x.shape[0], 4, 3, 3), -1)
        return torch.bmm(weights.view(-1, 3, 3), q)

    dynamic = {"x": {0: torch.export.Dim("batch", min=2, max=8)}}
    after, record = recognized(model, torch.randn(2, 4, 3, 4), dynamic=dynamic)
    assert attentions(after) == [(False, False, 1.0)]
    assert not record.notes
