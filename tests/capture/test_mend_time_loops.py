"""A loop over a dynamic size becomes one loop region: right for every length, of one size, or refused by line."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

import gaudicc
from gaudicc.capture import capture
from gaudicc.errors import DynamicControlFlowError
from gaudicc.nodes import call_loop
from gaudicc.program import InputKind, OutputKind, Program
from tests.capture.looped import Looped
from tests.capture.looped_early import APART, CASES
from tests.capture.looped_refused import REFUSED

LENGTHS = ((2, 5), (1, 1), (3, 2), (4, 31), (2, 64))
SHAPES = ({0: Dim("batch", min=1, max=8), 1: Dim("steps", min=1, max=512)},)


def captured(model: nn.Module, shapes: Any = SHAPES) -> Program:
    return capture(model, (torch.randn(2, 5, 4),), dynamic_shapes=shapes)


@cache
def program_of(name: str) -> Program:
    return captured(Looped(CASES[name]))


def run(program: Program, x: torch.Tensor) -> list[torch.Tensor]:
    (user,) = (spec.name for spec in program.inputs if spec.kind is InputKind.USER)
    outputs = program.run({user: x})
    return [value for value, spec in zip(outputs, program.outputs, strict=True) if spec.kind is OutputKind.USER]


@pytest.mark.parametrize("name", CASES)
def test_equal_to_eager_for_every_length(name: str) -> None:
    program = program_of(name)
    for batch, steps in LENGTHS:
        x = torch.randn(batch, steps, 4, generator=torch.Generator().manual_seed(steps))
        expected = pytree.tree_leaves(Looped(CASES[name])(x.clone()))
        for given, wanted in zip(run(program, x), expected, strict=True):
            assert torch.equal(given, wanted), (batch, steps)


@pytest.mark.parametrize("name", CASES)
def test_the_program_holds_one_trip(name: str) -> None:
    program = program_of(name)
    loops = [node for _, graph in program.graphs() for node in graph.graph.nodes if node.target is call_loop]
    assert len(loops) == (2 if name in ("loop_in_a_loop", "row_of_the_outer_loop", "two_loops") else 1)
    assert sum(len(graph.graph.nodes) for _, graph in program.graphs()) < 120
    assert [dim.name for dim in program.dimensions] == ["batch", "steps"]


@pytest.mark.parametrize(
    "name", ["writes_rows", "counts_down", "two_states", "state_in_a_tuple", "counts_in_arithmetic"]
)
def test_no_trip_leaves_what_there_was_before(name: str) -> None:
    shapes = ({1: Dim("steps", min=0, max=512)},)
    program = captured(Looped(CASES[name]), shapes)
    for steps in (0, 1, 7):
        x = torch.randn(2, steps, 4)
        expected = pytree.tree_leaves(Looped(CASES[name])(x))
        for given, wanted in zip(run(program, x), expected, strict=True):
            assert torch.equal(given, wanted)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_loop_region_is_refused_by_line(name: str) -> None:
    forward, why = REFUSED[name]
    with pytest.raises(DynamicControlFlowError) as caught:
        captured(Looped(forward))
    assert why in caught.value.what
    assert caught.value.todo
    first = forward.__code__.co_firstlineno
    source = str(caught.value.where.source)
    assert source.startswith("capture/looped_refused.py:")
    assert first <= int(source.rsplit(":")[-1]) <= first + 10


RAISE_WITHOUT_A_TRIP = ("variable_of_a_trip_afterwards", "looks_at_the_list")


@pytest.mark.parametrize("name", RAISE_WITHOUT_A_TRIP)
def test_a_first_trip_is_sure_to_happen_where_eager_raises_without_one(name: str) -> None:
    program = captured(Looped(CASES[name]), ({1: Dim("steps", min=0, max=512)},))
    assert [dim.low for dim in program.dimensions] == [1]


@pytest.mark.parametrize("name", [name for name in APART if name not in RAISE_WITHOUT_A_TRIP])
def test_a_first_trip_that_differs_must_be_sure_to_happen(name: str) -> None:
    with pytest.raises(DynamicControlFlowError, match=r"in other trips|after the loop"):
        captured(Looped(CASES[name]), ({1: Dim("steps", min=0, max=512)},))


def test_loops_with_equal_bodies_share_one() -> None:
    program = program_of("two_loops")
    assert list(program.bodies) == ["loop"]


def test_layers_with_a_loop_are_one_body() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = [Looped(CASES["writes_rows"]) for _ in range(4)]
            for layer in layers:
                nn.init.normal_(layer.cell.weight)
            self.layers = nn.ModuleList(layers)
            self.eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x) + x
            return x

    model = Stack()
    program = captured(model)
    assert sorted(program.bodies) == ["loop", "looped"]
    x = torch.randn(3, 9, 4)
    assert torch.equal(run(program, x)[0], model(x))


def test_the_model_is_left_as_it_was() -> None:
    model = Looped(CASES["state_in_a_buffer"])
    codes = {name: vars(type(model))[name].__code__ for name in ("forward", "step")}
    captured(model)
    assert all(buffer.eq(0).all() for buffer in model.buffers())
    assert {name: vars(type(model))[name].__code__ for name in codes} == codes
    assert "h" not in vars(model)


def test_static_sizes_are_unrolled_as_ever() -> None:
    program = captured(Looped(CASES["recurrent_cell"]), None)
    assert not program.bodies
    assert program.count_ops()["aten.tanh"] == 5


def test_a_loop_whose_trips_are_one_number_for_all_sizes_is_none() -> None:
    """Up to 8 tokens in chunks of 8 are one chunk, whatever torch's bounds say."""

    def in_chunks(x: torch.Tensor) -> torch.Tensor:
        missing = (8 - x.shape[1] % 8) % 8
        chunks = F.pad(x, (0, missing)).view(x.shape[0], -1, 8)
        state = torch.zeros_like(chunks[:, 0])
        for i in range((x.shape[1] + missing) // 8):
            state = torch.tanh(state + chunks[:, i])
        return state

    def compiled(longest: int) -> gaudicc.CompiledModel:
        shapes = {"x": {1: Dim("tokens", min=2, max=longest)}}
        return gaudicc.compile(in_chunks, (torch.randn(2, 5),), dynamic_shapes=shapes, verify="poison")

    one = compiled(8)
    assert not one.program.bodies
    for tokens in range(2, 9):
        x = torch.randn(2, tokens)
        torch.testing.assert_close(one(x), in_chunks(x))
    several = compiled(20)
    assert len(several.program.bodies) == 1
    for tokens in range(2, 21):
        x = torch.randn(2, tokens)
        torch.testing.assert_close(several(x), in_chunks(x))


def test_a_size_that_dynamic_shapes_only_infers_is_fixed_by_a_loop_that_stays_unrolled() -> None:
    program = captured(Looped(REFUSED["reads_up_to_the_step"][0]), "auto")
    assert not program.bodies
    assert [dim.low for dim in program.dimensions] != []
    assert any(note.startswith("size fixed by the model: x.shape[1]") for note in program.notes)


def test_a_size_that_is_inferred_stays_dynamic_where_the_loop_is_a_region() -> None:
    program = captured(Looped(CASES["recurrent_cell"]), "auto")
    assert list(program.bodies) == ["loop"]
    assert len(program.dimensions) == 2


def test_the_printed_program_says_how_often_a_body_runs() -> None:
    from gaudicc.printing import program_text

    text = program_text(program_of("recurrent_cell"))
    assert "for each of" in text
    assert "graph loop:" in text
