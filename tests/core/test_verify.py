"""The verify levels, and the comparison that the last of them rests on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc import verify
from gaudicc.capture import capture
from gaudicc.errors import InputError, NumericsError, PostconditionError
from gaudicc.fake_values import fake_mode_of, is_computed, propagate
from gaudicc.nodes import val
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.verify import TOLERANCE, Level, differs

aten = torch.ops.aten


@pytest.mark.parametrize("name", ["structure", "shapes", "ops", "numerics", "poison", "NUMERICS"])
def test_levels_are_parsed_and_each_holds_the_ones_before(name: str) -> None:
    assert Level.parse(name).name == name.upper()
    assert sorted(Level) == [Level.STRUCTURE, Level.SHAPES, Level.OPS, Level.NUMERICS, Level.POISON]


@pytest.mark.parametrize("level", ["all", "", None, 3])
def test_an_unknown_level_is_refused_with_the_known_ones(level: str) -> None:
    with pytest.raises(InputError, match="no verify level") as caught:
        Level.parse(level)
    assert "structure, shapes, ops, numerics, poison" in str(caught.value)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x)) + x.mean(0)


def program(dynamic: bool = False) -> Program:
    shapes = {"x": {0: Dim("n", min=1, max=9)}} if dynamic else None
    return capture(Model().eval(), (torch.randn(3, 4),), dynamic_shapes=shapes)


def edited(before: Program, op: torch._ops.OpOverload, function: Callable[..., Tensor]) -> Program:
    after = before.copy()
    rewriter = Rewriter(after.root)
    (node,) = [node for node in after.root.graph.nodes if node.target is op]
    rewriter.replace(node, rewriter.inline(function, *node.args, like=node))
    rewriter.finish()
    return after


@pytest.mark.parametrize("field", ["dtype", "shape", "strides"])
def test_shapes_compares_dtype_shape_and_strides(field: str) -> None:
    wrong = program()
    verify.shapes(wrong, "a stage")
    (node,) = [node for node in wrong.root.graph.nodes if node.target is aten.relu.default]
    value = node.meta["val"]
    node.meta["val"] = {"dtype": value.double, "shape": value.flatten, "strides": lambda: value.t().contiguous().t()}[
        field
    ]()
    with pytest.raises(PostconditionError, match="pass a stage left a wrong type on relu") as caught:
        verify.shapes(wrong, "a stage")
    assert caught.value.where.op == "aten.relu"


def test_what_was_propagated_needs_no_check_until_its_call_changes() -> None:
    made = program()
    propagate(
        made.root, [val(node) for node in made.root.graph.find_nodes(op="placeholder")], fake_mode_of(made.root.graph)
    )
    (node,) = [node for node in made.root.graph.nodes if node.target is aten.mean.dim]
    assert is_computed(node)
    node.args = (node.args[0], [0, 1])
    assert not is_computed(node)
    with pytest.raises(PostconditionError, match="left a wrong type on mean"):
        verify.shapes(made, "a stage")


@pytest.mark.parametrize("dynamic", [False, True])
def test_shapes_and_numerics_accept_what_is_right(dynamic: bool) -> None:
    before = program(dynamic)
    same = edited(before, aten.relu.default, lambda x: torch.where(x > 0, x, 0.0))
    verify.shapes(same, "a stage")
    verify.numerics(before, same, "a stage", bitwise=True)


def test_numerics_runs_a_second_size_where_sizes_are_dynamic() -> None:
    """A size frozen at the example's is right there and wrong everywhere else."""
    before = program(dynamic=True)
    frozen = edited(before, aten.mean.dim, lambda x, dims: x.sum(dims) / 3)
    close = edited(before, aten.mean.dim, lambda x, dims: x.sum(dims) / x.shape[0])
    verify.numerics(before, close, "a stage", bitwise=False)
    with pytest.raises(NumericsError, match=r"changed output 0.*the first node to differ is"):
        verify.numerics(before, frozen, "a stage", bitwise=False)


