"""The small words of matching: what they look through, and what they must not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from gaudicc.capture import capture
from gaudicc.nodes import outputs_of
from gaudicc.rules.match import argument, calls, constant, through_casts, unrepeated

aten = torch.ops.aten


def result(function: Callable[..., Any], *inputs: Tensor) -> fx.Node:
    node: fx.Node = outputs_of(capture(function, inputs).root.graph)[0]
    return node


def test_calls_are_those_of_the_ops_in_order() -> None:
    graph = capture(lambda x: x.sin().cos().sin(), (torch.randn(2),)).root.graph
    assert [node.target for node in calls(graph, aten.sin.default)] == [aten.sin.default] * 2
    assert len(calls(graph, aten.sin.default, aten.cos.default)) == 3
    assert calls(graph, aten.tan.default) == []


def test_arguments_by_position_by_keyword_and_by_default() -> None:
    node = result(lambda x: torch.ops.aten.sum.dim_IntList(x, [0], True), torch.randn(2))
    assert argument(node, 2, "keepdim") is True
    assert argument(node, 3, "dtype") is None
    graph = fx.Graph()
    x = graph.placeholder("x")
    named = graph.call_function(aten.sum.dim_IntList, (x,), {"dim": [0]})
    assert argument(named, 1, "dim") == [0]
    assert argument(named, 2, "keepdim", False) is False


def test_a_literal_operand() -> None:
    assert constant(result(lambda x: x + 2, torch.randn(2)), aten.add.Tensor) == 2
    assert constant(result(lambda x: x + 2, torch.randn(2)), aten.mul.Tensor) is None
    assert constant(result(lambda x: x + x, torch.randn(2)), aten.add.Tensor) is None
    assert constant(result(lambda x: torch.add(x, 2, alpha=3), torch.randn(2)), aten.add.Tensor) is None
    assert constant("no node", aten.add.Tensor) is None


@pytest.mark.parametrize(
    ("function", "through"),
    [
        (lambda x: x.to(torch.float32), True),
        (lambda x: x.to(torch.float32).to(torch.float64), True),
        (lambda x: x.type_as(torch.zeros(1)), True),
        (lambda x: torch.ops.aten.alias(x), True),
        (lambda x: x.to(torch.float16), False),
        (lambda x: x.to(torch.int64), False),
        (lambda x: x + 1, False),
    ],
)
def test_casts_that_lose_nothing_are_looked_through(function: Callable[[Tensor], Tensor], through: bool) -> None:
    node = result(function, torch.randn(3).to(torch.bfloat16))
    assert (through_casts(node).op == "placeholder") == through


def test_a_cast_back_up_does_not_restore_digits() -> None:
    node = result(lambda x: x.to(torch.bfloat16).to(torch.float32), torch.randn(3))
    assert through_casts(node).target is aten.to.dtype
    assert through_casts(node).args[1] == torch.bfloat16


def repeat(x: Tensor, groups: int = 3) -> Tensor:
    batch, heads, keys, dim = x.shape
    return x[:, :, None].expand(batch, heads, groups, keys, dim).reshape(batch, heads * groups, keys, dim)


@pytest.mark.parametrize(
    ("function", "times"),
    [
        (repeat, 3),
        (lambda x: x.unsqueeze(-3).expand(2, 2, 4, 5, 8).reshape(2, 8, 5, 8), 4),
        (lambda x: x.unsqueeze(2).expand(2, 2, 1, 5, 8).reshape(2, 2, 5, 8), 1),
    ],
)
def test_repeated_heads(function: Callable[[Tensor], Tensor], times: int) -> None:
    source, repeats = unrepeated(result(function, torch.randn(2, 2, 5, 8)))
    assert source.op == "placeholder"
    assert repeats == times


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.repeat_interleave(3, 1),
        lambda x: x.unsqueeze(1).expand(2, 3, 2, 5, 8).reshape(2, 6, 5, 8),
        lambda x: x[:1].unsqueeze(2).expand(2, 2, 3, 5, 8).reshape(2, 6, 5, 8),
        lambda x: x.unsqueeze(2).expand(2, 2, 3, 5, 8).reshape(2, 2, 15, 8),
        lambda x: x[:, :, :1].unsqueeze(2).expand(2, 2, 3, 5, 8).reshape(2, 6, 5, 8),
        lambda x: x.reshape(2, 2, 8, 5),
        lambda x: x,
    ],
    ids=["interleave", "other dim", "batch too", "merged with keys", "keys too", "reshape", "nothing"],
)
def test_what_only_looks_like_repeated_heads(function: Callable[[Tensor], Tensor]) -> None:
    node = result(lambda x: function(x).clone(), torch.randn(2, 2, 5, 8)).args[0]
    assert isinstance(node, fx.Node)
    assert unrepeated(node) == (node, 1)
