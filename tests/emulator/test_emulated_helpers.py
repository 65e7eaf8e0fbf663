"""Helpers that programs for Gaudi import beside the device: optimisers, profilers, debug switches, graphs kept by hand."""

import importlib
import warnings
from typing import Any

import pytest
import torch
from torch import nn

EAGER = {"PT_HPU_LAZY_MODE": "0"}
TORCH = "habana_frameworks.torch"
MODES = pytest.mark.parametrize("environment", [{}, EAGER])


def module(name: str) -> Any:
    return importlib.import_module(f"{TORCH}.{name}")


def pair() -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(5)
    model = nn.Linear(3, 2)
    other = nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    return model, other.to("hpu")


def trained(model: nn.Module, optimizer: Any, steps: int = 4) -> list[torch.Tensor]:
    """Parameters after some steps."""
    device = next(model.parameters()).device
    x = torch.arange(6.0).reshape(2, 3)
    for step in range(steps):
        optimizer.zero_grad()
        model((x + step).to(device)).square().mean().backward()
        optimizer.step()
    return [each.detach().cpu() for each in model.parameters()]


SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "FusedSGD": ("SGD", {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    "FusedAdagrad": ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    "FusedAdamW": ("AdamW", {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.2, "eps": 1e-8}),
    "Adam": ("Adam", {"lr": 0.1}),
    "AdamW": ("AdamW", {"lr": 0.1, "weight_decay": 0.2}),
}


@MODES
@pytest.mark.parametrize("name", list(SAME))
def test_optimizers_do_what_those_of_torch_do(name: str, environment: dict[str, str]) -> None:
    model, other = pair()
    theirs, options = SAME[name]
    expected = trained(model, getattr(torch.optim, theirs)(model.parameters(), **options))
    found = trained(other, getattr(module("hpex.optimizers"), name)(other.parameters(), **options))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found[0], pair()[0].weight), "it moved"


def test_fused_adamw_has_its_own_eps_and_moments() -> None:
    fused = module("hpex.optimizers").FusedAdamW
    model, _ = pair()
    assert fused(model.parameters()).defaults["eps"] == 1e-6
    optimizer = fused(model.parameters(), lr=0.1, bias_correction=False, moments_dtype=(torch.bfloat16, torch.float32))
    before, grad = model.weight.detach().clone(), torch.full((2, 3), 2.0)
    model.weight.grad = grad
    optimizer.step()
    assert optimizer.state[model.weight]["exp_avg"].dtype == torch.bfloat16
    assert optimizer.state[model.weight]["exp_avg_sq"].dtype == torch.float32
    first, second = 0.1 * grad, 0.001 * grad**2  # without correction for their start at 0
    torch.testing.assert_close(
        model.weight.detach(), before - 0.1 * first / (second.sqrt() + 1e-6), rtol=1e-2, atol=1e-4
    )
    with pytest.raises(Exception, match="fp8 is not emulated"):
        fused(model.parameters(), moments_dtype=torch.float8_e5m2)
    with pytest.raises(ValueError, match="betas"):
        fused(model.parameters(), betas=(1.0, 0.9))


@MODES
@pytest.mark.parametrize("largest", [0.5, 1e6])
def test_gradients_are_clipped_to_a_norm(largest: float, environment: dict[str, str]) -> None:
    model, other = pair()
    for each in (model, other):
        each(torch.ones(2, 3).to(each.weight.device)).square().sum().backward()
    expected = nn.utils.clip_grad_norm_(model.parameters(), largest)
    clipping = module("hpex.normalization").FusedClipNorm(other.parameters(), largest)
    found = clipping.clip_norm(other.parameters())
    torch.testing.assert_close(found.cpu(), expected.reshape(1))
    assert other.weight.grad is not None
    torch.testing.assert_close(other.weight.grad.cpu(), model.weight.grad)


def test_a_moving_average_follows_a_model() -> None:
    import math

    model, other = pair()
    kept = module("hpex.movingavrg").FusedEMA(other, decay=0.5)
    with torch.no_grad():
        other.weight.add_(1)
    kept.update(other)
    share = 0.5 * (1 - math.exp(-1 / 2000))
    expected = model.weight * share + (model.weight + 1) * (1 - share)
    torch.testing.assert_close(kept.ema.weight.cpu(), expected)
    assert kept.updates == 1
    other.label = "new"  # type: ignore[assignment]
    kept.update_attr(other)
    assert kept.ema.label == "new"


