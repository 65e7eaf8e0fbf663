"""One call: what is taken, in which form, what comes back, and what is refused before anything runs."""

from __future__ import annotations

import threading
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

import gaudicc
from gaudicc.compiled import CompiledModel
from gaudicc.errors import AutocastError, GaudiccError, GradError, InputError, ShapeError, StateError

Point = namedtuple("Point", ["x", "y"])


@dataclass
class Scores:
    """An output type of the model's own."""

    best: Tensor
    all: dict[str, Tensor]
    label: str = "none"
    missing: Tensor | None = None


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(
        self,
        x: Tensor,
        pair: tuple[Tensor, dict[str, Tensor]] | None = None,
        factor: float = 2.0,
        *,
        mode: str = "add",
    ) -> Scores:
        y: Tensor = self.linear(x) * factor
        if pair is not None:
            y = y + pair[0] + pair[1]["more"]
        if mode == "sub":
            y = -y
        return Scores(y.amax(-1), {"y": y, "x2": x * 2}, label=mode)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture(scope="module")
def plain(model: nn.Module) -> CompiledModel:
    return gaudicc.compile(model, (torch.randn(2, 4),))


def same(a: Scores, b: Scores) -> None:
    assert type(a) is type(b) is Scores
    assert (a.label, a.missing) == (b.label, b.missing)
    torch.testing.assert_close((a.best, a.all), (b.best, b.all))


