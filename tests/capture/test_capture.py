"""Capture: mutations become state, weights are shared, failures are told at the user's line."""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.capture import capture
from gaudicc.errors import (
    CaptureError,
    DynamicControlFlowError,
    ModelFileError,
    ModelRaisedError,
    WeightChangedError,
)
from gaudicc.nodes import source_of
from gaudicc.program import InputKind, OutputKind

X = torch.arange(3.0)


class Counter(nn.Module):
    seen: Tensor
    table: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("table", torch.ones(3))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(x)
        self.steps.add_(1)
        return self.seen * self.table


def test_mutated_buffers_are_state_and_others_are_weights() -> None:
    model = Counter().eval()
    program = capture(model, (X,))
    kinds = {spec.source: spec.kind for spec in program.inputs}
    assert kinds == {
        "seen": InputKind.STATE, "steps": InputKind.STATE, "table": InputKind.WEIGHT, "x": InputKind.USER,
    }  # fmt: skip
    assert [(spec.kind, spec.target) for spec in program.outputs][:2] == [
        (OutputKind.STATE, "seen"),
        (OutputKind.STATE, "steps"),
    ]
    assert not model.seen.any(), "capture itself changes nothing"


def test_state_moves_on_from_call_to_call_and_belongs_to_a_session() -> None:
    model = Counter().eval()
    compiled = gaudicc.compile(model, (X,))
    assert compiled(X).tolist() == [0, 1, 2]
    assert compiled(X).tolist() == [0, 2, 4]
    assert compiled.session()(X).tolist() == [0, 1, 2]
    assert not model.seen.any()


def test_a_mutated_input_is_written_after_the_call() -> None:
    def model(cache: Tensor, x: Tensor) -> Tensor:
        cache[1:] = x
        return cache.sum()

    program = capture(model, (torch.zeros(4), X))
    assert [(spec.kind, spec.target) for spec in program.outputs] == [
        (OutputKind.INPUT, "cache"),
        (OutputKind.USER, None),
    ]
    cache, twin = torch.zeros(4), torch.zeros(4)
    compiled = gaudicc.compile(model, (torch.zeros(4), X))
    torch.testing.assert_close(compiled(cache, X), model(twin, X))
    torch.testing.assert_close(cache, twin)


def test_an_output_that_is_an_input_has_storage_of_its_own() -> None:
    compiled = gaudicc.compile(lambda x: (x, x.view(-1), x.t()), (torch.ones(2, 2),))
    x = torch.ones(2, 2)
    assert all(result.data_ptr() != x.data_ptr() for result in compiled(x))


def test_weights_are_shared_tied_weights_are_one_and_unused_ones_are_dropped() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.unused = (nn.Linear(3, 3, bias=False) for _ in range(3))
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Any:
            return self.b(self.a(x))

    model = Tied().eval()
    program = capture(model, (X,))
    weights = [program.tensors[spec.source] for spec in program.inputs if spec.kind is InputKind.WEIGHT]
    assert {weight.data_ptr() for weight in weights} == {model.a.weight.data_ptr()}


def test_grad_mode_blocks_mean_nothing() -> None:
    def model(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x.sin()
            with torch.enable_grad():
                y = y.cos()
        return y

    program = capture(model, (X,))
    assert list(program.count_ops()) == ["aten.sin", "aten.cos"]
    assert torch.equal(program.run({program.user_inputs()[0].name: X})[0], model(X))


class Deciding(nn.Module):
    """Python decides on the value of a tensor, in a loop."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            if x.sum() > 4:
                return -x
            x = x + 1
        return x


def test_decisions_on_tensors_are_captured_with_all_their_sides_and_noted() -> None:
    model = Deciding()
    program = capture(model.eval(), (X,))
    assert any("Deciding.forward (capture/test_capture.py:" in note for note in program.notes)
    for shift in (-9.0, -2.0, -1.0, 0.0, 9.0):
        x = X + shift
        assert torch.equal(program.run({program.user_inputs()[0].name: x})[0], model(x))


class Failing(nn.Module):
    """Fails in a way that `kind` names, each at a line that ends in a mark."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        if self.kind == "loop":
            while x.sum() > 0:  # loop
                x = torch.cat([x, x - 9])
            return x
        if self.kind == "raise":
            raise KeyError("user")  # raise
        if self.kind == "shapes":
            return x @ torch.ones(7, 2)  # shapes
        if self.kind == "numpy":
            return torch.from_numpy(x.numpy())  # numpy
        return helper(x)


def helper(x: Tensor) -> Tensor:
    while x.max() < 9:  # helper
        x = torch.cat([x, x * 2])
    return x


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("loop", DynamicControlFlowError),
        ("raise", ModelRaisedError),
        ("shapes", ModelRaisedError),
        ("numpy", CaptureError),
        ("helper", DynamicControlFlowError),
    ],
)
def test_failures_name_the_users_line(kind: str, error: type[CaptureError]) -> None:
    noise = io.StringIO()
    with redirect_stderr(noise), pytest.raises(CaptureError) as caught:
        capture(Failing(kind).eval(), (X,))
    assert type(caught.value) is error
    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith(f"  # {kind}"))
    assert caught.value.where.source == f"capture/test_capture.py:{line}"
    assert caught.value.todo
    assert "Traceback" not in noise.getvalue()


