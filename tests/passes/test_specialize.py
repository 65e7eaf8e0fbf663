"""specialize: one bucket's sizes in place of symbols, in the root and in the bodies, for every size in range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.capture import capture
from gaudicc.errors import InternalError, UnsupportedOpError
from gaudicc.invariants import STATIC, TYPED
from gaudicc.nodes import call_region
from gaudicc.passes.specialize import Specialize
from gaudicc.program import Program

DIMS = {"x": {0: Dim("batch", min=1, max=4), 1: Dim("length", min=1, max=9)}}

Captured = tuple[nn.Module, Program]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        heads = self.inner(x).view(x.shape[0], x.shape[1], 2, 2).transpose(1, 2)
        return x + heads.transpose(1, 2).contiguous().view(x.shape) / (x.shape[1] + 1)


class Layers(nn.Module):
    """Sizes are read in the bodies and in the root, and pass from one to the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.arange(x.shape[1]).unsqueeze(1)
        for layer in self.layers:
            x = layer(x)
        return x.flatten(0, 1)


@pytest.fixture(scope="module")
def layers() -> tuple[nn.Module, Program]:
    model = Layers().eval()
    return model, capture(model, (torch.randn(2, 5, 4),), dynamic_shapes=DIMS)


def bucket(batch: int, length: int) -> Specialize:
    return Specialize((("batch", batch), ("length", length)))


def violations(program: Program) -> list[str]:
    graphs = [module for _, module in program.graphs()]
    return [str(v) for invariant in (STATIC, TYPED) for module in graphs for v in invariant.violations(program, module)]


def test_before_and_after(alone: Any, text_of: Any) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(x.shape[0], x.shape[1] * 4) + x.shape[1]

    program = capture(Model().eval(), (torch.randn(2, 5, 4),), dynamic_shapes=DIMS)
    after = bucket(4, 3).run(program).program
    assert_expected_inline(
        text_of(after),
        """\
graph root:
  %x: f32[4, 3, 4] = input x
  %0: f32[4, 12] = aten.view(%x, [4, 12])
  %1: f32[4, 12] = aten.add.Tensor(%0, 3)
  return (%1)
""",
    )


@given(batch=st.integers(1, 4), length=st.integers(1, 9))
def test_every_bucket_computes_what_the_model_does(batch: int, length: int, layers: Captured) -> None:
    model, program = layers
    after = bucket(batch, length).run(program.copy()).program
    assert not violations(after)
    assert after.dimensions == ()
    x = torch.randn(batch, length, 4)
    with torch.no_grad():
        assert torch.equal(after.run({"x": x})[0], model(x))
    assert torch.equal(after.run({"x": x})[0], program.run({"x": x})[0])


def test_sizes_are_no_longer_operands_of_the_bodies(layers: Captured) -> None:
    program = layers[1]
    after = bucket(2, 8).run(program.copy()).program
    (body,) = after.bodies.values()
    names = [node.name for node in body.graph.nodes if node.op == "placeholder"]
    assert len(names) == 3, names
    sites = [node for node in after.root.graph.nodes if node.target is call_region]
    assert [len(site.args) for site in sites] == [4, 4, 4]


def test_the_example_is_repeated_or_cut_to_the_bucket(layers: Captured) -> None:
    program = layers[1]
    (x,) = program.example.values()
    longer = bucket(3, 7).run(program.copy()).program.example["x"]
    assert longer.shape == (3, 7, 4)
    assert torch.equal(longer[:2, :5], x)
    assert torch.equal(longer[2], longer[0])
    shorter = bucket(1, 2).run(program.copy()).program.example["x"]
    assert torch.equal(shorter, x[:1, :2])


def test_a_static_program_is_left_as_it_is(alone: Any) -> None:
    program = capture(Layers().eval(), (torch.randn(2, 5, 4),))
    result = Specialize().run(program)
    assert not result.modified
    assert result.program is program


def test_a_bucket_that_leaves_a_size_out_is_a_fault_of_ours(layers: Captured) -> None:
    program = layers[1]
    with pytest.raises(InternalError, match="leaves out length"):
        Specialize((("batch", 2),)).run(program.copy())


def test_the_symbolic_program_serves_the_next_bucket(layers: Captured) -> None:
    program = layers[1]
    before = [str(node.meta.get("val")) for _, module in program.graphs() for node in module.graph.nodes]
    bucket(3, 4).run(program.copy())
    assert [str(node.meta.get("val")) for _, module in program.graphs() for node in module.graph.nodes] == before


@pytest.mark.parametrize("select", [lambda x: x[x > 0][::2], lambda x: torch.bincount(x.long().abs())])
def test_sizes_that_values_decide_are_refused_with_their_line(select: Callable[[Tensor], Tensor]) -> None:
    def model(x: Tensor) -> Tensor:
        return select(x)

    with pytest.raises(UnsupportedOpError, match="depends on the values of a tensor") as caught:
        gaudicc.compile(model, (torch.randn(4),))
    assert "test_specialize.py" in str(caught.value)


def test_a_body_whose_sizes_were_numbers_before_gets_its_strides() -> None:
    """The last token of a sequence has the sequence in its stride alone."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([head(x[:, -1]) for head in self.heads])

    shapes = {"x": {1: Dim("t", min=1, max=8)}}
    compiled = gaudicc.compile(Heads().eval(), (torch.randn(2, 5, 4),), dynamic_shapes=shapes, buckets=[{"t": 8}])
    compiled.warm_up()
    last = compiled.trace[-1].after
    assert last.bodies
    values = [node.meta.get("val") for _, module in last.graphs() for node in module.graph.nodes]
    strides = [step for value in values if isinstance(value, torch.Tensor) for step in value.stride()]
    assert all(isinstance(step, int) for step in strides)
