"""compile(): what it takes, what the compiled model promises, and how bad input is refused."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.compiled import CompiledModel
from gaudicc.errors import (
    AutocastError,
    BucketMissError,
    BundleError,
    CaptureError,
    DeviceError,
    DynamicControlFlowError,
    GaudiccError,
    GradError,
    InputError,
    ModelFileError,
    ModelRaisedError,
    PipelineError,
    ShapeError,
    TargetError,
    TrainingModeError,
    UnsupportedInputError,
    UnsupportedOpError,
)
from gaudicc.program import InputKind

Make = Callable[..., nn.Module]
X = torch.linspace(-1, 1, 16).view(2, 8)


def near(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_module(make_stack: Make) -> None:
    model = make_stack(3)
    compiled = gaudicc.compile(model, (X,))
    near(compiled(X * 2), model(X * 2))
    assert compiled.stats.calls == 1
    assert str(compiled.trace).count("\n") == len(compiled.trace)
    assert any("device cpu" in note for note in compiled.notes)


@pytest.mark.parametrize("form", ["tuple", "list", "one tensor", "dict", "kwargs", "mixed"])
def test_every_form_of_example_inputs(form: str) -> None:
    def function(a: Tensor, b: Tensor | None = None) -> Tensor:
        return a * 2 if b is None else a - b

    both: dict[str, tuple[Any, Any]] = {
        "tuple": ((X, X + 1), None),
        "list": ([X, X + 1], None),
        "one tensor": (X, None),
        "dict": ({"b": X + 1, "a": X}, None),
        "kwargs": ((), {"a": X, "b": X + 1}),
        "mixed": ((X,), {"b": X + 1}),
    }
    compiled = gaudicc.compile(function, *both[form])
    near(compiled(X) if form == "one tensor" else compiled(X, X), X * 2 if form == "one tensor" else X - X)


def test_functions_methods_and_other_callables() -> None:
    class Scale:
        def __init__(self, by: float) -> None:
            self.by = by

        def __call__(self, x: Tensor) -> Tensor:
            return x * self.by

        def method(self, x: Tensor) -> Tensor:
            return x + self.by

    scale = Scale(3.0)
    near(gaudicc.compile(scale, (X,))(X), X * 3)
    near(gaudicc.compile(scale.method, (X,))(X), X + 3)
    near(gaudicc.compile(lambda x: x - 1, (X,))(X), X - 1)
    with pytest.raises(InputError):
        gaudicc.compile(torch.relu, (X,))  # a builtin has no signature to bind calls to


def test_a_function_with_dynamic_sizes() -> None:
    def double(rows: Tensor) -> Tensor:
        return rows * 2

    compiled = gaudicc.compile(double, (X,), dynamic_shapes={"rows": {0: Dim("n", min=1, max=8)}}, buckets=[{"n": 4}])
    near(compiled(torch.ones(4, 8)), torch.full((4, 8), 2.0))
    assert "rows.shape[1] == 8" in compiled.guards


@pytest.mark.parametrize("name", ["input", "print", "len", "x1", "args", "kwargs", "f", "forward"])
def test_any_argument_name_is_fine(name: str) -> None:
    """Names that fx keeps for itself among them: `nn.Linear` calls its argument `input`."""
    scope: dict[str, Any] = {}
    exec(f"def forward(self, {name}, scale=2.0):\n    return {name} * scale", scope)
    model = type("Model", (nn.Module,), {"forward": scope["forward"]})().eval()
    compiled = gaudicc.compile(model, (X,))
    near(compiled(**{name: X}), X * 2)


def test_guards_are_written_in_the_users_names() -> None:
    def function(input: Tensor, pair: tuple[Tensor, dict[str, Tensor]]) -> Tensor:
        return input + pair[0] + pair[1]["more"]

    pair = (X + 1, {"more": X + 2})
    guards = gaudicc.compile(function, (X, pair)).guards
    assert "assert input.shape[0] == 2" in guards
    exec(guards, {"input": X, "pair": pair})


def test_torchs_own_modules() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    near(gaudicc.compile(model, (X,))(X), model(X))


@pytest.mark.parametrize("saved", [False, True], ids=["ExportedProgram", "pt2"])
def test_an_exported_program(make_stack: Make, tmp_path: Path, saved: bool) -> None:
    model = make_stack(2)
    exported: Any = torch.export.export(model, (X,))
    if saved:
        torch.export.save(exported, tmp_path / "model.pt2")
        exported = tmp_path / "model.pt2"
    compiled = gaudicc.compile(exported)
    near(compiled(X * 2), model(X * 2))
    near(gaudicc.compile(str(exported) if saved else exported)(X), model(X))


def test_state_is_the_compiled_models_own(make_stack: Make) -> None:
    model = make_stack(2, state=True)
    eager = copy.deepcopy(model)
    compiled = gaudicc.compile(model, (X,))
    for factor in (1, 2, 3):
        near(compiled(X * factor), eager(X * factor))
    assert not dict(model.named_buffers())["seen"].any(), "the model's own buffer is left alone"
    assert [spec.source for spec in compiled.program.inputs if spec.kind is InputKind.STATE] == ["seen"]


def test_own_state_false_writes_the_models_buffer(make_stack: Make) -> None:
    model = make_stack(2, state=True)
    eager = copy.deepcopy(model)
    compiled = gaudicc.compile(model, (X,), own_state=False)
    near(compiled(X), eager(X))
    near(dict(model.named_buffers()), dict(eager.named_buffers()))


def test_a_session_has_state_of_its_own(make_stack: Make) -> None:
    model = make_stack(2, state=True)
    compiled = gaudicc.compile(model, (X,))
    first, second = compiled.session(), compiled.session()
    alone = [copy.deepcopy(model) for _ in range(3)]
    near(first(X), alone[0](X))
    near(second(X * 2), alone[1](X * 2))
    near(first(X * 3), alone[0](X * 3))
    near(compiled(X), alone[2](X))
    assert (first.stats.calls, second.stats.calls, compiled.stats.calls) == (2, 1, 1)
    assert first.program is compiled.program


def test_load_state_dict_afterwards_works(make_stack: Make) -> None:
    model = make_stack(3)
    compiled = gaudicc.compile(model, (X,))
    before = compiled(X)
    near(before, model(X))
    model.load_state_dict({name: value * 0.5 + 0.1 for name, value in model.state_dict().items()})
    near(compiled(X), model(X))
    assert not torch.allclose(compiled(X), before)


def test_weights_are_shared_and_not_copied(make_stack: Make) -> None:
    model = make_stack(3)
    held = {p.data_ptr() for p in model.parameters()}
    compiled = gaudicc.compile(model, (X,))
    weights = [s.source for s in compiled.static_program().inputs if s.kind is InputKind.WEIGHT]
    assert {compiled.static_program().tensors[source].data_ptr() for source in weights} == held


def test_outputs_are_fresh_unless_borrowed(make_stack: Make) -> None:
    fresh = gaudicc.compile(make_stack(2), (X,))
    first = fresh(X)
    kept = first.clone()
    second = fresh(X * 2)
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, kept)
    borrowed = gaudicc.compile(make_stack(2), (X,), outputs="borrow")
    one = borrowed(X)
    near(one, kept)
    two = borrowed(X * 2)
    assert one.data_ptr() == two.data_ptr(), "a borrowed output is valid until the next call"
    near(two, second)


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x))


def rows(buckets: Any = None, high: int = 8) -> tuple[CompiledModel, nn.Module]:
    torch.manual_seed(0)
    model = Rows().eval()
    shapes = {"x": {0: Dim("n", min=1, max=high)}}
    return gaudicc.compile(model, (X,), dynamic_shapes=shapes, buckets=buckets), model


def test_after_warm_up_nothing_is_recorded() -> None:
    compiled, model = rows([{"n": 2}, {"n": 4}, {"n": 8}])
    seen: list[tuple[int, int, str]] = []
    compiled.warm_up(lambda done, total, bucket: seen.append((done, total, str(bucket))))
    assert seen == [(0, 3, "n=2"), (1, 3, "n=4"), (2, 3, "n=8")]
    assert compiled.stats.records == 3
    held = compiled.stats.bytes_held
    for size in (2, 4, 8, 4, 2):
        x = torch.randn(size, 8)
        near(compiled(x), model(x))
    assert (compiled.stats.records, compiled.stats.bytes_held) == (3, held)
    assert (compiled.stats.calls, compiled.stats.replays, compiled.stats.misses) == (5, 5, 0)
    compiled.warm_up()
    assert compiled.stats.records == 3


def test_a_bucket_is_recorded_once_when_first_needed() -> None:
    compiled, _ = rows([{"n": 2}, {"n": 4}])
    for expected, size in ((1, 2), (1, 2), (2, 4), (2, 2)):
        compiled(torch.randn(size, 8))
        assert compiled.stats.records == expected


def test_a_miss_is_counted_and_lists_the_buckets() -> None:
    compiled, _ = rows([{"n": 2}, {"n": 4}])
    with pytest.raises(BucketMissError) as caught:
        compiled(torch.randn(7, 8))
    assert "n" in caught.value.what
    assert caught.value.todo
    assert (compiled.stats.misses, compiled.stats.calls) == (1, 0)
    with pytest.raises(ShapeError, match="n runs from 1 to 8"):
        compiled(torch.randn(9, 8))


def test_sizes_between_buckets_are_padded_and_the_work_is_counted() -> None:
    compiled, model = rows([{"n": 4}])
    for size in (1, 2, 3, 4):
        x = torch.randn(size, 8)
        near(compiled(x), model(x))
    assert compiled.stats.real == 8 * (1 + 2 + 3 + 4)
    assert compiled.stats.padded == 8 * 16


def test_without_buckets_there_are_at_most_32() -> None:
    compiled, model = rows(high=300)
    assert 1 < len(compiled.buckets) <= 32
    for size in (1, 2, 77, 300):
        x = torch.randn(size, 8)
        near(compiled(x), model(x))


def test_plans_graphs_and_programs_are_named_by_bucket() -> None:
    compiled, _ = rows([{"n": 2}, {"n": 4}])
    assert str(compiled.plan({"n": 4}).bucket) == "n=4"
    graph = compiled.graph({"n": 4})
    assert isinstance(graph, torch.fx.GraphModule)
    assert graph is compiled.static_program({"n": 4}).root
    with pytest.raises(BucketMissError, match="no bucket was named"):
        compiled.plan()
    with pytest.raises(BucketMissError, match="no bucket is n=3") as caught:
        compiled.graph({"n": 3})
    assert "n=2; n=4" in caught.value.todo


def test_one_recording_is_made_however_many_threads_ask_first() -> None:
    compiled, model = rows([{"n": 2}])
    start = threading.Barrier(8)
    results: list[Tensor] = []

    def work() -> None:
        start.wait()
        results.append(compiled(X))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for result in results:
        near(result, model(X))
    assert compiled.stats.records == 1


def test_the_certificate_says_what_is_proved_and_what_is_not(make_stack: Make) -> None:
    certificate = gaudicc.compile(make_stack(2), (X,), target="gaudi2").certificate
    assert certificate.target == "gaudi2"
    (entry,) = certificate.buckets
    assert {"legal-ops", "static", "typed", "functional"} <= set(entry.proved)
    assert entry.evidenced > 0
    assert entry.host == ()
    text = str(certificate)
    assert "not proved: nothing was run on a Gaudi" in text
    assert certificate.as_json()["buckets"][0]["evidenced"] == entry.evidenced


def on_value(x: Tensor) -> Tensor:
    while x.sum() > 0:
        x = torch.cat([x, x - 9])
    return x


def raising(x: Tensor) -> Tensor:
    raise ValueError("no such day")


def svd(x: Tensor) -> Tensor:
    values: Tensor = torch.linalg.svd(x).S
    return values


def add_one(x: Tensor) -> Tensor:
    return x + 1


def compile_under_autocast() -> None:
    with torch.autocast("cpu"):
        gaudicc.compile(add_one, (X,))


def compile_scripted() -> None:
    gaudicc.compile(torch.jit.trace(add_one, X), (X,))


def compile_device_map() -> None:
    model = Rows().eval()
    model.hf_device_map = {"linear": 0, "head": "cpu"}  # type: ignore[assignment]
    gaudicc.compile(model, (X,))


def compile_mixed_devices() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, device="meta")).eval()
    gaudicc.compile(model, (X,))


N = Dim("n", min=1, max=8)


def with_shapes(shapes: Any, **options: Any) -> Callable[[], Any]:
    return lambda: gaudicc.compile(Rows().eval(), (X,), dynamic_shapes=shapes, **options)


@pytest.mark.parametrize(
    ("kind", "what", "call"),
    [
        (InputError, "the model is a int", lambda: gaudicc.compile(3, (X,))),
        (InputError, "the model is a NoneType", lambda: gaudicc.compile(None, (X,))),
        (InputError, "example_inputs is a int", lambda: gaudicc.compile(add_one, 3)),
        (InputError, "missing a required argument: 'x'", lambda: gaudicc.compile(add_one)),
        (InputError, "too many positional", lambda: gaudicc.compile(add_one, (X, X))),
        (InputError, "unexpected keyword argument 'y'", lambda: gaudicc.compile(add_one, (X,), {"y": X})),
        (InputError, "example_kwargs is given too", lambda: gaudicc.compile(add_one, {"x": X}, {"x": X})),
        (ModelRaisedError, "mat1 and mat2", lambda: gaudicc.compile(Rows().eval(), (torch.ones(2, 5),))),
        (ModelRaisedError, "the model raised ValueError: no such day", lambda: gaudicc.compile(raising, (X,))),
        (TrainingModeError, "in training mode", lambda: gaudicc.compile(Rows(), (X,))),
        (GradError, "argument x requires grad", lambda: gaudicc.compile(add_one, (X.clone().requires_grad_(),))),
        (AutocastError, "autocast is enabled for 'cpu'", compile_under_autocast),
        (UnsupportedInputError, "argument x is a builtins.object", lambda: gaudicc.compile(add_one, (object(),))),
        (UnsupportedInputError, "layout torch.sparse_coo", lambda: gaudicc.compile(add_one, (X.to_sparse(),))),
        (UnsupportedInputError, "TorchScript", compile_scripted),
        (UnsupportedInputError, "device_map", compile_device_map),
        (UnsupportedInputError, "mixes devices: 0.weight on cpu, 1.weight on meta", compile_mixed_devices),
        (DynamicControlFlowError, "nothing but data ends this loop", lambda: gaudicc.compile(on_value, (X,))),
        (UnsupportedOpError, "svd", lambda: gaudicc.compile(svd, (X,))),
        (TargetError, "unknown target 'gaudi9'", lambda: gaudicc.compile(add_one, (X,), target="gaudi9")),
        (DeviceError, "unknown device 'tpu'", lambda: gaudicc.compile(add_one, (X,), device="tpu")),
        (InputError, "no verify level 'all'", lambda: gaudicc.compile(add_one, (X,), verify="all")),
        (InputError, "on_unsupported is 'skip'", lambda: gaudicc.compile(add_one, (X,), on_unsupported="skip")),
        (InputError, "outputs is 'view'", lambda: gaudicc.compile(add_one, (X,), outputs="view")),
        (PipelineError, "lack specialize", lambda: gaudicc.compile(add_one, (X,), passes=())),
        (InputError, "no size is dynamic", lambda: gaudicc.compile(add_one, (X,), buckets=[{"n": 1}])),
        (InputError, "dynamic_shapes names 'y'", with_shapes({"y": {0: N}})),
        (InputError, "no max", with_shapes({"x": {0: Dim("n")}})),
        (GaudiccError, "", with_shapes(5)),
        (GaudiccError, "", with_shapes({"x": {7: N}})),
        (UnsupportedInputError, "fixed by the model", with_shapes({"x": {1: N}})),
        (InputError, "", with_shapes({"x": {0: N}}, buckets=[{"m": 2}])),
        (InputError, "", with_shapes({"x": {0: N}}, buckets="most")),
        (ModelFileError, "no file missing.pt2", lambda: gaudicc.compile("missing.pt2")),
        (ModelFileError, "not a readable .pt2", lambda: gaudicc.compile(__file__)),
        (BundleError, "there is no bundle", lambda: gaudicc.load("missing")),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_what_to_do(kind: type[GaudiccError], what: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert what in caught.value.what
    assert caught.value.todo, "no hint on what to do"
    lines = str(caught.value).splitlines()
    assert lines[0] == caught.value.what.splitlines()[0]
    assert lines[-1].startswith("  to do: ") or "  to do: " in str(caught.value)


@pytest.mark.parametrize("function", [raising, on_value, svd])
def test_the_users_line_is_named(function: Callable[[Tensor], Tensor]) -> None:
    first = function.__code__.co_firstlineno
    with pytest.raises(GaudiccError) as caught:
        gaudicc.compile(function, (X,))
    assert caught.value.where.source == f"core/test_compile.py:{first + 1}"


def test_refusing_leaves_the_model_as_it_was(make_stack: Make) -> None:
    model = make_stack(2, state=True)
    with pytest.raises(CaptureError):
        gaudicc.compile(model, (torch.ones(2, 5),))
    assert not dict(model.named_buffers())["seen"].any()


def test_hooks_are_captured_and_listed() -> None:
    model = Rows().eval()

    def add_ten(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + 10

    with model.linear.register_forward_hook(add_ten):
        compiled = gaudicc.compile(model, (X,))
        near(compiled(X), model(X))
    assert any("add_ten on linear" in note for note in compiled.notes)
