"""clean-up: what goes, what must stay, and that values never change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.export import Dim

from gaudicc.capture import capture
from gaudicc.nodes import is_op, op_name, val
from gaudicc.passes.clean_up import CleanUp
from gaudicc.program import InputKind, Program

aten = torch.ops.aten


def ops(program: Program) -> list[str]:
    return [op_name(node) for _, module in program.graphs() for node in module.graph.nodes if is_op(node)]


def constants(program: Program) -> dict[str, Tensor]:
    return {s.name: program.tensors[s.source] for s in program.inputs if s.kind is InputKind.CONSTANT}


def test_before_and_after(capture_of: Any, alone: Any, text_of: Any) -> None:
    def model(x: Tensor, weight: Tensor) -> Tensor:
        positions = torch.arange(4) + 0
        twice = (x * 1.0).to(torch.float32).relu() + x.relu()
        return twice.reshape(2, 4) * weight + positions * 2

    after, record = alone(CleanUp(), capture_of(model, torch.randn(2, 4), weight=torch.randn(4)))
    assert record.notes == ("1 constants folded",)
    assert_expected_inline(
        text_of(after),
        """\
graph root:
  %constant_0: i64[4] = constant constant.0
  %p_weight: f32[4] = weight weight
  %x: f32[2, 4] = input x
  %0: f32[2, 4] = aten.relu(%x)
  %1: f32[2, 4] = aten.add.Tensor(%0, %0)
  %2: f32[2, 4] = aten.mul.Tensor(%1, %p_weight)
  %3: f32[2, 4] = aten.add.Tensor(%2, %constant_0)
  return (%3)
