"""Sizes: static by default, symbolic where asked for, with bounds; 0 and 1 run; what specialises is listed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.capture import capture
from gaudicc.capture.shapes import grow_ones
from gaudicc.compiled import CompiledModel
from gaudicc.errors import InputError, ShapeError, UnsupportedInputError


class Pool(nn.Module):
    def forward(self, x: Tensor, scale: float = 2.0) -> tuple[Tensor, Tensor]:
        return x.sum(1), torch.relu(x) * scale


N = Dim("n", min=0, max=5)


@pytest.fixture(scope="module")
def pooled() -> CompiledModel:
    buckets = [{"n": size} for size in range(6)]
    return gaudicc.compile(Pool().eval(), (torch.randn(1, 3),), dynamic_shapes={"x": {0: N}}, buckets=buckets)


@given(size=st.integers(0, 5))
def test_sizes_0_and_1_run_like_any_other_though_the_example_has_1(size: int, pooled: CompiledModel) -> None:
    x = torch.randn(size, 3)
    for found, expected in zip(pooled(x), Pool()(x), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_size_beyond_the_bounds_is_refused_with_them(pooled: CompiledModel) -> None:
    with pytest.raises(ShapeError, match=r"x.shape\[0\] is 6, n runs from 0 to 5") as caught:
        pooled(torch.randn(6, 3))
    assert "raise the bound" in caught.value.todo
    with pytest.raises(ShapeError, match=r"has shape \[2, 4\], the model was compiled for \['n', 3\]"):
        pooled(torch.randn(2, 4))


def test_the_dimension_has_the_users_name_bounds_and_places() -> None:
    program = capture(Pool().eval(), (torch.randn(1, 3),), dynamic_shapes={"x": {0: N}})
    (dim,) = program.dimensions
    assert (dim.name, dim.low, dim.high, dim.positions) == ("n", 0, 5, (("x", 0),))


def test_static_is_the_default_and_another_shape_shows_the_line_to_add() -> None:
    compiled = gaudicc.compile(Pool().eval(), (torch.randn(2, 3),))
    assert compiled.program.dimensions == ()
    with pytest.raises(ShapeError) as caught:
        compiled(torch.randn(7, 3))
    assert 'dynamic_shapes={"x": {0: Dim("x_0", min=1, max=7)}}' in caught.value.todo
    with pytest.raises(ShapeError, match="rank"):
        compiled(torch.randn(2, 3, 1))


def test_the_line_to_add_works_as_written() -> None:
    compiled = gaudicc.compile(Pool().eval(), (torch.randn(2, 3),))
    with pytest.raises(ShapeError) as caught:
        compiled(torch.randn(7, 3))
    spec = caught.value.todo.split("dynamic_shapes=", 1)[1].split(" (from", 1)[0]
    shapes = eval(spec, {"Dim": Dim})
    again = gaudicc.compile(Pool().eval(), (torch.randn(2, 3),), dynamic_shapes=shapes, buckets=[{"x_0": 7}])
    assert again(torch.randn(7, 3))[0].shape == (7,)


@pytest.mark.parametrize("size", [0, 1])
def test_static_sizes_of_0_and_1(size: int) -> None:
    x = torch.randn(size, 3)
    compiled = gaudicc.compile(Pool().eval(), (x,))
    for found, expected in zip(compiled(x), Pool()(x), strict=True):
        torch.testing.assert_close(found, expected)


class Halves(nn.Module):
    """Fixes its first size to 2."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.unbind(0)
        return first + second


def test_auto_infers_and_lists_every_size_that_the_model_fixes() -> None:
    program = capture(Halves().eval(), (torch.randn(2, 6),), dynamic_shapes="auto")
    assert "size fixed by the model: x.shape[0] == 2" in program.notes
    (dim,) = program.dimensions
    assert (dim.name, dim.positions) == ("x_1", (("x", 1),))


def test_what_auto_found_fixed_is_guarded() -> None:
    compiled = gaudicc.compile(
        Halves().eval(), (torch.randn(2, 6),), dynamic_shapes="auto", buckets=[{"x_1": 6}, {"x_1": 9}]
    )
    assert "assert x.shape[0] == 2" in compiled.guards
    with pytest.raises(ShapeError, match="compiled for"):
        compiled(torch.randn(3, 6))