X = torch.linspace(-1, 1, 8).view(2, 4)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X,), {}),
        ((), {"x": X}),
        ((X, None), {}),
        ((X, None, 2.0), {}),
        ((X,), {"factor": 2.0, "mode": "add"}),
        ((), {"mode": "add", "x": X, "pair": None}),
    ],
    ids=["position", "keyword", "none", "default-by-position", "defaults-by-keyword", "any-order"],
)
def test_every_way_to_write_the_same_call(
    plain: CompiledModel, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    same(plain(*args, **kwargs), model(*args, **kwargs))


def test_nested_containers_go_in_and_come_out(model: nn.Module) -> None:
    pair = (X + 2, {"more": X + 1})
    compiled = gaudicc.compile(model, (X,), {"pair": pair, "mode": "sub"})
    same(compiled(X * 2, (X - 1, {"more": X}), mode="sub"), model(X * 2, (X - 1, {"more": X}), mode="sub"))
    for wrong in (None, [X, {"more": X}], (X, {"less": X}), (X, {"more": X, "less": X}), (X,)):
        with pytest.raises(InputError, match="nested otherwise"):
            compiled(X, wrong, mode="sub")


def test_one_tensor_given_twice_is_two_arguments() -> None:
    """The example does not tie them together: later calls may give two tensors."""
    compiled = gaudicc.compile(lambda a, b: a - 2 * b, (X, X))
    torch.testing.assert_close(compiled(X, X + 1), X - 2 * (X + 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: (x + 1, [x * 2, {"k": x - 1}], 3, "word", None, True),
        lambda x: Point(x + 1, (x,)),
        lambda x: {"b": x + 1, "a": [x * 2]},
        lambda x: [],
        lambda x: x,
        lambda x: (x + 1,) * 2,
        lambda x: (torch.ones(2), x),
        lambda x: ((), {"n": ()}, x + 1),
    ],
    ids=["mixed", "namedtuple", "dict", "empty", "the-input", "twice", "a-constant", "empty-inside"],
)
def test_outputs_have_the_models_own_type(make: Callable[[Tensor], Any]) -> None:
    compiled = gaudicc.compile(make, (X,))
    result, expected = compiled(X * 3), make(X * 3)
    assert type(result) is type(expected)
    leaves, wanted = pytree.tree_leaves(result), pytree.tree_leaves(expected)
    assert [type(leaf) for leaf in leaves] == [type(leaf) for leaf in wanted]
    for leaf, want in zip(leaves, wanted, strict=True):
        assert torch.equal(leaf, want) if isinstance(want, Tensor) else leaf == want


def test_a_model_output_of_transformers_is_one_again() -> None:
    transformers = pytest.importorskip("transformers", reason="needs gaudicc[models]")
    from gaudicc.models.transformers_models import build, example_inputs

    encoder = build("bert")
    inputs = example_inputs(encoder, batch=2, sequence=6)
    result = gaudicc.compile(encoder, inputs)(**inputs)
    assert isinstance(result, transformers.modeling_outputs.BaseModelOutputWithPoolingAndCrossAttentions)
    torch.testing.assert_close(dict(result), dict(encoder(**inputs)), rtol=1e-5, atol=1e-5)


def test_an_output_that_is_an_input_is_fresh_here() -> None:
    compiled = gaudicc.compile(lambda x: (x, x.view(-1)), (X,))
    given = X.clone()
    first, flat = compiled(given)
    assert torch.equal(first, X)
    given.zero_()
    assert torch.equal(first, X)
    first.zero_()
    assert torch.equal(flat, X.view(-1))


@pytest.mark.parametrize("other", [3.0, 2, True, "2.0", None], ids=str)
def test_static_arguments_are_fixed_and_the_guard_says_so(plain: CompiledModel, other: Any) -> None:
    assert "assert factor == 2.0  # fixed at compile time" in plain.guards
    assert "assert mode == 'add'" in plain.guards
    with pytest.raises(InputError, match=f"argument factor is {other!r}, it was 2.0 when the model was compiled"):
        plain(X, factor=other)


def test_a_nan_that_was_compiled_in_is_the_same_nan() -> None:
    compiled = gaudicc.compile(lambda x, fill: x.masked_fill(x > 0, fill), (X, float("nan")))
    assert compiled(X, float("nan")).isnan().sum() == 4


def test_zeros_of_another_sign_are_other_arguments() -> None:
    compiled = gaudicc.compile(lambda x, by: x / by, (X, 0.0))
    with pytest.raises(InputError, match=r"argument by is -0\.0, it was 0\.0"):
        compiled(X, -0.0)


@pytest.mark.parametrize(
    ("kind", "call", "what"),
    [
        (InputError, lambda c: c(X.double()), r"argument x is f64\[2, 4\] on cpu, not torch.float32 on cpu"),
        (InputError, lambda c: c(X.to("meta")), "on meta, not torch.float32 on cpu"),
        (InputError, lambda c: c(3.0), "argument x is 3.0, not"),
        (InputError, lambda c: c(X.tolist()), "nested otherwise"),
        (InputError, lambda c: c(None), "argument x is None|nested otherwise"),
        (InputError, lambda c: c(), "missing a required argument: 'x'"),
        (InputError, lambda c: c(X, nothing=1), "unexpected keyword argument 'nothing'"),
        (InputError, lambda c: c(X, x=X), "multiple values for argument 'x'"),
        (InputError, lambda c: c(X, None, 2.0, "add"), "too many positional"),
        (ShapeError, lambda c: c(X[0]), r"argument x has shape \[4\], the model was compiled for \[2, 4\]"),
        (ShapeError, lambda c: c(X[:1]), r"argument x has shape \[1, 4\], the model was compiled for \[2, 4\]"),
        (ShapeError, lambda c: c(torch.zeros(2, 0)), r"has shape \[2, 0\]"),
        (GradError, lambda c: c(X.clone().requires_grad_()), "argument x requires grad"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", None),
)
def test_what_does_not_fit_is_refused(
    plain: CompiledModel, kind: type[GaudiccError], call: Callable[[CompiledModel], Any], what: str
) -> None:
    replays = plain.stats.replays
    with pytest.raises(kind, match=what) as caught:
        call(plain)
    assert caught.value.todo
    assert plain.stats.replays == replays, "nothing was run"


def test_tensors_whose_meaning_is_not_in_the_graph_are_refused(plain: CompiledModel) -> None:
    class Named(Tensor):
        pass

    with pytest.raises(InputError, match=r"torch\.sparse_coo"):
        plain(X.to_sparse())
    with pytest.raises(InputError, match=r"Named, torch\.strided"):
        plain(X.as_subclass(Named))
    same(plain(nn.Parameter(X, requires_grad=False)), plain(X))


def test_an_input_of_other_strides_gives_the_same(plain: CompiledModel, model: nn.Module) -> None:
    transposed = X.t().contiguous().t()
    assert not transposed.is_contiguous()
    same(plain(transposed), model(transposed))
    wide = torch.randn(4, 8)[::2, ::2]
    same(plain(wide), model(wide))


def test_the_shape_error_shows_the_line_to_add(plain: CompiledModel, model: nn.Module) -> None:
    with pytest.raises(ShapeError) as caught:
        plain(torch.randn(5, 4))
    line = str(caught.value).split("compile with ", 1)[1].split(" (from torch", 1)[0]
    shapes = eval(line.removeprefix("dynamic_shapes="), {"Dim": Dim})
    compiled = gaudicc.compile(model, (X,), dynamic_shapes=shapes, buckets=[{"x_0": 2}, {"x_0": 5}])
    five = torch.randn(5, 4)
    same(compiled(five), model(five))


def test_sizes_declared_equal_must_be(model: nn.Module) -> None:
    class Add(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    n = Dim("n", min=2, max=8)
    compiled = gaudicc.compile(
        Add().eval(), (torch.ones(4), torch.ones(4)), dynamic_shapes={"a": {0: n}, "b": {0: n}}, buckets=[{"n": 4}]
    )
    with pytest.raises(ShapeError, match=r"b.shape\[0\] is 5, but another input says n is 4"):
        compiled(torch.ones(4), torch.ones(5))
    with pytest.raises(ShapeError, match=r"a.shape\[0\] is 9, n runs from 2 to 8"):
        compiled(torch.ones(9), torch.ones(9))
    assert "assert b.shape[0] == a.shape[0]" in compiled.guards


def test_the_guards_are_python_that_holds(plain: CompiledModel) -> None:
    names = {"x": X, "factor": 2.0, "mode": "add", "pair": None}
    exec(plain.guards, names)
    with pytest.raises(AssertionError):
        exec(plain.guards, {**names, "x": X[:1]})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_ambient_autocast_is_refused(plain: CompiledModel, device: str) -> None:
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cpu"):
        if device == "cpu":
            with pytest.raises(AutocastError, match="autocast is active"):
                plain(X)
        else:
            plain(X)


def test_a_call_under_grad_mode_records_no_graph(plain: CompiledModel) -> None:
    with torch.enable_grad():
        assert not plain(X).best.requires_grad
    assert torch.is_grad_enabled()


def test_an_input_that_the_model_mutates_is_written() -> None:
    def fill(x: Tensor, y: Tensor) -> Tensor:
        x.mul_(2)
        return x + y

    compiled = gaudicc.compile(fill, (X.clone(), X))
    given, expected = X.clone(), X.clone()
    assert torch.equal(compiled(given, X), fill(expected, X))
    assert torch.equal(given, expected)


class Cache(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows: Tensor
        self.register_buffer("rows", torch.zeros(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.rows.add_(x)
        return self.rows * 1.5


def test_inputs_that_overlap_state_are_refused() -> None:
    compiled = gaudicc.compile(Cache().eval(), (X,), own_state=False)
    state = compiled.program.tensors["rows"]
    with pytest.raises(StateError, match="shares memory with a state buffer") as caught:
        compiled(state)
    assert "clone" in caught.value.todo
    with pytest.raises(StateError):
        compiled(state.view(4, 2).t().t().view(2, 4))
    assert not state.any(), "state is as it was before the call"


def test_an_old_value_of_state_is_returned_as_it_was() -> None:
    class Swap(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last: Tensor
            self.register_buffer("last", torch.zeros(2, 4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            old = self.last.clone()
            self.last.copy_(x)
            return old, self.last

    compiled, eager = gaudicc.compile(Swap().eval(), (X,)), Swap().eval()
    for factor in (1, 2, 3):
        torch.testing.assert_close(compiled(X * factor), eager(X * factor))


def test_many_threads_may_call_a_stateless_model(plain: CompiledModel, model: nn.Module) -> None:
    inputs = [torch.full((2, 4), float(i)) for i in range(6)]
    expected = [model(x) for x in inputs]
    wrong: list[int] = []
    start = threading.Barrier(len(inputs))

    def work(i: int) -> None:
        start.wait()
        for _ in range(50):
            result = plain(inputs[i]).all["y"]
            if not torch.allclose(result, expected[i].all["y"], atol=1e-6):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