""",
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.detach(),
        lambda x: torch.ops.aten.alias(x),
        lambda x: x.to(torch.float32),
        lambda x: x.expand(3, 4),
        lambda x: x.view(3, 4),
        lambda x: x.contiguous(),
        lambda x: x.clone(),
        lambda x: x[:],
        lambda x: x[0:3],
        lambda x: x.permute(0, 1),
        lambda x: x * 1,
        lambda x: x / 1.0,
        lambda x: torch.dropout(x, 0.5, False),
        lambda x: torch.ops.aten.copy(x.new_zeros(3, 4), x),
    ],
)
def test_no_ops_go(function: Callable[[Tensor], Tensor], capture_of: Any, alone: Any) -> None:
    after, _ = alone(CleanUp(), capture_of(lambda x: function(x).relu(), torch.randn(3, 4)))
    assert ops(after) == ["aten.relu"]


@pytest.mark.parametrize(
    ("function", "op"),
    [
        (lambda x: x + 0, "aten.add.Tensor"),  # -0.0 + 0 is 0.0
        (lambda x: x - 0.0, "aten.sub.Tensor"),
        (lambda x: x * -1, "aten.mul.Tensor"),
        (lambda x: x.to(torch.float64), "aten.to.dtype"),
        (lambda x: x.expand(2, 4, 4), "aten.expand"),
        (lambda x: x[1:], "aten.slice.Tensor"),
        (lambda x: x.permute(1, 0), "aten.permute"),
        (lambda x: x.t().contiguous(), "aten.contiguous"),
        (lambda x: x.view(2, 8), "aten.view"),
        (lambda x: torch.ops.aten.copy(x.new_zeros(4, 4), x[0]), "aten.copy"),
        (lambda x: torch.ops.aten.copy(x.new_zeros(4, 4, dtype=torch.float64), x), "aten.copy"),
        (lambda x: torch.view_as_complex(x.view(4, 2, 2)) + 0, "aten.add.Tensor"),
    ],
)
def test_near_misses_stay(function: Callable[[Tensor], Tensor], op: str, capture_of: Any, alone: Any) -> None:
    after, _ = alone(CleanUp(), capture_of(function, torch.randn(4, 4)))
    assert op in ops(after)


def test_integers_lose_what_floats_keep(capture_of: Any, alone: Any) -> None:
    after, _ = alone(CleanUp(), capture_of(lambda x: ((x + 0) - 0).neg(), torch.arange(4)))
    assert ops(after) == ["aten.neg"]


def test_a_number_added_to_bools_is_a_cast(capture_of: Any, alone: Any) -> None:
    after, _ = alone(CleanUp(), capture_of(lambda x: x + 0, torch.tensor([True, False])))
    assert ops(after) == ["aten.add.Tensor"]


def test_equal_expressions_are_one_and_random_ones_are_not(capture_of: Any, alone: Any) -> None:
    after, _ = alone(CleanUp(), capture_of(lambda x: (x.sin() + 1) * (x.sin() + 1) + (x.sin() + 1.5), torch.randn(3)))
    assert sorted(ops(after)) == ["aten.add.Tensor"] * 3 + ["aten.mul.Tensor", "aten.sin"]
    random = capture_of(lambda x: torch.rand_like(x) - torch.rand_like(x), torch.randn(3))
    assert ops(CleanUp().run(random).program).count("aten.rand_like") == 2


def test_literals_of_other_types_are_other_expressions(capture_of: Any, alone: Any) -> None:
    program = capture_of(lambda x: (x * 2, x * 2.0, x * True, x / -0.0, x / 0.0), torch.arange(1, 3))
    after, _ = alone(CleanUp(), program)
    assert ops(after).count("aten.mul.Tensor") == 3
    assert ops(after).count("aten.div.Tensor") == 2


class Derived(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.table: Tensor
        self.seen: Tensor
        self.register_buffer("table", torch.randn(4))
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return x * self.weight.exp() + self.table.cos() + self.seen.sin() + torch.arange(4).cos()


def test_nothing_derived_from_weights_buffers_or_state_is_folded(alone: Any) -> None:
    model = Derived().eval()
    program = capture(model, (torch.randn(4),))
    after, _ = alone(CleanUp(), program)
    assert [value.tolist() for value in constants(after).values()] == [torch.arange(4).cos().tolist()]
    assert {"aten.exp", "aten.cos", "aten.sin"} <= set(ops(after))
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.table.zero_()
    x = torch.randn(4)
    expected = x * model.weight.exp() + 1 + torch.ones(4).sin() + torch.arange(4).cos()
    torch.testing.assert_close(after.run({"x": x})[-1], expected)


@given(size=st.integers(0, 40), limit=st.integers(0, 200))
def test_constants_respect_the_size_limit(size: int, limit: int, capture_of: Any, alone: Any) -> None:
    program = capture_of(lambda x: x + torch.arange(size).cos().sum(), torch.randn(2))
    after, _ = alone(CleanUp(fold_bytes=limit), program)
    assert all(value.nbytes <= limit for value in constants(after).values())
    assert bool(constants(after)) == (8 * size <= limit), "arange is the largest of the three"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + torch.ones(1).expand(4, 4),
        lambda x: x + torch.arange(32.0).view(4, 8)[:, ::2],
        lambda x: x + torch.arange(16.0).view(4, 4).t(),
        lambda x: torch.as_strided(torch.arange(8.0)[2:], (4, 4), (0, 1)) + x,
    ],
)
def test_constants_have_the_strides_they_are_declared_with(
    function: Callable[[Tensor], Tensor], capture_of: Any, alone: Any
) -> None:
    after, _ = alone(CleanUp(), capture_of(function, torch.randn(4, 4)))
    placeholders = {node.name: node for node in after.root.graph.nodes if node.op == "placeholder"}
    held = constants(after)
    assert held
    for name, value in held.items():
        assert value.stride() == val(placeholders[name]).stride()
        assert value.untyped_storage().nbytes() == value.nbytes


def test_a_graph_of_nothing_but_constants(capture_of: Any, alone: Any) -> None:
    after, _ = alone(CleanUp(), capture_of(lambda x: (torch.arange(3), torch.arange(4).cos()), torch.randn(2)))
    assert ops(after) == []
    assert len(constants(after)) == 2


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.ParameterList(nn.Parameter(torch.full((2,), float(i))) for i in range(3))

    def forward(self, x: Tensor) -> Any:
        return x + self.constant[1] + torch.arange(2).exp()


def test_a_constant_never_takes_the_name_of_a_weight(alone: Any) -> None:
    after, _ = alone(CleanUp(), capture(Named().eval(), (torch.randn(2),)))
    assert torch.equal(after.tensors["constant.1"], torch.ones(2))
    assert len(after.tensors) == 2


def test_symbolic_sizes_are_kept_until_they_are_numbers(capture_of: Any, alone: Any) -> None:
    dims = {"x": {0: Dim("n", min=2, max=8)}, "rest": None}
    program = capture(Positions().eval(), (torch.randn(4),), dynamic_shapes={"x": dims["x"]})
    after, _ = alone(CleanUp(), program)
    assert "aten.arange" in " ".join(ops(after))
    assert not constants(after)


class Positions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.shape[0])


@st.composite
def _programs(draw: st.DrawFn) -> Callable[[Tensor], Tensor]:
    """A straight line of no-ops, repeats, constants and arithmetic on a [3, 4] tensor."""
    steps: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, y: x * 1.0, lambda x, y: x + 0, lambda x, y: x.clone(), lambda x, y: x + y, lambda x, y: y * y.sin(),
        lambda x, y: x.t().contiguous().t(), lambda x, y: x.view(12).view(3, 4) if x.is_contiguous() else x,
        lambda x, y: x + torch.arange(4), lambda x, y: x * torch.ones(3, 1), lambda x, y: x[0:3], lambda x, y: x / 1,
        lambda x, y: x - torch.zeros(4), lambda x, y: torch.where(x > y, x, y), lambda x, y: x.to(torch.float32),
    ]  # fmt: skip
    chosen = draw(st.lists(st.sampled_from(range(len(steps))), min_size=1, max_size=8))

    def run(x: Tensor) -> Tensor:
        older, newer = x, x.relu()
        for index in chosen:
            older, newer = newer, steps[index](newer, older)
        return newer

    return run


@given(function=_programs())
def test_values_are_bitwise_kept_and_twice_is_once(
    function: Callable[[Tensor], Tensor], capture_of: Any, alone: Any
) -> None:
    x = torch.randn(3, 4)
    x[0, 0], x[1, 1], x[2, 2] = float("nan"), -0.0, float("inf")
    once, _ = alone(CleanUp(), capture_of(function, x))
    again, record = alone(CleanUp(), once)
    assert not record.modified
    assert ops(again) == ops(once)


def test_every_node_is_read_afterwards(capture_of: Any, alone: Any) -> None:
    after, _ = alone(CleanUp(), capture_of(lambda x: (x.cos(), x.sin())[1], torch.randn(3)))
    dead: list[fx.Node] = [node for node in after.root.graph.nodes if is_op(node) and not node.users]
    assert not dead
    assert ops(after) == ["aten.sin"]