def test_auto_finds_no_bounds_so_buckets_must_give_them() -> None:
    with pytest.raises(InputError, match="x_1 has no upper bound"):
        gaudicc.compile(Halves().eval(), (torch.randn(2, 6),), dynamic_shapes="auto")


def test_a_size_declared_dynamic_that_the_model_fixes_is_refused() -> None:
    with pytest.raises(UnsupportedInputError, match="fixed by the model") as caught:
        capture(Halves().eval(), (torch.randn(2, 6),), dynamic_shapes={"x": {0: Dim("n", min=1, max=9)}})
    assert "fix it in dynamic_shapes" in caught.value.todo


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({"x": {0: Dim("n")}}, "Dim 'n' has no max"),
        ({"x": {0: Dim("n", min=1)}}, "Dim 'n' has no max"),
        ({"y": {0: N}}, "dynamic_shapes names 'y'"),
        ({"x": {2: N}}, "names dim 2 of x, which has 2 dims"),
        ({"x": {-1: N}}, "names dim -1 of x"),
        ({"x": 3}, "dynamic_shapes of x is 3"),
        ({"x": {0: Dim("n", min=3, max=9)}}, r"x.shape\[0\] is 2 in the example"),
        ({"x": {1: Dim("n", min=1, max=2)}}, r"x.shape\[1\] is 3 in the example"),
        ("all", "dynamic_shapes is 'all'"),
    ],
)
def test_dynamic_shapes_that_cannot_be_meant(shapes: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        capture(Pool().eval(), (torch.randn(2, 3),), dynamic_shapes=shapes)
    assert caught.value.todo


def test_a_tuple_goes_by_position_and_a_list_by_dim() -> None:
    by_tuple = capture(Pool().eval(), (torch.randn(2, 3),), dynamic_shapes=({0: N},))
    by_list = capture(Pool().eval(), (torch.randn(2, 3),), dynamic_shapes={"x": [N, None]})
    assert by_tuple.dimensions == by_list.dimensions


class Nested(nn.Module):
    def forward(self, batch: dict[str, Any], rows: list[Tensor]) -> Tensor:
        total: Tensor = batch["ids"] * batch["mask"] + rows[0]
        return total.sum(1)


def test_sizes_inside_containers_and_the_same_name_twice() -> None:
    n, m = Dim("n", min=1, max=9), Dim("m", min=1, max=9)
    shapes = {"batch": {"ids": {0: n, 1: m}, "mask": {1: m}}, "rows": [{0: n, 1: m}]}
    inputs = ({"ids": torch.randn(2, 3), "mask": torch.ones(1, 3)}, [torch.randn(2, 3)])
    program = capture(Nested().eval(), inputs, dynamic_shapes=shapes)
    assert {dim.name: len(dim.positions) for dim in program.dimensions} == {"n": 2, "m": 3}
    with pytest.raises(InputError, match="dynamic_shapes of batch is"):
        capture(Nested().eval(), inputs, dynamic_shapes={"batch": [n]})


def test_equal_sizes_must_stay_equal() -> None:
    n = Dim("n", min=1, max=9)
    compiled = gaudicc.compile(
        lambda a, b: a + b,
        (torch.ones(2), torch.ones(2)),
        dynamic_shapes={"a": {0: n}, "b": {0: n}},
        buckets=[{"n": 3}],
    )
    assert compiled(torch.ones(3), torch.ones(3)).tolist() == [2, 2, 2]
    with pytest.raises(ShapeError, match="another input says n is 3"):
        compiled(torch.ones(3), torch.ones(2))


@given(shape=st.tuples(st.integers(0, 3), st.integers(0, 3)), dims=st.sets(st.sampled_from([0, 1])))
def test_examples_of_0_and_1_are_grown_in_dynamic_dims_only(shape: tuple[int, int], dims: set[int]) -> None:
    x = torch.randn(shape)
    (grown,), kwargs = grow_ones((x,), {}, ["x"], {"x": {dim: N for dim in dims}})
    assert kwargs == {}
    assert grown.shape == tuple(max(size, 2) if dim in dims else size for dim, size in enumerate(shape))
    if grown.shape == x.shape:
        assert grown is x
