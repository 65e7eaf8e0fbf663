"""Regions: identical layers are one body with a call site each; passes then work on the body alone."""

from __future__ import annotations

import time
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.export import Dim

from gaudicc.capture import capture
from gaudicc.capture.regions import region_dag
from gaudicc.compiler import split_pipeline
from gaudicc.nodes import call_region, is_op, regions_called
from gaudicc.passes import DEFAULT_PIPELINE
from gaudicc.program import Program
from gaudicc.targets import load_target


class Layer(nn.Module):
    def __init__(self, factor: float = 1.0, width: int = 4) -> None:
        super().__init__()
        self.inner = nn.Linear(4, width)
        self.outer = nn.Linear(width, 4)
        self.factor = factor

    def forward(self, x: Tensor) -> Any:
        return x + self.outer(torch.relu(self.inner(x))) * self.factor


class Layers(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sin()
        for layer in self.layers:
            x = layer(x)
        return x.flatten().cos()


def captured(layers: list[nn.Module], **kwargs: Any) -> tuple[nn.Module, Program]:
    model = Layers(layers).eval()
    return model, capture(model, (torch.randn(3, 4),), **kwargs)


def called(program: Program) -> list[str]:
    return [name for _, name in regions_called(program.root.graph)]


def assert_equal(model: nn.Module, program: Program) -> None:
    x = torch.randn(3, 4)
    with torch.no_grad():
        assert torch.equal(program.run({"x": x})[0], model(x))


def test_the_last_layer_is_like_the_others_whatever_follows_it() -> None:
    model, program = captured([Layer(), Layer()])
    assert called(program) == ["layer", "layer"]
    assert_equal(model, program)


def test_layers_of_one_are_no_region() -> None:
    model, program = captured([Layer()])
    assert not program.bodies
    assert_equal(model, program)


@given(kinds=st.lists(st.sampled_from([(1.0, 4), (2.0, 4), (1.0, 8)]), min_size=1, max_size=8))
def test_as_many_bodies_as_kinds_that_repeat_in_any_order(kinds: list[tuple[float, int]]) -> None:
    model, program = captured([Layer(factor, width) for factor, width in kinds])
    repeated = [kind for kind in kinds if kinds.count(kind) > 1]
    assert len(program.bodies) == len(set(repeated))
    assert len(called(program)) == len(repeated)
    assert_equal(model, program)
    chain = list(nx.topological_sort(region_dag(program.root.graph)))
    assert chain == [node.name for node, _ in regions_called(program.root.graph)]


def test_alternating_kinds_are_two_bodies() -> None:
    model, program = captured([Layer(1.5), Layer(2.5)] * 3)
    assert called(program) == ["layer", "layer_2"] * 3
    assert_equal(model, program)


def test_arithmetic_on_sizes_that_export_shares_keeps_layers_alike() -> None:
    class Scaled(Layer):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) / (x.shape[0] * 2 + 1)

    shapes = {"x": {0: Dim("n", min=1, max=9)}}
    model, program = captured([Scaled() for _ in range(4)], dynamic_shapes=shapes)
    assert called(program) == ["scaled"] * 4
    assert_equal(model, program)


def test_layers_with_other_dtypes_strides_or_wiring_differ() -> None:
    class Crossed(Layer):
        def forward(self, x: Tensor) -> Any:
            return self.outer(torch.relu(self.inner(x))) * self.factor + x

    model, program = captured([Layer(), Crossed(), Layer(), Crossed()])
    assert sorted(program.bodies) == ["crossed", "layer"]
    assert_equal(model, program)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(Layer(), Layer()) for _ in range(3))
        self.odd = nn.Sequential(Layer(), nn.Tanh(), Layer())

    def forward(self, x: Tensor) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.odd(x)


def test_the_outermost_level_that_repeats_wins() -> None:
    model = Nested().eval()
    program = capture(model, (torch.randn(3, 4),))
    assert called(program) == ["sequential"] * 3 + ["layer"] * 2
    assert_equal(model, program)


class Skips(nn.Module):
    """Every layer reads the first layer's result, and the model returns two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = x = self.layers[0](x)
        for layer in list(self.layers)[1:]:
            x = layer(x + first)
        return x, first


def test_results_that_are_read_far_away() -> None:
    model = Skips().eval()
    program = capture(model, (torch.randn(3, 4),))
    x = torch.randn(3, 4)
    with torch.no_grad():
        for found, expected in zip(program.run({"x": x}), model(x), strict=True):
            assert torch.equal(found, expected)
    assert called(program).count("layer") >= 3


def test_shared_weights_and_one_layer_called_often() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Layer()])

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.layers[0](x)
            return x

    model = Recurrent().eval()
    program = capture(model, (torch.randn(3, 4),))
    assert_equal(model, program)


def tiny(family: str, layers: int) -> tuple[Any, Program]:
    pytest.importorskip("transformers", reason="needs gaudicc[models]")
    from gaudicc.models.transformers_models import build, example_inputs

    model = build(family, layers=layers)
    return model, capture(model, example_inputs(model))


def test_a_llama_of_32_layers_has_one_body() -> None:
    _, program = tiny("llama", 32)
    assert called(program) == ["llama_decoder_layer"] * 32
    _, short = tiny("llama", 2)
    assert len(program.bodies["llama_decoder_layer"].graph.nodes) == len(
        short.bodies["llama_decoder_layer"].graph.nodes
    )
    assert program.count_ops() == short.count_ops()


def test_the_two_kinds_of_layers_of_gemma3_differ_in_what_is_bound_only() -> None:
    """Sliding and full attention are the same graph over another mask and another rotation."""
    model, program = tiny("gemma3_text", 6)
    assert set(model.config.layer_types) == {"sliding_attention", "full_attention"}
    assert called(program) == ["gemma3_decoder_layer"] * 6
    calls = [node for node in program.root.graph.nodes if node.target is call_region][1:]
    computed = [[arg for arg in call.args[1:] if isinstance(arg, fx.Node) and is_op(arg)] for call in calls]
    bound = [tuple(arg.name for arg in args) for args in computed]
    assert len(set(bound)) == 2
    assert len(set(zip(model.config.layer_types[1:], bound, strict=True))) == 2, (
        "each kind has a mask and rotation of its own"
    )


def test_a_mixture_with_some_dense_layers_has_two_bodies() -> None:
    pytest.importorskip("transformers", reason="needs gaudicc[models]")
    from gaudicc.models.transformers_models import build, example_inputs

    model = build("qwen3_moe", layers=4, mlp_only_layers=[0, 2])
    program = capture(model, example_inputs(model))
    assert called(program) == ["qwen3_moe_decoder_layer", "qwen3_moe_decoder_layer_2"] * 2


def pass_seconds(layers: int) -> float:
    program = captured([Layer() for _ in range(layers)])[1]
    program.target = load_target("gaudi3")
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        symbolic, static = split_pipeline(DEFAULT_PIPELINE)
        static.run(symbolic.run(program)[0])
        best = min(best, time.process_time() - started)
    return best


def test_pass_time_grows_far_slower_than_the_layers() -> None:
    assert pass_seconds(64) < 8 * pass_seconds(4), "sixteen times the layers; what grows is the list of their weights"