def test_a_failure_of_the_model_keeps_its_words() -> None:
    with pytest.raises(ModelRaisedError, match="the model raised KeyError: 'user'") as caught:
        capture(Failing("raise").eval(), (X,))
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_failed_capture_leaves_buffers_inputs_and_loggers_as_they_were() -> None:
    class Model(Counter):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            x.add_(1)
            raise ValueError("late")

    model, x = Model().eval(), torch.zeros(3)
    with pytest.raises(ModelRaisedError, match="late"):
        capture(model, (x,))
    assert not model.seen.any()
    assert not x.any()
    assert not logging.getLogger("torch._subclasses.fake_tensor").disabled
    assert not model._forward_hooks


def scaled(x: Tensor) -> Tensor:
    return x * 2.5  # plain function


def test_a_weight_that_forward_changes_is_refused() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight.mul_(0.5)

    model = Changing().eval()
    with pytest.raises(WeightChangedError, match="weight"):
        capture(model, (torch.ones(3),))
    assert model.weight.tolist() == [1.0, 1.0, 1.0]


def test_nodes_of_plain_functions_and_helpers_carry_their_own_line() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return scaled(x)

    lines = Path(__file__).read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if text.endswith("  # plain function"))
    for model in (scaled, Model().eval()):
        (node,) = [node for node in capture(model, (X,)).root.graph.nodes if node.op == "call_function"]
        assert source_of(node) == f"capture/test_capture.py:{line}"


def test_functions_methods_and_other_callables_are_models() -> None:
    class Holder:
        def double(self, x: Tensor) -> Tensor:
            return x * 2

        def __call__(self, x: Tensor) -> Tensor:
            return x * 3

    assert gaudicc.compile(Holder().double, (X,))(X).tolist() == [0, 2, 4]
    assert gaudicc.compile(Holder(), (X,))(X).tolist() == [0, 3, 6]


@pytest.mark.parametrize("dynamic", [False, True])
def test_exported_programs_and_pt2_files(dynamic: bool, tmp_path: Path) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x.sum(1) * y

    shapes = {"x": {0: Dim("n", min=1, max=8)}, "y": {0: Dim("n", min=1, max=8)}} if dynamic else None
    inputs = (torch.randn(4, 3), torch.randn(4))
    exported = torch.export.export(Model().eval(), inputs, dynamic_shapes=shapes)
    torch.export.save(exported, tmp_path / "model.pt2")
    for model in (exported, str(tmp_path / "model.pt2"), tmp_path / "model.pt2"):
        program = capture(model)
        assert [(dim.low, dim.high) for dim in program.dimensions] == ([(1, 8)] if dynamic else [])
        names = [spec.name for spec in program.user_inputs()]
        torch.testing.assert_close(program.run(dict(zip(names, inputs, strict=True)))[0], Model()(*inputs))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken.pt2").write_bytes(b"no archive")
    for path in (tmp_path / "missing.pt2", tmp_path / "broken.pt2"):
        with pytest.raises(ModelFileError):
            capture(path)


@given(seed=st.integers(0, 2**32))
def test_a_capture_is_repeatable_and_bitwise_that_of_the_model(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4)).eval()
    x = torch.randn(2, 3, generator=generator)
    first, second = capture(model, (x,)), capture(model, (x,))
    assert [(n.name, str(n.args)) for n in first.root.graph.nodes] == [
        (n.name, str(n.args)) for n in second.root.graph.nodes
    ]
    with torch.no_grad():
        assert torch.equal(first.run({first.user_inputs()[0].name: x})[0], model(x))


@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_own_encoder_layer_hands_on_is_causal_by_position(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first).eval()
    program = capture(layer, (torch.randn(2, 5, 16),))
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        torch.testing.assert_close(program.run({"src": x})[0], layer(x))
