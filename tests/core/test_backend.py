"""`torch.compile(model, backend="gaudicc")`: found by entry point, equal to eager, one compilation per set of shapes."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gaudicc
from gaudicc import backend
from gaudicc.errors import GaudiccError, InputError

Make = Callable[..., nn.Module]
X = torch.linspace(-1, 1, 16).view(2, 8)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    made: Callable[..., Any] = torch.compile(model, backend="gaudicc", dynamic=False, options=options or None)
    return made


def near(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_entry_point_is_ours() -> None:
    (entry,) = importlib.metadata.entry_points(group="torch_dynamo_backends", name="gaudicc")
    assert entry.load() is backend.gaudicc


def test_no_import_is_needed() -> None:
    script = (
        "import sys, torch\n"
        "assert 'gaudicc' not in sys.modules\n"
        "f = torch.compile(lambda x: torch.relu(x) * 2, backend='gaudicc')\n"
        "assert torch.equal(f(torch.ones(3)), torch.full((3,), 2.0))\n"
        "assert 'gaudicc.backend' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, capture_output=True)


def test_a_module_equals_eager(make_stack: Make) -> None:
    model = make_stack(3)
    fast = compiled(model)
    with torch.no_grad():
        for size in (2, 3, 2):
            x = torch.randn(size, 8)
            near(fast(x), model(x))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that the backend compiles from now on."""
    made: list[Any] = []
    original = gaudicc.compile

    def count(*args: Any, **kwargs: Any) -> Any:
        made.append(original(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(backend, "compile", count)
    return made


def test_each_set_of_shapes_is_compiled_once(make_stack: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    model = make_stack(2)
    fast = torch.compile(model, backend="gaudicc")
    with torch.no_grad():
        # Dynamo gives one graph for the first shape, and one for all shapes once it has met a second.
        for size, graphs in ((4, 1), (3, 2), (4, 3), (3, 3), (4, 3)):
            x = torch.randn(size, 8)
            near(fast(x), model(x))
            assert len(made) == graphs
    assert [m.stats.calls for m in made] == [1, 2, 2]


def test_sizes_that_are_symbolic_from_the_start(make_stack: Make) -> None:
    model = make_stack(2)
    fast = torch.compile(model, backend="gaudicc", dynamic=True)
    with torch.no_grad():
        for size in (4, 3):
            x = torch.randn(size, 8)
            near(fast(x), model(x))


def test_weights_changed_in_place_are_seen(make_stack: Make) -> None:
    model = make_stack(2)
    fast = compiled(model)
    with torch.no_grad():
        near(fast(X), model(X))
        for weight in model.parameters():
            weight.mul_(0.5)
        near(fast(X), model(X))


def test_buffers_are_written_through(make_stack: Make) -> None:
    model, twin = make_stack(2, state=True), make_stack(2, state=True)
    fast = compiled(model)
    with torch.no_grad():
        for factor in (1, 2, 3):
            near(fast(X * factor), twin(X * factor))
    near(dict(model.named_buffers()), dict(twin.named_buffers()))


def test_a_graph_break_makes_two_graphs() -> None:
    def function(x: Tensor) -> Tensor:
        y = x * 2
        torch._dynamo.graph_break()
        return y + 1 if y.sum() > 0 else y - 1

    fast = compiled(function)
    with torch.no_grad():
        near(fast(X.abs()), function(X.abs()))
        near(fast(-X.abs()), function(-X.abs()))


def test_options_reach_compile_and_unknown_ones_are_refused() -> None:
    with pytest.raises(InputError, match="unknown option 'fast'"):
        backend.gaudicc(torch.fx.symbolic_trace(lambda x: x + 1), (X,), options={"fast": True})
    with torch.no_grad(), pytest.raises(GaudiccError, match="unknown target 'gaudi9'"):
        compiled(lambda x: x + 1, target="gaudi9")(X)
    with torch.no_grad():
        near(compiled(lambda x: torch.polygamma(9, x), on_unsupported="host")(X + 2), torch.polygamma(9, X + 2))


def test_an_op_that_is_refused_names_the_users_line() -> None:
    def function(x: Tensor) -> Tensor:
        values: Tensor = torch.linalg.svd(x)[1]
        return values

    with torch.no_grad(), pytest.raises(GaudiccError, match="svd") as caught:
        compiled(function)(X)
    assert "test_backend.py" in str(caught.value.where.source)


def test_generation_with_a_static_cache_is_that_of_eager() -> None:
    """transformers compiles its decode step itself once a static cache is asked for; it must choose the same tokens."""
    transformers = pytest.importorskip("transformers", reason="needs gaudicc[models]")
    from gaudicc.models.transformers_models import build

    model: Any = build("llama")
    ids = torch.tensor([[5, 17, 3, 44], [9, 9, 21, 2]])
    same = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **same)
    config = transformers.CompileConfig(backend="gaudicc", fullgraph=True, dynamic=False, mode=None)
    config._compile_all_devices = True  # otherwise transformers compiles on accelerators only
    compiled_ids = model.generate(
        ids, attention_mask=torch.ones_like(ids), cache_implementation="static", compile_config=config, **same
    )
    assert torch.equal(compiled_ids, expected)
