"""Rules 1 to 5 and 8, and the cache of `wrap_in_hpu_graph`: keys, aliasing, overflow, modes."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

th: Any = torch
"""torch as a child process has it: with `torch.hpu`."""


def counts(kind: str) -> int:
    import gaudicc.emulator
    from gaudicc.emulator.ledger import Kind

    return gaudicc.emulator.account().count(Kind[kind])


def hpu(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).to("hpu")


class Scaled(nn.Module):
    """Counts how often its Python runs."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: Tensor, factor: Any = 2, add: Tensor | None = None) -> Tensor:
        self.runs += 1
        out = x * factor
        result: Tensor = out if add is None else out + add
        return result


def wrapped(module: nn.Module | None = None, **options: Any) -> Any:
    return th.hpu.wrap_in_hpu_graph(module or Scaled(), **options)


# rule 1
def test_replay_runs_on_the_captured_memory_and_on_any_stream() -> None:
    x, graph = hpu(1, 2), th.hpu.HPUGraph()
    with th.hpu.graph(graph):
        y = x * 3
        z = y.view(2, 1) + 1
    address = z.data_ptr()
    x.copy_(hpu(10, 20))
    with th.hpu.stream(th.hpu.Stream()):
        graph.replay()
    assert z.tolist() == [[31], [61]]
    assert z.data_ptr() == address
    assert y.tolist() == [30, 60]
    assert counts("REPLAY") == 1


