"""Compiled models on the CUDA device, and the calls that stand for semantic ops there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

import gaudicc
from gaudicc.kernels import attention, rms_norm
from gaudicc.runtime.cuda import CudaDevice
from gaudicc.runtime.cuda_semantic import attend, norm
from tests.runtime.cuda.conftest import HAS_GPU, Names, check
from tests.runtime.test_cpu_recording import Build


@given(
    queries=st.sampled_from([1, 3]),
    groups=st.sampled_from([1, 2, 4]),
    masked=st.sampled_from(["", "bool", "added", "per head"]),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention_equals_its_reference(queries: int, groups: int, masked: str, causal: bool, seed: int) -> None:
    place = torch.device("cuda" if HAS_GPU else "cpu")
    torch.manual_seed(seed)
    batch, kv_heads, keys, width = 2, 2, 8, 16
    q = torch.randn(batch, queries, kv_heads * groups, width).transpose(1, 2)
    k, v = torch.randn(batch, kv_heads, keys, width), torch.randn(batch, kv_heads, keys, width)
    mask: Tensor | None = None
    if masked:
        mask = torch.rand(batch, kv_heads * groups if masked == "per head" else 1, queries, keys) > 0.4
        mask[..., -1, :] = mask[..., -1, :] & (seed % 3 > 0)  # rows without any key
        if masked == "added":
            mask = torch.where(mask, 0.5, float("-inf"))
    arguments = (q, k, v, None if causal else mask, causal, 0.3)
    got = attend(*[a.to(place) if isinstance(a, Tensor) else a for a in arguments])  # type: ignore[arg-type]
    expected = attention(*arguments)
    steps = [
        (one, other) for size, one, other in zip(got.shape, got.stride(), expected.stride(), strict=True) if size > 1
    ]
    assert all(one == other for one, other in steps)
    torch.testing.assert_close(got.cpu(), expected, atol=1e-5, rtol=1e-4)


def test_layers_share_the_bias_of_a_mask(device: CudaDevice, place: torch.device) -> None:
    build = Build()
    q = build.place("q", torch.randn(2, 4, 3, 8), bind=False)
    k = build.place("k", torch.randn(2, 2, 5, 8), bind=False)
    mask = build.place("mask", torch.rand(2, 1, 3, 5) > 0.4, bind=False)
    first = build.call(attention, q, k, k, mask, False, 0.3)
    second = build.call(attention, first, k, k, mask, False, 0.3)
    recording = check(device, build.segment(second), build.inputs)
    if place.type == "cpu":  # where launching again is what a replay does
        with Names() as names:
            recording.replay(*build.inputs)
        assert names.seen.count("aten::logical_not") == 1


@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    wide=st.booleans(),
    scale_first=st.booleans(),
    seed=st.integers(0, 99),
)
def test_norm_equals_its_reference(dtype: torch.dtype, wide: bool, scale_first: bool, seed: int) -> None:
    place = torch.device("cuda" if HAS_GPU else "cpu")
    torch.manual_seed(seed)
    x, weight = torch.randn(3, 5, 64).to(dtype) * 4, torch.randn(64).to(torch.float32 if wide else dtype)
    expected = rms_norm(x, weight, 1e-6, scale_first)
    got = norm(x.to(place), weight.to(place), 1e-6, scale_first)
    assert got.dtype == expected.dtype
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-5)
    torch.testing.assert_close(got.cpu(), expected, atol=tolerance, rtol=tolerance)


def test_a_padded_model_with_state_equals_eager(
    opened: CudaDevice, place: torch.device, make_stack: Callable[..., nn.Module]
) -> None:
    model, eager = make_stack(state=True).to(place), make_stack(state=True).to(place)
    compiled = gaudicc.compile(
        model, (torch.randn(3, 8, device=place),), dynamic_shapes={"x": {0: Dim("n", min=1, max=16)}}, device="cuda"
    )
    assert "for tests" in compiled.notes[0]
    compiled.warm_up()
    records = compiled.stats.records
    for size in (3, 1, 16, 7, 7):
        x = torch.randn(size, 8, device=place)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), eager(x), atol=1e-4, rtol=1e-4)
    assert compiled.stats.records == records
    assert not compiled.stats.host_ops


def test_weights_loaded_later_take_effect(
    opened: CudaDevice, place: torch.device, make_stack: Callable[..., nn.Module]
) -> None:
    model = make_stack().to(place)
    x = torch.randn(2, 8, device=place)
    compiled = gaudicc.compile(model, (x,), device="cuda")
    with torch.inference_mode():
        compiled(x)
    model.load_state_dict({name: value * 0.5 for name, value in model.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), atol=1e-5, rtol=1e-5)


def test_an_encoder_with_masks_equals_eager(opened: CudaDevice, place: torch.device) -> None:
    from gaudicc.models.transformers_models import build

    model: Any = build("bert", task="encoder").to(place)
    ids = torch.randint(3, 90, (3, 9), device=place)
    shape = {0: Dim("rows", min=1, max=4), 1: Dim("tokens", min=2, max=16)}
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    compiled = gaudicc.compile(
        model, example, dynamic_shapes=dict.fromkeys(example, shape), buckets=[{"rows": 4, "tokens": 16}], device="cuda"
    )
    for rows, tokens in ((3, 9), (1, 2), (4, 16)):
        ids = torch.randint(3, 90, (rows, tokens), device=place)
        mask = (torch.arange(tokens, device=place) < torch.arange(1, rows + 1, device=place)[:, None] * 4).long()
        got = compiled(input_ids=ids, attention_mask=mask).last_hidden_state
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(got * mask[..., None], expected * mask[..., None], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_what_passes_add_is_on_the_models_device(name: str) -> None:
    """Shown on the meta device, which is not the host's either and is there on every machine."""
    from gaudicc.models.transformers_models import build

    model = build(name, task="causal" if name == "llama" else "encoder").to("meta")
    ids = torch.ones(2, 9, dtype=torch.int64, device="meta")
    shapes = {"input_ids": {1: Dim("tokens", min=2, max=16)}, "attention_mask": {1: Dim("tokens", min=2, max=16)}}
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    compiled = gaudicc.compile(model, example, dynamic_shapes=shapes, buckets=[{"tokens": 16}])
    for _, graph in compiled.static_program().graphs():
        values = [node.meta.get("val") for node in graph.graph.nodes]
        sized = [value for value in values if isinstance(value, Tensor) and value.dim()]
        assert sized
        assert {value.device.type for value in sized} == {"meta"}  # numbers of no dim, lengths say, may be the host's