def test_graphs_kept_by_hand_as_diffusers_pipelines_do() -> None:
    """The pipelines of huggingface/optimum-habana reach `hpu.graphs` without importing it."""
    ht = importlib.import_module(TORCH)
    net, cache, stream = nn.Linear(4, 4).to("hpu"), {}, ht.hpu.Stream()

    def replayed(*inputs: Any) -> torch.Tensor:
        key = ht.hpu.graphs.input_hash(list(inputs))
        if key not in cache:
            with ht.hpu.stream(stream), torch.no_grad():
                graph = ht.hpu.HPUGraph()
                graph.capture_begin()
                outputs = net(inputs[0]) * inputs[1]["scale"]
                graph.capture_end()
            cache[key] = ht.hpu.graphs.CachedParams(list(inputs), outputs, graph)
            made: torch.Tensor = outputs
            return made
        cached = cache[key]
        ht.hpu.graphs.copy_to(cached.graph_inputs, list(inputs))
        cached.graph.replay()
        ht.core.hpu.default_stream().synchronize()
        out: torch.Tensor = cached.graph_outputs
        return out

    for step in range(3):
        x, scale = torch.full((2, 4), float(step)).to("hpu"), torch.tensor([2.0 + step]).to("hpu")
        torch.testing.assert_close(replayed(x, {"scale": scale}, None).cpu(), (net(x) * scale).detach().cpu())
    assert len(cache) == 1


def test_values_are_copied_into_a_like_structure_only() -> None:
    copy_to = module("hpu.graphs").copy_to
    into: Any = {"a": [torch.zeros(2, device="hpu")], "b": 1}
    copy_to(into, {"a": [torch.ones(2)], "b": 2})
    assert into["a"][0].tolist() == [1, 1]
    assert into["b"] == 1
    with pytest.raises(AssertionError, match="NoneType cannot be copied"):
        copy_to([torch.zeros(2, device="hpu")], [None])
    with pytest.raises(AssertionError, match="'c' cannot be copied to 'a'"):
        copy_to(into, {"c": [torch.ones(2)], "b": 2})


@MODES
def test_attention_in_plain_ops(environment: dict[str, str]) -> None:
    kernels = module("hpex.kernels")
    torch.manual_seed(2)
    q, k, v = (torch.randn(2, 3, 4, 8) for _ in range(3))
    for causal in (False, True):
        expected = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        for name in ("PySDPA", "PySDPAHinted"):
            found = getattr(kernels, name).apply(q.to("hpu"), k.to("hpu"), v.to("hpu"), causal)
            torch.testing.assert_close(found.cpu(), expected)
        wanting = q.to("hpu").requires_grad_()
        kernels.PySDPA.apply(wanting, k.to("hpu"), v.to("hpu"), causal).sum().backward()
        assert wanting.grad is not None


@MODES
def test_switches_of_attention_and_of_streams(environment: dict[str, str]) -> None:
    hpu = module("hpu")
    assert not hpu.recompute_sdp_enabled()
    with hpu.sdp_kernel() as nothing:
        assert hpu.recompute_sdp_enabled(), "on, if nothing is said"
    assert nothing == {}
    hpu.enable_recompute_sdp(True)
    with hpu.sdp_kernel(enable_recompute=False):
        assert not hpu.recompute_sdp_enabled()
    assert hpu.recompute_sdp_enabled()
    hpu.set_sync_debug_mode(1)
    assert hpu.get_sync_debug_mode() == 1
    assert hasattr(hpu, "graphs") == (not environment)
    with pytest.warns(FutureWarning, match="memory_reserved"):
        assert hpu.memory.memory_cached() == hpu.memory.memory_reserved()


def test_types_of_tensors_on_the_device() -> None:
    hpu = module("hpu")
    made = hpu.FloatTensor([1, 2])
    assert made.dtype == torch.float32
    assert made.device.type == "hpu"
    assert isinstance(made, hpu.FloatTensor)
    assert not isinstance(made, hpu.IntTensor)
    assert not isinstance(made.cpu(), hpu.FloatTensor)
    with pytest.raises(RuntimeError, match="legacy constructor expects dtype"):
        hpu.LongTensor([1], dtype=torch.float32)


