"""Layers that make the same calls are traced once, and only those: the program says what the model does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

from gaudicc.capture import capture, repeats
from gaudicc.capture.layer_calls import LayerCalls
from gaudicc.capture.outline import outline
from gaudicc.program import Program

KINDS = ("relu", "gelu", "scaled", "shared", "cut")


class Layer(nn.Module):
    """One of several kinds of layer of one class; some part ways only after several equal calls."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        y = self.a(x)
        seen = y.mean(-1, keepdim=True) if seen is None else seen
        if self.kind == "shared":
            y = y * seen
        y = torch.nn.functional.gelu(y) if self.kind == "gelu" else torch.relu(y)
        y = self.b(y) * (0.5 if self.kind == "scaled" else 2)
        if self.kind == "cut":
            y = torch.cat([y[..., 4:], -y[..., :4]], dim=-1)
        return x + y, seen


class Model(nn.Module):
    def __init__(self, kinds: list[str]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(kind) for kind in kinds)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = None
        for layer in self.layers:
            x, seen = layer(x, seen)
        assert seen is not None
        return x, seen


def captured(model: nn.Module, x: Tensor) -> Program:
    rows = Dim("rows", min=1, max=64)
    return capture(model.eval(), (x,), dynamic_shapes={"x": {0: rows}})


def check(program: Program, model: nn.Module, rows: int) -> None:
    x = torch.randn(rows, 3, 8)
    with torch.no_grad():
        expected = model(x)
    got = program.run({"x": x})
    for one, other in zip(got, expected if isinstance(expected, tuple) else (expected,), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=6), st.integers(1, 9))
def test_any_mixture_of_layers_is_what_the_model_does(kinds: list[str], rows: int) -> None:
    torch.manual_seed(0)
    model = Model(kinds)
    program = captured(model, torch.randn(2, 3, 8))
    check(program, model, rows)
    check(program, model, 2)


def test_equal_layers_are_traced_once_and_share_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[Any] = []
    whole = LayerCalls._trace

    def counted(self: LayerCalls, function: Any, given: Any) -> Any:
        traced.append(function)
        return whole(self, function, given)

    monkeypatch.setattr(LayerCalls, "_trace", counted)
    program = captured(Model(["relu"] * 2), torch.randn(2, 3, 8))
    calls = len(traced)
    deeper = captured(Model(["relu"] * 9), torch.randn(2, 3, 8))
    # the first layer computes what the others are given, so that two kinds of layers are traced
    assert len(traced) - calls <= 2 * calls
    assert len(deeper.bodies) <= 2
    assert not any("gaudicc_capture" in op for op in (*program.count_ops(), *deeper.count_ops()))


def test_lines_and_module_paths_are_the_users() -> None:
    program = captured(Model(["relu"] * 4), torch.randn(2, 3, 8))
    body = next(iter(program.bodies.values()))
    traces = [node.meta["stack_trace"] for node in body.graph.nodes if node.op == "call_function"]
    assert all("test_repeats.py" in trace and "capture/repeats.py" not in trace for trace in traces)


