"""canonicalize-layers: layers that are nearly the same share a body, no bit of a result changes, and the trace says the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.capture import capture
from gaudicc.nodes import regions_called
from gaudicc.passes.canonicalize_layers import CanonicalizeLayers
from gaudicc.pipeline import Pipeline
from gaudicc.program import Program
from gaudicc.rules.same_layers import lifted_dtype
from gaudicc.trace import PassRecord
from gaudicc.verify import Level


@dataclass(frozen=True)
class Kind:
    """What a layer may have of its own."""

    factor: float = 1.5
    index: int = 0
    norm: bool = True
    slope: float = 0.1
    gate: bool = False


class Layer(nn.Module):
    """A layer as LLM servers write it: the residual is None in the first one, tables are shared and indexed."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        self.norm = nn.LayerNorm(8) if kind.norm else nn.Identity()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, residual: Tensor | None, table: Tensor) -> tuple[Tensor, Tensor]:
        residual = x if residual is None else x + residual
        h = self.a(self.norm(residual)) * self.kind.factor + table[self.kind.index]
        h = nn.functional.leaky_relu(self.b(h), self.kind.slope)
        return (self.c(h) * h.sigmoid() if self.kind.gate else self.c(h)), residual


class Model(nn.Module):
    def __init__(self, kinds: list[Kind]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(Layer, kinds))
        self.table = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual, self.table)
        assert residual is not None
        result: Tensor = x + residual
        return result


def canonical(model: nn.Module, *inputs: Tensor, **options: Any) -> tuple[Program, PassRecord]:
    """The program after the pass, which is held bit by bit against the one before it."""
    after, (record,) = Pipeline((CanonicalizeLayers(),)).run(
        capture(model.eval(), inputs, **options), level=Level.NUMERICS
    )
    return after, record


def called(program: Program) -> list[str]:
    return [name for _, name in regions_called(program.root.graph)]


def test_before_and_after(text_of: Any) -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.linear, self.factor = nn.Linear(4, 4, bias=False), factor

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.linear(x) * self.factor)

    program, record = canonical(nn.Sequential(*(Scaled(factor) for factor in (0.5, 1.5, 2.5))), torch.randn(2, 4))
    assert record.notes == (": 3 x Scaled, 1 body, 3 before",)
    body = text_of(program).split("\n\n")[0]
    assert_expected_inline(
        body,
        """\
graph scaled:
  %input_1: f32[2, 4] = operand input_1
  %linear_weight: f32[4, 4] = operand linear_weight
  %constant_0: f32[] = operand constant_0
  %0: f32[2, 4] = aten.linear(%input_1, %linear_weight)
  %1: f32[2, 4] = aten.mul.Tensor(%0, %constant_0)
  %2: f32[2, 4] = aten.relu(%1)
  return (%2)""",
    )


KINDS = st.builds(
    Kind,
    factor=st.sampled_from((0.1, 1.0, 3.7)),
    index=st.integers(0, 3),
    norm=st.booleans(),
    slope=st.sampled_from((0.1, 0.1, 0.2)),
    gate=st.sampled_from((False, False, True)),
)


@settings(max_examples=12)
@given(kinds=st.lists(KINDS, min_size=2, max_size=5), dynamic=st.booleans())
def test_no_bit_changes_whatever_the_layers(kinds: list[Kind], dynamic: bool) -> None:
    torch.manual_seed(0)
    model = Model(kinds)
    shapes = {"x": {0: Dim("rows", min=2, max=9)}} if dynamic else None
    program, record = canonical(model, torch.randn(3, 2, 8), dynamic_shapes=shapes)
    assert record.notes[0].startswith(f"layers: {len(kinds)} x Layer, ")
    for rows in (3, 5, 2) if dynamic else (3,):
        x = torch.randn(rows, 2, 8)
        with torch.no_grad():
            assert torch.equal(program.run({"x": x})[0], model(x))


@pytest.mark.parametrize(
    "kinds",
    [
        [Kind()] * 4,
        [Kind(factor=factor) for factor in (0.1, 0.2, 0.3, 0.4)],
        [Kind(index=index) for index in range(4)],
        [Kind(factor=factor, index=index) for index, factor in enumerate((0.1, 0.1, 0.3, 0.3))],
        [Kind(factor=factor) for factor in (0.1, 0.2) * 3],
    ],
)
def test_numbers_an_index_and_the_first_residual_cost_no_body(kinds: list[Kind]) -> None:
    program, record = canonical(Model(kinds), torch.randn(3, 2, 8))
    assert called(program) == ["layer"] * len(kinds)
    assert "1 body" in record.notes[0]
    assert len(record.notes) == 1