@MODES
def test_profilers_and_debug_switches_are_accepted(environment: dict[str, str]) -> None:
    debug, profiler = module("utils.debug"), module("utils.profiler")
    profiler._setup_profiler()
    profiler._start_profiler()
    profiler._stop_profiler()
    with pytest.warns(UserWarning, match=r"utils\.profiler\._start_profiler"):
        module("profiler.ProfilerApi").start_profiler()
    module("low_overhead_profiler.profiler").flush()
    debug._enable_replace_views(False)
    debug._memstat_livealloc("here")
    debug._dump_recipe_memory_stat()
    assert debug._is_enabled_synapse_layout_handling()
    assert not debug._is_enabled_lazy_collectives()
    x = torch.ones(4, device="hpu")
    assert debug.get_tensor_info(x) == (x.data_ptr(), 16)
    assert debug.get_tensor_info(torch.ones(4)) is None
    (x + 1).cpu()
    assert debug._get_jit_cache_size() > 0
    debug._clear_jit_cache()
    assert debug._get_jit_cache_size() == 0
    with pytest.raises(Exception, match="what it holds is not public"):
        debug.load_ds_checkpoint("file")
    with pytest.raises(Exception, match="it serves training"):
        module("hpex.kernels").CTCLoss.apply(x)


@pytest.mark.parametrize("environment", [EAGER])
def test_the_backend_as_a_function(environment: dict[str, str]) -> None:
    backend = module("dynamo.compile_backend.backends").hpu_backend
    seen = []

    def watched(graph: Any, inputs: Any) -> Any:
        seen.append(graph)
        return backend(graph, inputs)

    compiled = torch.compile(lambda x: x * 2 + 1, backend=watched)
    assert compiled(torch.ones(2).to("hpu")).tolist() == [3, 3]
    assert len(seen) == 1
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        module("dynamo.compile_backend.experimental").enable_compiled_autograd()
    assert any("compiled autograd is not emulated" in str(each.message) for each in said)


@MODES
@pytest.mark.parametrize("backend", ["hccl", "hpu:hccl", "cpu:gloo,hpu:hccl"])
def test_a_group_of_one_process(backend: str, environment: dict[str, str]) -> None:
    import gaudicc.emulator
    from gaudicc.emulator.ledger import Kind

    dist: Any = torch.distributed
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    x = torch.ones(4, device="hpu")
    assert dist.all_reduce(x, async_op=True).wait()
    assert x.tolist() == [1.0] * 4
    out = torch.zeros(4, device="hpu")
    dist.all_gather_into_tensor(out, x * 2)
    assert out.tolist() == [2.0] * 4
    assert gaudicc.emulator.account().count(Kind.COLLECTIVE) == 2
    if not environment:
        hpu = module("hpu")
        graph = hpu.HPUGraph()
        with hpu.stream(hpu.Stream()):
            graph.capture_begin()
            with pytest.raises(RuntimeError, match="not supported during HPU Graph capturing"):
                dist.all_reduce(x)
            graph.capture_end()
    dist.destroy_process_group()


def test_inputs_are_marked_only_while_capturing() -> None:
    hpu = module("hpu")
    graph, x = hpu.HPUGraph(), torch.ones(2, device="hpu")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="must be while capturing in progress"):
            graph.mark_user_inputs([x])
        with hpu.stream(hpu.Stream()):
            graph.capture_begin()
            graph.mark_user_inputs([x])
            y = x * 2
            graph.capture_end()
        graph.replayV3([torch.full((2,), 3.0, device="hpu")])
        assert y.tolist() == [6.0, 6.0]
        graph = hpu.HPUGraph()


@MODES
def test_flexible_attention_runs_as_plain_ops(environment: dict[str, str]) -> None:
    found_in: Any = importlib.import_module("torch.nn.attention.flex_attention")
    flex_attention, create_block_mask = found_in.flex_attention, found_in.create_block_mask
    torch.manual_seed(2)
    q, k, v = (torch.randn(1, 2, 16, 8) for _ in range(3))
    expected = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    on_device: Any = [each.to("hpu") for each in (q, k, v)]
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, 16, 16, device="hpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        masked = flex_attention(*on_device, block_mask=mask)
        scored = flex_attention(*on_device, score_mod=lambda s, b, h, i, j: torch.where(i >= j, s, -float("inf")))
    for found in (masked, scored):
        assert found.device.type == "hpu"
        torch.testing.assert_close(found.cpu(), expected)