class Keeping(Layer):
    """Leaves a tensor in an attribute, where the model reads it."""

    kept: Tensor

    def forward(self, x: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        x, seen = super().forward(x, seen)
        self.kept = x * 3
        return x, seen


class Reading(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Keeping("relu") for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.ones(1)
        for layer in self.layers:
            x, _ = layer(x, seen)
        kept: list[Any] = [layer.kept for layer in self.layers]
        result: Tensor = x + kept[0] - 2 * kept[1] + 5 * kept[2]
        return result


def test_a_tensor_that_a_layer_leaves_elsewhere_is_its_own() -> None:
    torch.manual_seed(0)
    model = Reading()
    program = captured(model, torch.randn(2, 3, 8))
    check(program, model, 5)


class Early(nn.Module):
    """Leaves a tensor in an attribute before it parts ways with the layers before it."""

    kept: Tensor

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.a, self.factor = nn.Linear(8, 8), factor

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.a(x)
        y: Tensor = x + self.kept * self.factor
        return y


@pytest.mark.parametrize("factors", [(1, 1, 1), (1, 2, 1), (2, 1, 3)])
def test_a_tensor_left_before_layers_part_ways_is_its_own(factors: tuple[int, ...]) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(map(Early, factors))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            kept: list[Any] = [layer.kept for layer in self.layers]
            result: Tensor = x - kept[0] + 3 * kept[1] - 5 * kept[2]
            return result

    torch.manual_seed(0)
    model = Whole()
    check(captured(model, torch.randn(2, 3, 8)), model, 5)


def test_a_layer_that_runs_twice_leaves_what_it_left_last() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Early(1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for layer in (*self.layers, *self.layers):
                x = layer(x)
            kept: list[Any] = [layer.kept for layer in self.layers]
            result: Tensor = x + 3 * kept[0] - 5 * kept[1]
            return result

    torch.manual_seed(0)
    model = Twice()
    check(captured(model, torch.randn(2, 3, 8)), model, 5)


class Counting(nn.Module):
    """Layers that write to a buffer of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Adding() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Adding(nn.Module):
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.total.add_(x.sum((0, 1)))
        return x + self.total


def test_layers_that_write_are_traced_one_by_one() -> None:
    torch.manual_seed(0)
    model = Counting()
    program = captured(model, torch.randn(2, 3, 8))
    x = torch.randn(4, 3, 8)
    got = program.run({"x": x})
    torch.testing.assert_close(got[[spec.kind.value for spec in program.outputs].index("output")], model(x))


def test_tied_weights_stay_tied() -> None:
    torch.manual_seed(0)
    model = Model(["relu", "relu", "relu"])
    layers: Any = model.layers
    layers[1].a.weight = layers[0].a.weight
    layers[2].b = layers[1].b
    check(captured(model, torch.randn(2, 3, 8)), model, 3)


def test_what_layers_may_keep_is_followed() -> None:
    class Into(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer("relu") for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            left: dict[str, Tensor] = {}
            repeats.may_keep(left)
            for index, layer in enumerate(self.layers):
                forward = layer.forward
                x, left[f"seen_{index}"] = layer(x, None)
                assert forward == layer.forward
            result: Tensor = x + sum((index + 1) * value for index, value in enumerate(left.values()))
            return result

    torch.manual_seed(0)
    model = Into()
    program = captured(model, torch.randn(2, 3, 8))
    assert len(program.bodies) == 1
    check(program, model, 4)


def test_the_classes_are_left_as_they_were() -> None:
    before = Layer.forward
    captured(Model(["relu", "gelu"]), torch.randn(2, 3, 8))
    assert Layer.forward is before


def test_outline_leaves_other_graphs_alone() -> None:
    program = captured(Model(["relu"]), torch.randn(2, 3, 8))
    nodes = [node.name for node in program.root.graph.nodes]
    outline(program.root)
    assert [node.name for node in program.root.graph.nodes] == nodes


class GivesBack(nn.Module):
    """A layer whose residual is its input, through ops that give back what they are given."""

    def __init__(self, give_back: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.give_back = nn.Linear(4, 4), give_back

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.linear(x.to(self.linear.weight.dtype)).tanh()
        result: Tensor = self.give_back(x) + hidden
        return result


@pytest.mark.parametrize("give_back", [lambda x: x.to(torch.float32), lambda x: x.contiguous(), torch.atleast_2d])
def test_a_residual_that_an_op_gives_back_is_that_of_its_own_layer(give_back: Callable[[Tensor], Tensor]) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layers = nn.Linear(4, 4), nn.ModuleList(GivesBack(give_back) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for layer in self.layers:
                x = layer(x)
            return x

    torch.manual_seed(0)
    model, x = Deep().eval(), torch.randn(2, 4)
    (ours,) = capture(model, (x,)).run({"x": x})
    assert torch.equal(ours, model(x))