@torch.library.custom_op("cuda_tests::twist", mutates_args=())
def twist(x: Tensor) -> Tensor:
    """An op of the user's own, which no target has."""
    return x.roll(1, 0)


twist.register_fake(torch.empty_like)


class Host(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = twist(torch.relu(x)) * x
        return y


def test_ops_left_on_the_host_run_between_graphs(opened: CudaDevice, place: torch.device) -> None:
    x = torch.randn(4, 6, device=place)
    compiled = gaudicc.compile(Host().eval(), (x,), device="cuda", on_unsupported="host")
    torch.testing.assert_close(compiled(x), Host()(x))
    assert compiled.stats.records == 2
    assert compiled.stats.host_ops == 1


def test_a_language_model_gives_the_tokens_it_gives_on_the_cpu(opened: CudaDevice, place: torch.device) -> None:
    from gaudicc.models.transformers_models import build

    def tokens(where: torch.device, device: str) -> list[Tensor]:
        model: Any = build("llama", task="causal").to(where)
        model.generation_config.eos_token_id = None
        lm = gaudicc.compile_lm(model, max_batch=4, max_context=32, device=device)
        prompt = torch.tensor([[5, 17, 9, 3], [0, 0, 8, 4]], device=where)
        mask = (prompt > 0).long()
        options: list[dict[str, Any]] = [{}, {"do_sample": True, "temperature": 0.8, "top_k": 20, "seed": 3}]
        found: list[Any] = [lm.generate(prompt, mask, max_new_tokens=9, **how) for how in options]
        return [one.cpu() for one in found]

    for mine, theirs in zip(tokens(place, "cuda"), tokens(torch.device("cpu"), "cpu"), strict=True):
        assert torch.equal(mine, theirs)
