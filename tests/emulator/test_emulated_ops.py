"""Rules 44 and 45, and the references of the `hpu::` ops."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

th: Any = torch
"""torch as a child process has it: with `torch.hpu`."""
E4M3 = torch.float8_e4m3fn


def ops() -> Any:
    return torch.ops.hpu


# rule 44
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32, E4M3])
def test_cache_reordering(dtype: torch.dtype) -> None:
    cache = torch.randint(0, 9, (2, 4, 3, 6, 2)).to(dtype)
    beams = torch.tensor([[0, 2, 3, 2], [1, 0, 1, 3]])
    packed = (beams * torch.tensor([64, 16, 4, 1])).sum(-1).to(torch.uint8)
    start, end = torch.tensor([2, 1], dtype=torch.int32), torch.tensor([5, 3], dtype=torch.int32)
    on_device = cache.to("hpu")
    same = ops().kv_reorder_(on_device, start.to("hpu"), end.to("hpu"), packed.to("hpu"))
    assert same is on_device
    expected = cache.float().clone()
    for entry in range(2):
        part = expected[entry, :, :, start[entry] : end[entry]]
        part.copy_(part[beams[entry]].clone())
    assert torch.equal(on_device.float().cpu(), expected)


def test_interleaving_in_place() -> None:
    x = torch.arange(8.0).view(8, 1).to("hpu")
    ops().in_place_interleave_(x)
    assert x.flatten().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


# rule 45
def test_masked_triangular_softmax_leaves_zeros() -> None:
    x = torch.randn(4, 3, 3)
    bounds = torch.tensor([[1, 3], [0, 2]])
    found = ops().scaled_masked_triangular_softmax(x.to("hpu"), bounds.to("hpu"), 1.3, 2, True, 0).cpu()
    assert torch.equal(found[:2, 0], torch.zeros(2, 3)), "nothing to attend to"
    assert not found.isnan().any()
    assert torch.equal(found[2:, :, 2], torch.zeros(2, 3)), "beyond the last column"
    torch.testing.assert_close(found[:, 1:].sum(-1), torch.ones(4, 2))
    torch.testing.assert_close(found[2, 1, :2], torch.softmax(x[2, 1, :2] * 1.3, -1))


def test_triangular_softmax_and_what_it_retains() -> None:
    x = torch.randn(2, 4, 4)
    expected = torch.softmax((x * 0.7).masked_fill(torch.ones(4, 4).triu(1).bool(), -math.inf), -1)
    result, inverse, top = ops().scaled_triangular_softmax_retain(x.to("hpu"), 0.7)
    torch.testing.assert_close(result.cpu(), expected)
    again = ops().scaled_triangular_softmax(x.to("hpu"), 0.7, inverse, top)
    assert torch.equal(again.cpu(), result.cpu())
    torch.testing.assert_close(ops().scaled_triangular_softmax(x.to("hpu"), 0.7).cpu(), expected)
    masked = ops().scaled_masked_softmax(x.to("hpu"), torch.ones(2, 4, 4).to("hpu"), 0.17)
    torch.testing.assert_close(masked.cpu(), torch.softmax(x * 0.17 + 1, -1))
    torch.testing.assert_close(ops().custom_softmax(x.to("hpu"), 0).cpu(), torch.softmax(x, -1))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention(recompute: bool, heads: int, causal: bool) -> None:
    from habana_frameworks.torch.hpex.kernels import FusedSDPA

    q, k, v = torch.randn(2, heads, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    mask = None if causal else torch.randn(2, 1, 5, 5)
    expected = functional.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, enable_gqa=heads != 2)

    def on_device(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to("hpu")

    with th.hpu.sdp_kernel(enable_recompute=recompute):
        found = FusedSDPA.apply(on_device(q), on_device(k), on_device(v), on_device(mask), 0.0, causal)
    torch.testing.assert_close(found.cpu(), expected)
    grads = [x.to("hpu").requires_grad_() for x in (q, k, v)]
    FusedSDPA.apply(*grads, on_device(mask), 0.0, causal).sum().backward()
    assert all(x.grad is not None for x in grads)


def test_fused_attention_with_lengths_and_its_statistics() -> None:
    from habana_frameworks.torch.hpex.kernels import FusedSDPA

    q = torch.randn(2, 1, 4, 8)
    lengths = torch.tensor([2, 4], dtype=torch.int32)
    x = q.to("hpu")
    found = FusedSDPA.apply(x, x, x, None, 0.0, True, None, "fast", True, lengths.to("hpu"), "right").cpu()
    short = functional.scaled_dot_product_attention(q[:1, :, :2], q[:1, :, :2], q[:1, :, :2], is_causal=True)
    torch.testing.assert_close(found[:1, :, :2], short)
    with pytest.raises(AssertionError, match="Valid sequence length"):
        FusedSDPA.apply(x, x, x, None, 0.0, False, None, "fast", True, lengths.to("hpu"), "right")
    _, top, inverse, _ = ops().sdpa_recomp_fwd(x, x, x, None, 0.0, 1.0, False, False, "none", None, "left")
    scores = q @ q.transpose(-2, -1)
    torch.testing.assert_close(top.cpu(), scores.amax(-1, keepdim=True))
    torch.testing.assert_close(
        1 / inverse.cpu(), torch.exp(scores - scores.amax(-1, keepdim=True)).sum(-1, keepdim=True)
    )
    for mode, dtype in (("none", torch.float32), ("fast", torch.bfloat16)):
        narrow = ops().sdpa_recomp_fwd(*[x.bfloat16()] * 3, None, 0.0, 1.0, False, True, mode, None, "left")
        assert (narrow[1].dtype, narrow[2].dtype) == (torch.bfloat16, dtype)


def test_rms_norm_and_rotary() -> None:
    from habana_frameworks.torch.hpex.kernels import (
        RotaryPosEmbeddingHelperV2,
        RotaryPosEmbeddingMode,
        apply_rotary_pos_emb,
    )
    from habana_frameworks.torch.hpex.normalization import FusedRMSNorm

    x, weight = torch.randn(2, 3, 5, 8), torch.randn(8)
    expected = functional.rms_norm(x, (8,), weight, 1e-6)
    torch.testing.assert_close(FusedRMSNorm.apply(x.to("hpu"), weight.to("hpu"), 1e-6).cpu(), expected)
    angles = torch.randn(16, 4)
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
    at = torch.tensor([[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]])
    turned = torch.cat((-x[..., 4:], x[..., :4]), -1)
    expected = x * cos[at][:, None] + turned * sin[at][:, None]
    found = RotaryPosEmbeddingHelperV2.apply(x.to("hpu"), cos.to("hpu"), sin.to("hpu"), at.to("hpu"))
    torch.testing.assert_close(found.cpu(), expected)
    pairs = torch.randn(1, 1, 5, 8)
    found = apply_rotary_pos_emb(
        x.to("hpu"), pairs.cos().to("hpu"), pairs.sin().to("hpu"), None, 0, RotaryPosEmbeddingMode.PAIRWISE
    )
    swapped = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    torch.testing.assert_close(found.cpu(), x * pairs.cos() + swapped * pairs.sin())


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_mixture_of_experts(permuted: bool, fused: bool) -> None:
    x, experts = torch.randn(5, 8), 4
    weights, table = torch.topk(torch.randn(5, experts), 2)
    w1, w2, w3 = ([torch.randn(*shape) for _ in range(experts)] for shape in ((8, 6), (8, 6), (6, 8)))
    expected = torch.zeros(5, 8)
    for token in range(5):
        for rank in range(2):
            e = int(table[token, rank])
            expected[token] += weights[token, rank] * ((functional.silu(x[token] @ w1[e]) * (x[token] @ w2[e])) @ w3[e])
    given = [[w.t() if permuted else w for w in group] for group in (w1, w2, w3)]
    groups = (
        [[torch.cat(pair, 0 if permuted else 1) for pair in zip(*given[:2], strict=True)], given[2]] if fused else given
    )
    on_device = [[w.contiguous().to("hpu") for w in group] for group in groups]
    found = ops().mixture_of_experts(
        x.to("hpu"), table.to("hpu"), weights.to("hpu"), *on_device, permuted, "silu", 0, experts - 1
    )
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_four_bit_weights(kind: str) -> None:
    low = -8 if kind == "int4" else 0
    values = torch.randint(low, low + 16, (3, 16))
    packed = torch.zeros(3, 2, dtype=torch.int64)
    for place in range(16):
        packed[:, place // 8] |= (values[:, place] & 15) << (4 * (place % 8))
    packed = torch.where(packed > 2**31 - 1, packed - 2**32, packed).to(torch.int32)
    convert = getattr(ops(), f"convert_from_{kind}")
    scale = torch.tensor(0.5).to("hpu")
    assert torch.equal(convert(packed.to("hpu"), scale, None, torch.float32).cpu(), values * 0.5)
    zero = convert(packed.to("hpu"), scale, packed.to("hpu"), torch.bfloat16)
    assert torch.equal(zero.cpu(), torch.zeros(3, 16, dtype=torch.bfloat16))


def test_plain_index_and_masked_product() -> None:
    x, at = torch.randn(3, 4), torch.tensor([2, 0])
    assert torch.equal(ops().plain_index(x.to("hpu"), [at.to("hpu")]).cpu(), x[at])
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    found = ops().masked_batch_gemm(*(t.to("hpu") for t in (a, b, a, b)), False, False)
    torch.testing.assert_close(found.cpu(), 2 * a @ b)


def test_four_bit_weights_in_groups() -> None:
    packed, scale = torch.zeros(4, 1, dtype=torch.int32).to("hpu"), torch.tensor([[2.0] * 8, [3.0] * 8]).to("hpu")
    ones = torch.full((2, 1), 0x11111111, dtype=torch.int32).to("hpu")
    found = ops().convert_from_uint4(packed, scale, ones, torch.float32)
    assert found[:, 0].tolist() == [-2, -2, -3, -3], "a row of scales and of zero points for each two rows"


def test_fused_attention_gives_weights_and_dropout_mask() -> None:
    from habana_frameworks.torch.hpex.kernels import FusedSDPA

    q = torch.randn(1, 2, 4, 8)
    x = q.to("hpu")
    weights = torch.softmax(q @ q.transpose(-2, -1) / math.sqrt(8), -1)
    out, found = FusedSDPA.apply(x, x, x, None, 0.0, False, None, "None", True, None, "left", False, True)
    torch.testing.assert_close(found.cpu(), weights)
    torch.testing.assert_close(out.cpu(), weights @ q)
    out, found, kept = FusedSDPA.apply(x, x, x, None, 0.5, False, None, "None", False, None, "left", True, True)
    torch.testing.assert_close(found.cpu(), weights)
    torch.testing.assert_close(out.cpu(), (found.cpu() * kept.cpu() * 2) @ q)
    with pytest.raises(AssertionError, match="recompute mode"):
        FusedSDPA.apply(x, x, x, None, 0.5, False, None, "None", True, None, "left", True)


def test_older_fp8_ops_and_fast_functions() -> None:
    a, b = torch.randint(-4, 4, (4, 3)).float(), torch.randint(-4, 4, (4, 2)).float()
    out = torch.ones(3, 2).to("hpu")
    given = (a.to(E4M3).to("hpu"), True, b.to(E4M3).to("hpu"), False, out, torch.float32, None, None, None, True, out)
    assert ops().fp8_gemm(*given) is out
    assert torch.equal(out.cpu(), a.t() @ b + 1)
    cast, top = torch.empty(2, dtype=E4M3).to("hpu"), torch.empty(()).to("hpu")
    ops().cast_to_fp8(torch.tensor([1.0, -500.0]).to("hpu"), None, False, cast, top)
    assert (cast.float().tolist(), top.item()) == ([1, -240], 500)
    x = torch.tensor([0.25, 4.0])
    for name in ("exp", "sqrt", "rsqrt"):
        torch.testing.assert_close(getattr(ops(), f"{name}_fast_math")(x.to("hpu")).cpu(), getattr(torch, name)(x))
    scales = [torch.tensor(value).to("hpu") for value in (2.0, 0.5)]
    product = th._scaled_mm(given[0].t(), given[2], *scales, scale_result=torch.tensor(3.0).to("hpu"), out_dtype=E4M3)
    assert torch.equal(product.float().cpu(), ((a.t() @ b) * 3).clamp(-240, 240).to(E4M3).float())


def test_groups_of_elements_are_permuted() -> None:
    from habana_frameworks.torch.hpex.kernels.fbgemm import expand_into_jagged_permute

    permute, before, after = torch.tensor([2, 0, 1]), torch.tensor([0, 2, 2, 5]), torch.tensor([0, 3, 5, 5])
    found = expand_into_jagged_permute(permute.to("hpu"), before.to("hpu"), after.to("hpu"), 5)
    assert found.tolist() == [2, 3, 4, 0, 1]


def test_ops_can_be_captured() -> None:
    graph, x, w = th.hpu.HPUGraph(), torch.ones(1, 4, device="hpu"), torch.ones(4, device="hpu")
    with th.hpu.graph(graph):
        out = ops().rms_norm(x, w, 0.0)[0]
    x.mul_(torch.tensor([1.0, 1, 1, -1]).to("hpu"))
    graph.replay()
    assert out.tolist() == [[1, 1, 1, -1]]
