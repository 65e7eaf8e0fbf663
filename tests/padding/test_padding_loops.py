"""Loops over padded sizes: as many trips as the size is long, whatever the pads of the others hold."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch.export import Dim

from gaudicc.capture import capture
from gaudicc.errors import PaddingError
from gaudicc.nodes import call_loop
from gaudicc.padding.poison import check
from gaudicc.passes import CleanUp, Decompose
from gaudicc.passes.pad import Pad
from gaudicc.pipeline import Pipeline
from gaudicc.program import Program
from gaudicc.targets import load_target
from gaudicc.verify import Level
from tests.capture.looped import Looped
from tests.capture.looped_steps import CASES

SHAPES = ({0: Dim("batch", min=1, max=8), 1: Dim("steps", min=1, max=64)},)
NAMES = ("recurrent_cell", "writes_rows", "counts_down", "starts_at_one", "decides_on_data", "first_trip_differs")
OTHERS = [name for name in CASES if name not in NAMES]
CALLS = (((2, 5), (4, 8)), ((1, 1), (1, 8)), ((3, 8), (3, 8)), ((2, 2), (8, 16)))


@cache
def captured(name: str) -> Program:
    program = capture(Looped(CASES[name]), (torch.randn(2, 5, 4),), dynamic_shapes=SHAPES)
    program.target = load_target("gaudi3")
    return Pipeline((Decompose(), CleanUp())).run(program, level=Level.STRUCTURE)[0]


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.sweep) for name in OTHERS)])
def test_pads_do_not_leak(name: str) -> None:
    program = captured(name)
    padded = Pad().run(program).program
    (user,) = padded.user_inputs()
    calls = [
        ({user.name: torch.randn(*lengths, 4)}, dict(zip(("batch", "steps"), sizes, strict=True)))
        for lengths, sizes in CALLS
    ]
    check(padded, program, calls)


def test_a_loop_makes_as_many_trips_as_the_size_is_long() -> None:
    padded = Pad().run(captured("recurrent_cell")).program
    (loop,) = (node for node in padded.root.graph.nodes if node.target is call_loop)
    assert loop.args[2].name == "length_steps"
    (name,) = (spec.name for spec in padded.user_inputs())
    x = torch.randn(2, 16, 4)
    feed = {name: x, "length_batch": torch.tensor(2), "length_steps": torch.tensor(3)}
    stacked, last = padded.run(feed)
    assert stacked[:, 3:].eq(0).all()
    expected, at_3 = Looped(CASES["recurrent_cell"])(x[:, :3])
    assert torch.equal(stacked[:, :3], expected)
    assert torch.equal(last, at_3)


def test_carried_values_that_hold_garbage_are_masked_where_they_are_mixed() -> None:
    """The batch pads of the state start as zeros and are garbage after a trip, which only the induction shows."""

    def forward(self: Looped, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(x.shape[0], 4)
        for t in range(x.shape[1]):
            h = (h + x[:, t]).exp()
        return h.sum(0)

    program = capture(Looped(forward), (torch.randn(2, 5, 4),), dynamic_shapes=SHAPES)
    padded = Pad().run(program).program
    (user,) = padded.user_inputs()
    assert padded.count_ops().get("aten.where.self", 0) == 1
    check(padded, program, [({user.name: torch.randn(3, 2, 4) - 2}, {"batch": 8, "steps": 4})])


def test_values_that_are_padded_otherwise_after_a_trip_are_refused() -> None:
    def forward(self: Looped, x: torch.Tensor) -> torch.Tensor:
        h = x.new_zeros(x.shape[0] * x.shape[1], 4)
        for _ in range(x.shape[1]):
            h = x.reshape(-1, 4) + h
        return h

    program = capture(Looped(forward), (torch.randn(2, 5, 4),), dynamic_shapes=SHAPES)
    with pytest.raises(PaddingError, match="padded otherwise after a trip"):
        Pad().run(program)
