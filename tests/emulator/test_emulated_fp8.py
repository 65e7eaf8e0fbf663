"""Rules 34 to 38 and 41: fp8 casts, products and movement."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
GAUDI3 = {"GAUDICC_EMULATOR_TARGET": "gaudi3"}


def ops() -> Any:
    return torch.ops.hpu


# rule 34
@pytest.mark.parametrize(("environment", "end"), [({}, 240.0), (GAUDI3, 448.0)])
@pytest.mark.parametrize("stochastic", [False, True])
def test_fp8_casts_saturate(environment: dict[str, str], end: float, stochastic: bool) -> None:
    x = torch.tensor([1000.0, 500.0, -500.0, -1000.0, 3.0]).to("hpu")
    cast, _ = ops().cast_to_fp8_v2(x, None, stochastic, False, E4M3)
    assert cast.dtype is E4M3
    assert cast.float().tolist() == [end, end, -end, -end, 3]
    low, _ = ops().cast_to_fp8_v2(x * 1000, None, stochastic, False, E5M2)
    assert low.float().tolist()[0] == torch.finfo(E5M2).max


# rule 35
def test_scales_are_applied_in_the_input_and_output_dtype() -> None:
    x = torch.tensor(
        [[10.375, 22.375], [41.5, 17.9]], dtype=torch.bfloat16
    )  # some round otherwise with a float32 scale
    on_device, scale = x.to("hpu"), torch.tensor(1.3)
    expected = (x * scale.to(torch.bfloat16)).to(E4M3)
    for given_scale in (scale.to("hpu"), 1.3, [1.3]):
        cast, amax = ops().cast_to_fp8_v2(on_device, given_scale, False, True, E4M3)
        assert torch.equal(cast.float().cpu(), expected.float())
        assert (amax.dim(), amax.item()) == (0, x.abs().max().item())
    assert ops().cast_to_fp8_v2(on_device, None, False, False, E4M3)[1].numel() == 0
    back = ops().cast_from_fp8(cast, (1 / scale).to("hpu"), torch.bfloat16)
    assert torch.equal(back.cpu(), expected.to(torch.bfloat16) * (1 / scale).to(torch.bfloat16))
    per_row, _ = ops().cast_to_fp8_v2(on_device, [1.0, 0.5], False, False, E4M3, [2, 1])
    assert torch.equal(per_row.float().cpu(), (x * torch.tensor([[1.0], [0.5]], dtype=torch.bfloat16)).to(E4M3).float())


# rule 36
def test_fp8_input_stays_as_it_is() -> None:
    x = torch.tensor([1.5, -2.0]).to(E4M3).to("hpu")
    assert ops().cast_to_fp8_v2(x, None, False, False, E4M3)[0].float().tolist() == [1.5, -2]
    with pytest.raises(RuntimeError, match=r"CastToFp8V2 must have no amax for float8\."):
        ops().cast_to_fp8_v2(x, None, False, True, E4M3)
    match = "must have the same dtype for float8, but are Float8_e4m3fn and Float8_e5m2"
    with pytest.raises(RuntimeError, match=match):
        ops().cast_to_fp8_v2(x, None, False, False, E5M2)


# rule 37
@given(st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=50), st.sampled_from([E4M3, E5M2]))
@settings(max_examples=50, deadline=None)
def test_stochastic_rounding_gives_a_neighbour(values: list[float], dtype: torch.dtype) -> None:
    x = torch.tensor(values)
    grid = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    grid = grid[grid.isfinite()].sort()[0]
    found = ops().cast_to_fp8_v2(x.to("hpu"), None, True, False, dtype)[0].float().cpu()
    above = grid[torch.searchsorted(grid, x)]
    below = grid[torch.searchsorted(grid, x, right=True) - 1]
    assert ((found == above) | (found == below)).all()


def test_stochastic_rounding_differs_and_is_fair() -> None:
    x = torch.full((4000,), 1.0 + 0.25 * 2**-3, device="hpu")
    nearest, by_chance = (
        ops().cast_to_fp8_v2(x, None, chance, False, E4M3)[0].float().cpu() for chance in (False, True)
    )
    assert nearest.unique().tolist() == [1]
    assert by_chance.unique().tolist() == [1, 1.125]
    assert abs(by_chance.mean().item() - x[0].item()) < 0.01


# rule 38
def test_softmax_and_sum_of_fp8() -> None:
    x = torch.rand(3, 4, dtype=torch.bfloat16) * 4
    plain = ops().softmax_fp8(x.to("hpu"), -1)
    assert plain.dtype is torch.bfloat16
    torch.testing.assert_close(plain.cpu(), torch.softmax(x.float(), -1).bfloat16())
    scaled = ops().softmax_fp8(x.to("hpu"), -1, 0.5, 2.5)
    assert scaled.dtype is E4M3
    torch.testing.assert_close(scaled.float().cpu(), torch.softmax(x.float() * 0.5, -1) * 2.5, rtol=0.13, atol=0.01)
    low = torch.tensor([1.0, 2.0]).to(E5M2).to("hpu")
    assert ops().sum_fp8(low).dtype is E5M2
    assert ops().sum_fp8(low, [0], True, torch.bfloat16).dtype is torch.bfloat16


def test_hybrid_cast_gives_both_formats() -> None:
    x = torch.tensor([1.0, -500.0]).to("hpu")
    low, high, amax = ops().cast_to_fp8_hybrid(x, None, None, False, True)
    assert (low.dtype, high.dtype, amax.item()) == (E5M2, E4M3, 500)
    assert high.float().tolist() == [1, -240]


@pytest.mark.parametrize("transposed", [False, True])
def test_fp8_product(transposed: bool) -> None:
    a, b = torch.randint(-4, 4, (3, 4)).float(), torch.randint(-4, 4, (4, 2)).float()
    left, right = (a.t(), b.t()) if transposed else (a, b)
    bias = torch.ones(2)
    args = (left.to(E4M3).to("hpu"), transposed, right.to(E4M3).to("hpu"), transposed, None, torch.float32)
    assert torch.equal(ops().fp8_gemm_v2(*args, 0.5, 2.0, bias.to("hpu")).cpu(), a @ b + 1)
    assert torch.equal(ops().fp8_gemm_v2(*args).cpu(), a @ b)
    per_column = ops().fp8_gemm_v2(*args, [1.0], [2.0, 3.0])
    assert torch.equal(per_column.cpu(), a @ b * torch.tensor([2.0, 3.0]))


def test_fp8_convolution() -> None:
    x, w = torch.randint(-3, 3, (1, 2, 5, 5)).float(), torch.randint(-3, 3, (3, 2, 3, 3)).float()
    found = ops().conv2d_fp8(x.to(E4M3).to("hpu"), w.to(E4M3).to("hpu"), None, [1, 1], [1, 1], [1, 1], 1, torch.float32)
    assert torch.equal(found.cpu(), functional.conv2d(x, w, padding=1))


# rule 41
def test_fp8_tensors_move_and_can_be_selected() -> None:
    x = torch.arange(6.0).to(E4M3).to("hpu")
    rows = torch.tensor([0, 2]).to("hpu")
    table = x.view(3, 2)
    assert torch.index_select(table, 0, rows).float().tolist() == [[0, 1], [4, 5]]
    assert table.index_fill(0, rows, 0).float().tolist() == [[0, 0], [2, 3], [0, 0]]
    assert x.repeat_interleave(2).float().tolist()[:4] == [0, 0, 1, 1]
    view = x.clone()
    view[1:3].copy_(x[4:])
    assert view.float().tolist() == [0, 4, 5, 3, 4, 5]
    copied = table.clone().index_copy_(0, rows, table[:2])
    assert copied.float().tolist() == [[0, 1], [2, 3], [2, 3]]


def test_fp8_values_are_compared_on_the_host() -> None:
    x = torch.tensor([0.5, 2.0], device="hpu").to(E4M3)
    assert torch.allclose(x, x.clone())
    assert not torch.allclose(x, torch.tensor([0.5, 3.0], device="hpu").to(E4M3))
    assert torch.equal(x, x.clone())
    assert x[1].item() == 2.0


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("heads", [2, 4])
def test_attention_in_fp8_scales_operands_back_and_casts_weights_and_result(recompute: bool, heads: int) -> None:
    from habana_frameworks.torch.hpex.kernels import fp8_fused_sdpa

    q, k, v = (torch.randn(2, n, 8, 16) for n in (heads, 2, 2))
    cast = [ops().cast_to_fp8_v2(x.to("hpu"), 4.0, False, False, E4M3)[0] for x in (q, k, v)]
    back = [x.float().cpu() / 4 for x in cast]
    keys, values = (x.repeat_interleave(heads // 2, 1) for x in back[1:])
    expected = functional.scaled_dot_product_attention(back[0], keys, values, is_causal=True)
    known = {"d_scale_q": 0.25, "d_scale_k": 0.25, "d_scale_v": 0.25, "q_scale_s": 16.0}
    scales = {name: torch.tensor([value], device="hpu") for name, value in known.items()}
    keywords = {"is_causal": True, "recompute": recompute}
    wide, amax_s, _ = fp8_fused_sdpa(*cast, **keywords, **scales, is_amax_s=True)
    assert wide.dtype is torch.bfloat16
    assert wide.shape == q.shape
    assert amax_s is not None
    assert amax_s.tolist() == [1.0]  # the first row sees one key only
    torch.testing.assert_close(wide.float().cpu(), expected, atol=0.1, rtol=0.05)
    assert not torch.equal(wide.float().cpu(), expected.bfloat16().float())  # the weights were rounded to fp8
    other = {
        **scales,
        "d_scale_s": torch.tensor([1 / 16], device="hpu"),
        "q_scale_o": torch.tensor([2.0], device="hpu"),
    }
    narrow, _, _ = fp8_fused_sdpa(*cast, **keywords, **other)
    assert narrow.dtype is E4M3
    torch.testing.assert_close(narrow.float().cpu() / 2, wide.float().cpu(), atol=0.05, rtol=0.07)


def test_attention_in_fp8_leaves_out_scales_that_are_zero_and_refuses_gradients() -> None:
    from habana_frameworks.torch.hpex.kernels import fp8_fused_sdpa

    x = torch.randn(1, 2, 4, 8, dtype=torch.bfloat16, device="hpu")
    expected = functional.scaled_dot_product_attention(x, x, x)
    numbers = dict.fromkeys(("d_scale_q", "d_scale_k", "d_scale_v", "q_scale_s", "q_scale_o", "d_scale_s"), 0.0)
    found, _, amax_o = fp8_fused_sdpa(x, x, x, recompute=True, is_amax_o=True, **numbers)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)
    assert amax_o is not None
    torch.testing.assert_close(amax_o.cpu(), expected.abs().amax().float().cpu().reshape(1), atol=0.02, rtol=0.02)
    with pytest.raises(Exception, match=r"gradients of .*fp8_fused_sdpa are not emulated"):
        fp8_fused_sdpa(x.clone().requires_grad_(), x, x)
