"""A loop that nothing but data ends becomes one loop region: bit for bit what eager PyTorch does, or refused by line."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch

from gaudicc.capture import capture
from gaudicc.capture.mend.oracle import same_bits
from gaudicc.errors import DynamicControlFlowError
from gaudicc.nodes import call_loop
from gaudicc.printing import program_text
from gaudicc.program import OutputKind, Program
from tests.capture.data_loops import CASES
from tests.capture.data_loops_refused import REFUSED

NAN, INF = float("nan"), float("inf")
INPUTS = [
    [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0], [-1.0, -2.0, -3.0, 2.0], [30.0, 2.5, 3.0, 70.0], [0.01, 0.02, 0.0, 0.03],
    [NAN, 1.0, 1.0, 1.0], [1.0, NAN, 2.0, 3.0], [400.0, 5.0, 9.0, 600.0], [-0.0, 3.0, -5.0, 1.0], [17.0, 1.0, 0.5, 2.0],
    [50.0, 60.0, 70.0, 80.0], [1e-30, 1e-3, 2.0, -4.0], [5.0, 3.0, 1.0, -300.0],
]  # fmt: skip


def program_from(name: str, example: int) -> Program:
    return capture(CASES[name], (torch.tensor(INPUTS[example]),))


@cache
def program_of(name: str) -> Program:
    return program_from(name, 4)


def eager(body: Any, x: torch.Tensor) -> tuple[Any, ...]:
    try:
        result = body(x)
    except (ValueError, AssertionError, IndexError) as error:
        return type(error).__name__, x
    return (*result, x) if isinstance(result, tuple) else (result, x)


def run(program: Program, x: torch.Tensor) -> tuple[Any, ...]:
    (user,) = (spec.name for spec in program.user_inputs())
    outputs: list[Any] = []
    for value, spec in zip(program.run({user: x}), program.outputs, strict=True):
        if spec.kind is OutputKind.FLAG and value.any():
            (raised,) = value.nonzero().flatten().tolist()
            return type(program.calling.raises[raised].error).__name__, x
        if spec.kind is OutputKind.INPUT:
            x = value
        if spec.kind is OutputKind.USER:
            outputs.append(value)
    return *outputs, x


def differences(name: str, program: Program) -> list[str]:
    found = []
    for values in INPUTS:
        x = torch.tensor(values)
        wanted, given = eager(CASES[name], x.clone()), run(program, x.clone())
        if len(wanted) != len(given) or not all(map(same_bits, wanted, given)):
            found.append(f"{values}: {given}, eager {wanted}")
    return found


@pytest.mark.parametrize("name", CASES)
def test_equal_to_eager(name: str) -> None:
    assert differences(name, program_of(name)) == []


@pytest.mark.parametrize("example", [1, pytest.param(3, marks=pytest.mark.sweep)])
@pytest.mark.parametrize("name", ["breaks", "returns_one_of_three", "raises", "decodes", "as_many_as_data_says"])
def test_equal_whatever_path_the_example_takes(name: str, example: int) -> None:
    assert differences(name, program_from(name, example)) == []


@pytest.mark.parametrize("name", CASES)
def test_the_program_holds_one_trip(name: str) -> None:
    program = program_of(name)
    loops = [node for _, graph in program.graphs() for node in graph.graph.nodes if node.target is call_loop]
    assert len(loops) == (2 if name in ("in_each_other", "two_after_each_other") else 1)
    assert all(node.args[1] is None for node in loops)
    assert sum(len(graph.graph.nodes) for _, graph in program.graphs()) < 160
    assert "while the first is true" in program_text(program)


def test_no_value_that_was_read_is_in_the_program() -> None:
    texts = [program_text(program_from("as_many_as_data_says", example)) for example in (0, 3, 9)]
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_loop_region_is_refused_by_line(name: str) -> None:
    body, why, todo = REFUSED[name]
    with pytest.raises(DynamicControlFlowError) as caught:
        capture(body, (torch.tensor(INPUTS[0]),))
    assert why in caught.value.what
    assert todo in caught.value.todo
    first = body.__code__.co_firstlineno
    source = str(caught.value.where.source)
    assert source.startswith("capture/data_loops_refused.py:")
    assert first <= int(source.rsplit(":")[-1]) <= first + 8


def test_the_model_is_left_as_it_was() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.seen: torch.Tensor
            self.register_buffer("seen", torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.abs() + 1
            while y.sum() < 100:
                y = y * 2
                self.seen += y
            return y

    model = Model().eval()
    code = Model.forward.__code__
    program = capture(model, (torch.ones(4),))
    assert Model.forward.__code__ is code
    assert model.seen.eq(0).all()
    x = torch.tensor(INPUTS[0])
    (user,) = (spec.name for spec in program.user_inputs())
    given = dict(zip([spec.kind for spec in program.outputs], program.run({user: x}), strict=True))
    other = copy.deepcopy(model)
    assert torch.equal(given[OutputKind.USER], other(x))
    assert torch.equal(given[OutputKind.STATE], other.seen)