@pytest.mark.parametrize(
    ("kinds", "why"),
    [
        ([Kind(slope=0.2), Kind(), Kind()], "aten.leaky_relu takes 0.1 and 0.2 as Python numbers"),
        ([Kind(), Kind(gate=True), Kind(gate=True)], "2 ops only in layers.1 (aten.sigmoid, aten.mul.Tensor)"),
        ([Kind(), Kind(), Kind(), Kind(norm=False)], "1 ops only in layers.1 (aten.layer_norm)"),
    ],
)
def test_why_a_layer_has_a_body_of_its_own(kinds: list[Kind], why: str) -> None:
    _, record = canonical(Model(kinds), torch.randn(3, 2, 8))
    assert any(why in note for note in record.notes[1:]), record.notes


@pytest.mark.parametrize(
    ("dtype", "number", "lifted"),
    [
        (torch.float32, 0.1, torch.float32),  # the op rounds it to float32 too
        (torch.float64, 0.1, torch.float64),
        (torch.bfloat16, 0.5, torch.bfloat16),
        (torch.bfloat16, 0.1, None),  # the op computes with float32's 0.1
        (torch.int64, 3, torch.int64),
        (torch.int64, 0.5, None),
        (torch.int64, 1 << 40, None),
        (torch.float32, True, None),
    ],
)
def test_a_number_is_lifted_where_the_tensor_gives_the_same_bits(dtype: Any, number: Any, lifted: Any) -> None:
    program = capture(lambda x: x * number, (torch.ones(3).to(dtype),))
    node = next(node for node in program.root.graph.nodes if node.op == "call_function")
    assert lifted_dtype(node, number) is lifted


def test_a_window_of_each_layer_is_an_operand() -> None:
    class Windowed(nn.Module):
        def __init__(self, window: int) -> None:
            super().__init__()
            self.window, self.linear = window, nn.Linear(8, 8)

        def forward(self, x: Tensor, positions: Tensor) -> Tensor:
            near = positions[:, None] - positions[None, :] < self.window
            result: Tensor = self.linear(x).masked_fill(~near[..., :1], 0.0) + x
            return result

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Windowed(window) for window in (2, 4, 8))

        def forward(self, x: Tensor, positions: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x, positions)
            return x

    program, _ = canonical(Whole(), torch.randn(6, 8), torch.arange(6))
    assert called(program) == ["windowed"] * 3


def test_what_the_first_layer_alone_computes_is_moved_before_its_call() -> None:
    class Biased(nn.Module):
        """The first layer makes a bias, which all layers add."""

        def __init__(self, first: bool) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.table = nn.Embedding(5, 8) if first else None

        def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
            if bias is None:
                assert self.table is not None
                bias = self.table(torch.arange(5)).exp()
            return x + self.b(torch.relu(self.a(x) + bias)), bias

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Biased(not i) for i in range(3))

        def forward(self, x: Tensor) -> Tensor:
            bias = None
            for layer in self.layers:
                x, bias = layer(x, bias)
            return x

    program, record = canonical(Whole(), torch.randn(2, 5, 8))
    assert called(program) == ["biased"] * 3
    assert record.notes == ("layers: 3 x Biased, 1 body, 2 before",)


def test_what_only_one_layer_computes_last_of_its_operands() -> None:
    """What it adds to the result of the body, which it computes behind it."""

    class Branched(nn.Module):
        def __init__(self, more: bool) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.more = nn.LayerNorm(8) if more else None

        def forward(self, x: Tensor) -> Tensor:
            result = self.c(self.b(self.a(x).relu()).sigmoid())
            if self.more is not None:
                result = result + self.more(x)
            return torch.relu(result)

    torch.manual_seed(0)
    model = nn.Sequential(Branched(False), Branched(True), Branched(False), Branched(True)).eval()
    x = torch.randn(2, 8)
    program, _ = canonical(model, x)
    assert len(set(called(program))) < 4
    assert torch.equal(gaudicc.compile(model, (x,))(x), model(x))


def test_compiled_padded_and_checked() -> None:
    torch.manual_seed(0)
    model = Model([Kind(factor=factor, index=index) for index, factor in enumerate((0.1, 0.2, 0.3))]).eval()
    shapes = {"x": {0: Dim("rows", min=1, max=8)}}
    compiled = gaudicc.compile(
        model, (torch.randn(3, 2, 8),), dynamic_shapes=shapes, buckets=[{"rows": 4}, {"rows": 8}], verify="poison"
    )
    for rows in (1, 3, 4, 7):
        x = torch.randn(rows, 2, 8)
        with torch.no_grad():
            torch.testing.assert_close(
                compiled(x), model(x)
            )  # some CPUs round products of other numbers of rows otherwise
    assert "layers: 3 x Layer, 1 body, 3 before" in str(compiled.trace["canonicalize-layers"].notes)
    assert any("layers: 3 x Layer" in note for note in gaudicc.check(model, (torch.randn(3, 2, 8),)).notes)