def test_numerics_needs_weights() -> None:
    model = Model().to("meta").eval()
    meta = capture(model, (torch.randn(3, 4, device="meta"),))
    with pytest.raises(InputError, match="meta device") as caught:
        verify.numerics(meta, meta, "a stage", bitwise=True)
    assert "verify='ops'" in str(caught.value)


def test_each_level_is_taken_by_compile(make_stack: Callable[..., nn.Module]) -> None:
    model, x = make_stack(2), torch.randn(2, 8)
    for level in Level:
        compiled = gaudicc.compile(model, (x,), verify=level.name.lower())
        assert all(level.name.lower() in record.checks for record in compiled.trace)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)


VALUES = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_equal_values_never_differ(values: list[float]) -> None:
    a = torch.tensor(values)
    assert differs(a, a.clone(), bitwise=True) is None
    assert differs(a, a.clone(), bitwise=False) is None


@given(st.lists(VALUES, min_size=1, max_size=5), st.integers(0, 4), VALUES, st.booleans())
def test_a_changed_value_differs_unless_it_is_rounding(values: list[float], at: int, new: float, bitwise: bool) -> None:
    a = torch.tensor(values)
    b = a.clone()
    at %= len(values)
    b[at] = new
    zeros = bitwise and bool(a[at] == 0 and a[at].signbit() != b[at].signbit())
    same = bool(a[at] == b[at] and not zeros) or bool(a[at].isnan() and b[at].isnan())
    both_finite = bool(a[at].isfinite() and b[at].isfinite())
    scale = max(a[a.isfinite()].double().abs().max().item() if a.isfinite().any() else 0.0, 1.0)
    rounding = both_finite and abs(a[at].double() - b[at].double()).item() <= TOLERANCE[torch.float32] * scale
    expected_equal = same or (rounding and not bitwise)
    result = differs(a, b, bitwise=bitwise)
    assert (result is None) == expected_equal
    if result is not None:
        assert f"first at ({at},)" in result
        assert " became " in result


def test_what_else_can_differ() -> None:
    x = torch.zeros(2)
    assert differs(x, torch.zeros(3), bitwise=False) == "f32[2] became f32[3]"
    assert differs(x, x.double(), bitwise=False) == "f32[2] became f64[2]"
    assert differs(1, 2, bitwise=False) == "1 became 2"
    assert differs(3, 3, bitwise=True) is None
    assert differs(torch.tensor([True]), torch.tensor([False]), bitwise=False) is not None
    assert differs(torch.zeros(0), torch.zeros(0), bitwise=True) is None
    assert differs(torch.tensor([0.0]), torch.tensor([-0.0]), bitwise=False) is None
    assert (
        differs(torch.tensor([0.0]), torch.tensor([-0.0]), bitwise=True)
        == "1 of 1 values, first at (0,): 0.0 became -0.0"
    )
    assert differs(torch.zeros(()), torch.ones(()), bitwise=True) == "1 of 1 values, first at (): 0.0 became 1.0"


def picked(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x[:, index].sum(1)


@pytest.mark.parametrize("level", ["numerics", "poison"])
def test_positions_among_the_inputs_are_kept_in_range(level: str) -> None:
    sizes = {"x": {1: Dim("n", min=1, max=16)}, "index": {0: Dim("k", min=1, max=4)}}
    x, index = torch.randn(2, 10), torch.tensor([0, 9, 3])
    compiled = gaudicc.compile(picked, (x, index), dynamic_shapes=sizes, verify=level)
    torch.testing.assert_close(compiled(x, index), picked(x, index))


def test_values_that_no_other_size_can_have_are_named() -> None:
    def joined(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return x[:, index + 9]

    sizes = {"x": {1: Dim("n", min=1, max=16)}}
    with pytest.raises(InputError, match=r"(?s)x \[2, 1\].*raises IndexError.*narrow the Dims"):
        gaudicc.compile(joined, (torch.randn(2, 10), torch.tensor([0])), dynamic_shapes=sizes, verify="poison")