@given(st.lists(st.sampled_from(["add", "mul", "relu", "view", "inplace", "slice"]), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None)
def test_replay_equals_a_fresh_run(names: list[str]) -> None:
    ops: dict[str, Callable[[Tensor], Tensor]] = {
        "add": lambda t: t + 1, "mul": lambda t: t * t, "relu": torch.relu, "view": lambda t: t.view(-1, 2).t(),
        "inplace": lambda t: t.sub_(0.5), "slice": lambda t: t.reshape(-1)[0:4].clone(),
    }  # fmt: skip

    def function(t: Tensor) -> Tensor:
        t = t + 0
        for name in names:
            t = ops[name](t.contiguous())
        return t

    x, graph = hpu(-1, 2, -3, 4), th.hpu.HPUGraph()
    with th.hpu.graph(graph):
        out = function(x)
    for values in ((5, -6, 7, 8), (0, 1, 0, 1)):
        x.copy_(hpu(*values))
        graph.replay()
        assert out.tolist() == function(torch.tensor(values, dtype=torch.float32)).tolist()


# rule 2
def test_a_hit_gives_the_same_objects_and_overwrites_the_first_inputs() -> None:
    module = wrapped()
    x = hpu(1, 2)
    first = module(x)
    assert first.tolist() == [2, 4]
    second = module(hpu(5, 6))
    assert second is first
    assert first.tolist() == [10, 12], "the earlier result is gone"
    assert x.tolist() == [5, 6], "inputs are copied into the tensors of the first call"
    assert (module.runs, counts("CAPTURE"), counts("REPLAY")) == (1, 1, 1)


# rule 3
def test_mark_step_inside_a_capture_is_legal() -> None:
    import habana_frameworks.torch.core as htcore

    graph, x = th.hpu.HPUGraph(), hpu(1, 2)
    with th.hpu.graph(graph):
        y = x + 1
        htcore.mark_step()
        z = y * 2
    assert counts("COMPILE") == 2, "two sub-graphs"
    x.copy_(hpu(3, 4))
    graph.replay()
    assert z.tolist() == [8, 10]
    assert counts("SPLIT") == 0


# rule 4
def test_a_tensor_without_dims_is_data() -> None:
    module = wrapped()
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        assert module(hpu(1, 2), torch.tensor(value).to("hpu")).tolist() == [value, 2 * value]
    assert counts("CAPTURE") == 1


def test_a_python_number_is_part_of_the_key() -> None:
    module = wrapped()
    for value in (2, 3, 2, 4, True):
        assert module(hpu(1, 2), value).tolist() == [value, 2 * value]
    with pytest.raises(AssertionError, match="float cannot be copied to int"):
        module(hpu(1, 2), 2.0)
    assert counts("CAPTURE") == 4, "2, 3, 4 and True: 2.0 has the hash of 2"


def test_dtype_is_no_part_of_the_key() -> None:
    module = wrapped()
    module(hpu(1, 2))
    wrong = module(hpu(1.5, 2.5).to(torch.bfloat16))
    assert wrong.dtype is torch.float32
    assert counts("CAPTURE") == 1


def test_view_layout_and_autocast_are_part_of_the_key() -> None:
    module = wrapped()
    square = hpu(1, 2, 3, 4).view(2, 2).clone()
    module(square)
    assert module(square.t()).tolist() == [[2, 6], [4, 8]]
    with torch.autocast("hpu"):
        assert module(square.clone()).dtype is torch.bfloat16
    assert counts("CAPTURE") == 3


# rule 5
def test_max_graphs_runs_ungraphed_beyond_and_never_evicts() -> None:
    module = wrapped(max_graphs=2)
    for size in (1, 2, 3, 3, 1):
        assert module(torch.ones(size, device="hpu")).tolist() == [2] * size
    assert (counts("CAPTURE"), counts("REPLAY"), module.runs) == (2, 1, 4)


def test_without_max_graphs_the_cache_has_no_bound_and_clear_cache_empties_it() -> None:
    module = wrapped()
    for size in range(1, 13):
        module(torch.ones(size, device="hpu"))
    assert counts("CAPTURE") == 12
    module.clear_cache()
    module.clear_inputs()
    module(torch.ones(1, device="hpu"))
    assert (counts("CAPTURE"), module.runs) == (13, 13)


def test_clear_cache_frees_what_the_graphs_held() -> None:
    module, before = wrapped(), th.hpu.memory.memory_allocated()
    module(torch.ones(1000, device="hpu"))
    gc.collect()
    assert th.hpu.memory.memory_allocated() - before == 8000
    module.clear_cache()
    gc.collect()
    assert th.hpu.memory.memory_allocated() == before


# rule 8
@pytest.mark.parametrize("options", [{}, {"dry_run": True}, {"disable_tensor_cache": True}])
def test_a_cache_updated_in_place(options: dict[str, bool]) -> None:
    class Cached(nn.Module):
        def forward(self, cache: Tensor, at: Tensor, x: Tensor) -> Tensor:
            cache.index_add_(0, at, x)
            return cache.sum(0) * 2

    module, plain = wrapped(Cached(), **options), Cached()
    cache, expected = torch.zeros(3, 2, device="hpu"), torch.zeros(3, 2)
    for place in (0, 2, 1, 2):
        at, x = torch.tensor([place]), torch.full((1, 2), place + 1.0)
        result = module(cache, at.to("hpu"), x.to("hpu"))
        assert result.tolist() == plain(expected, at, x).tolist()
        assert cache.tolist() == expected.tolist()
    assert counts("CAPTURE") == 1


@pytest.mark.parametrize("variable", ["1", "0"])
def test_the_environment_overrides_the_tensor_cache(variable: str) -> None:
    import os

    os.environ["PT_HPUGRAPH_DISABLE_TENSOR_CACHE"] = variable
    module = wrapped(disable_tensor_cache=variable == "0")
    x = hpu(1, 2)
    module(x)
    module(hpu(3, 4))
    assert x.tolist() == ([1, 2] if variable == "1" else [3, 4]), "only the literal 1 binds by address"


def test_without_tensor_cache_intermediates_are_freed() -> None:
    class Leaky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = x * 2
            return self.kept + 1

    module = Leaky()
    run = wrapped(module, disable_tensor_cache=True)
    assert run(hpu(1, 2)).tolist() == [3, 5]
    with pytest.raises(RuntimeError, match="Empty tensor"):
        module.kept.cpu()
    assert run(hpu(2, 3)).tolist() == [5, 7]


def test_special_arguments_are_swallowed() -> None:
    module = wrapped()
    assert module(hpu(1, 2), bypass_hpu_graphs=True).tolist() == [2, 4]
    assert counts("CAPTURE") == 0
    first = module(hpu(1, 2), cache_tensors_list=[])
    assert module(hpu(7, 8), cache_tensors_list=[], warmup_mode=True) is first
    assert first.tolist() == [2, 4], "nothing was replayed"


def test_function_form() -> None:
    double = th.hpu.wrap_in_hpu_graph_func(lambda x: x * 2)
    assert double(hpu(1)).tolist() == [2]
    assert double(hpu(4)).tolist() == [8]


def test_torchs_own_layers_do_not_take_the_device_for_one_with_their_fused_kernels() -> None:
    """On a Gaudi `hpu` is no PrivateUse1 device, which torch's fast path of attention asks for; its kernel would fall back."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(1, 3, 8)
    with torch.no_grad():
        wanted = layer(x)
        got = wrapped(layer.to("hpu"))(x.to("hpu"))
    torch.testing.assert_close(got.cpu(), wanted)
    assert counts("FALLBACK") == 0
