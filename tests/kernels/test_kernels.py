"""The semantic ops: reference against PyTorch, fake against real, and what torch itself demands of a custom op."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

import gaudicc
from gaudicc.kernels import attention, rms_norm
from gaudicc.kernels.attention import expand_heads, plain_attention
from gaudicc.kernels.norm import plain_rms_norm
from gaudicc.passes import DEFAULT_PIPELINE, LowerSemanticOps

FLOATS = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(a: Tensor, b: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], equal_nan=True)


@st.composite
def attention_arguments(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool, float]:
    """Shapes with grouped heads, other value widths, no keys to speak of, and every kind of mask."""
    batch, kv_heads, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    queries, keys = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    dim, value_dim = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    dtype = draw(FLOATS)
    q = random(batch, kv_heads * groups, queries, dim, dtype=dtype)
    k = random(batch, kv_heads, keys, dim, dtype=dtype, seed=1)
    v = random(batch, kv_heads, keys, value_dim, dtype=dtype, seed=2)
    kind = draw(st.sampled_from(["none", "causal", "bool", "added"]))
    mask: Tensor | None = None
    if kind in ("bool", "added"):
        shape = [draw(st.sampled_from([1, n])) for n in (batch, kv_heads * groups, queries)]
        mask = random(*shape, keys, seed=3)
        mask = mask > 0 if kind == "bool" else mask.to(dtype)
        if kind == "bool":
            mask[..., 0] = True  # rows without any key have a test of their own
    return q, k, v, mask, kind == "causal", draw(st.sampled_from([1.0, dim**-0.5, 0.3]))


@given(attention_arguments())
def test_attention_is_what_pytorch_computes(arguments: tuple[Any, ...]) -> None:
    q, k, v, mask, causal, scale = arguments
    grouped = q.shape[1] != k.shape[1]
    wide = functional.scaled_dot_product_attention(
        q.double(),
        k.double(),
        v.double(),
        mask if mask is None or mask.dtype == torch.bool else mask.double(),
        is_causal=causal,
        scale=scale,
        enable_gqa=grouped,
    )
    result = attention(q, k, v, mask, causal, scale)
    assert result.dtype == q.dtype
    close(result, wide.to(q.dtype), q.dtype)


@given(attention_arguments())
def test_attention_in_plain_aten_is_the_same(arguments: tuple[Any, ...]) -> None:
    q = arguments[0]
    plain = plain_attention(*arguments)
    close(plain, attention(*arguments), q.dtype)


@given(attention_arguments())
def test_attention_fake_and_real_agree(arguments: tuple[Any, ...]) -> None:
    agree(attention, arguments)


def agree(op: Any, arguments: tuple[Any, ...]) -> None:
    """Shape, dtype, device and strides of the fake result are those of the real one."""
    real = op(*arguments)
    with FakeTensorMode() as mode:
        fake = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))
    assert (fake.shape, fake.dtype, fake.device) == (real.shape, real.dtype, real.device)
    if real.numel():
        # A dim of size 1 has a stride without meaning.
        strides = zip(fake.stride(), real.stride(), real.shape, strict=True)
        assert all(a == b for a, b, size in strides if size != 1), (fake.stride(), real.stride())


def test_merging_the_heads_after_attention_is_a_view() -> None:
    result = attention(random(2, 4, 3, 8), random(2, 2, 3, 8), random(2, 2, 3, 8), None, True, 0.5)
    merged = result.transpose(1, 2).reshape(2, 3, 32)
    assert merged.data_ptr() == result.data_ptr()


@pytest.mark.parametrize("added", [False, True])
def test_rows_without_any_key_are_zero(added: bool) -> None:
    q, k, v = random(1, 2, 3, 4), random(1, 2, 5, 4, seed=1), random(1, 2, 5, 4, seed=2)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1] = False
    mask = torch.zeros(3, 5).masked_fill(~mask, float("-inf")) if added else mask
    eager = functional.scaled_dot_product_attention(q, k, v, mask, scale=0.5)
    for result in (attention(q, k, v, mask, False, 0.5), plain_attention(q, k, v, mask, False, 0.5)):
        close(result, eager, torch.float32)
        assert (result[:, :, 1] == 0).all()


def test_an_added_mask_of_lowest_values_is_finite() -> None:
    q, k, v = random(1, 1, 2, 4), random(1, 1, 3, 4, seed=1), random(1, 1, 3, 4, seed=2)
    mask = torch.full((2, 3), torch.finfo(torch.float32).min)
    close(attention(q, k, v, mask, False, 1.0), v.mean(2, keepdim=True).expand(1, 1, 2, 4), torch.float32)
    assert plain_attention(q, k, v, mask, False, 1.0).isfinite().all()


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "added"])
def test_attention_is_lowered_where_the_fused_kernel_is_not_wanted(kind: str) -> None:
    class Model(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
            return functional.scaled_dot_product_attention(q, k, v, mask, is_causal=kind == "causal")

    masks = {"bool": torch.tensor([[True, False, True], [True] * 3, [True, True, False]]), "added": random(3, 3)}
    inputs = (*(random(1, 2, 3, 4, seed=i) for i in range(3)), masks.get(kind))
    passes = [replace(p, fused=False) if isinstance(p, LowerSemanticOps) else p for p in DEFAULT_PIPELINE]
    compiled = gaudicc.compile(Model().eval(), inputs, passes=passes, verify="numerics")
    assert not any(name.startswith("gaudicc") for name in compiled.static_program().count_ops())
    close(compiled(*inputs), Model()(*inputs), torch.float32)


@given(st.integers(1, 3), st.integers(1, 4))
def test_heads_are_repeated_one_after_another(heads: int, groups: int) -> None:
    x = random(2, heads, 3, 4)
    assert torch.equal(expand_heads(x, groups), x.repeat_interleave(groups, 1))


@st.composite
def norm_arguments(draw: st.DrawFn) -> tuple[Tensor, Tensor, float, bool]:
    shape = [*draw(st.lists(st.integers(0, 3), max_size=3)), draw(st.integers(1, 9))]
    dtype = draw(FLOATS)
    x = random(*shape, dtype=dtype)
    if draw(st.booleans()):
        x = x.mT.contiguous().mT if x.dim() > 1 else x
    weight = random(shape[-1], dtype=draw(st.sampled_from([dtype, torch.float32])), seed=1)
    return x, weight, draw(st.sampled_from([1e-6, 1e-5, 0.1])), draw(st.booleans())


@given(norm_arguments())
def test_rms_norm_is_what_the_formula_says(arguments: tuple[Any, ...]) -> None:
    x, weight, eps, scale_first = arguments
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    result = rms_norm(x, weight, eps, scale_first)
    assert result.dtype == (x.dtype if scale_first else torch.promote_types(x.dtype, weight.dtype))
    torch.testing.assert_close(
        result.double(), expected, rtol=2 * TOLERANCE[x.dtype], atol=2 * TOLERANCE[x.dtype], check_dtype=False
    )
    assert torch.equal(plain_rms_norm(*arguments), result)


@given(norm_arguments())
def test_rms_norm_fake_and_real_agree(arguments: tuple[Any, ...]) -> None:
    agree(rms_norm, arguments)


def test_rms_norm_rounds_where_each_family_does() -> None:
    """Llama rounds before the weight, Gemma after it: in half precision the two differ."""
    x, weight = random(64, 32, dtype=torch.bfloat16), random(32, dtype=torch.bfloat16, seed=1)
    llama, gemma = (rms_norm(x, weight, 1e-6, first) for first in (False, True))
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(llama, weight * normed.to(torch.bfloat16))
    assert torch.equal(gemma, (normed * weight.float()).to(torch.bfloat16))
    assert not torch.equal(llama, gemma)


@pytest.mark.parametrize("symbolic", [False, True])
def test_torch_accepts_the_ops(symbolic: bool) -> None:
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic" if symbolic else "test_aot_dispatch_static")
    q, k, v = random(2, 4, 3, 8), random(2, 2, 5, 8), random(2, 2, 5, 6)
    for mask in (None, random(3, 5) > -2, random(2, 1, 3, 5)):
        torch.library.opcheck(attention, (q, k, v, mask, False, 1 / math.sqrt(8)), test_utils=tests)
    torch.library.opcheck(attention, (q, k, v, None, True, 0.5), test_utils=tests)
    for scale_first in (False, True):
        torch.library.opcheck(rms_norm, (random(2, 3, 8), random(8), 1e-6, scale_first), test_utils=tests)
