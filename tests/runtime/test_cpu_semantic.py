"""Semantic ops on the CPU device, copies that are dropped and rotations that are joined: equal to the graph, in fewer calls."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gaudicc.kernels import attention, rms_norm
from gaudicc.runtime import cpu_attention
from gaudicc.runtime.cpu import CpuDevice
from tests.runtime.test_cpu_models import Layer, segment_of


class Norm(nn.Module):
    def __init__(self, width: int, dtype: torch.dtype, *, scale_first: bool, shifted: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width, dtype=dtype))
        self.scale_first, self.shifted = scale_first, shifted

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = 1.0 + self.weight if self.shifted else self.weight
        result: torch.Tensor = rms_norm(x, weight, 1e-5, self.scale_first)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale_first", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_norm_equals_its_reference(dtype: torch.dtype, scale_first: bool, shifted: bool, rows: int) -> None:
    torch.manual_seed(0)
    model = Norm(48, dtype, scale_first=scale_first, shifted=shifted)
    x = torch.randn(2, rows, 48, dtype=dtype) * 3
    recording = CpuDevice().record(segment_of(model, x))
    torch.testing.assert_close(recording.replay(x)[0], model(x).detach(), atol=1e-5, rtol=1e-5)
    assert ("gaudicc_rms_norm" in recording.source) == (dtype != torch.float32)


class Attend(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = attention(q, k, v, mask, False, 0.3)
        return result.transpose(1, 2).reshape(q.shape[0], q.shape[2], -1)


class AttendBefore(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = attention(q, k, v, None, True, 0.3)
        return result


@pytest.mark.parametrize("queries", [1, 6])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_equals_its_reference(queries: int, groups: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, queries, 8), torch.randn(2, groups, 6, 8), torch.randn(2, groups, 6, 8)
    mask = torch.rand(2, 1, queries, 6) > 0.3
    mask[..., 0] = True
    recording = CpuDevice().record(segment_of(Attend(), q, k, v, mask))
    assert ("flash_attention_for_cpu" in recording.source) == (queries > 1)
    torch.testing.assert_close(recording.replay(q, k, v, mask)[0], Attend()(q, k, v, mask))
    causal = CpuDevice().record(segment_of(AttendBefore(), q, k, v))
    torch.testing.assert_close(causal.replay(q, k, v)[0], AttendBefore()(q, k, v))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_kernel_that_shares_no_keys_gets_one_per_head(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flash kernel of torch 2.7 reads past keys of fewer heads than queries, and says nothing."""
    monkeypatch.setattr(cpu_attention, "kernel_shares_keys", lambda: False)
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, groups, 6, 8), torch.randn(2, groups, 6, 8)
    causal = CpuDevice().record(segment_of(AttendBefore(), q, k, v))
    assert "flash_attention_for_cpu" in causal.source
    assert "expand" in causal.source
    torch.testing.assert_close(causal.replay(q, k, v)[0], AttendBefore()(q, k, v))


def test_whether_the_kernel_shares_keys_is_what_it_does() -> None:
    q, k = torch.randn(1, 4, 3, 8), torch.randn(1, 4, 3, 8)
    one = k[:, :1].clone()
    k[:, 1:] = one  # what a kernel that reads past the first head finds
    shared = torch._scaled_dot_product_flash_attention_for_cpu(q, k[:, :1], k[:, :1], 0.0, False)[0]
    every = torch._scaled_dot_product_flash_attention_for_cpu(q, k, k, 0.0, False)[0]
    torch.testing.assert_close(shared, every)
    k[:, 1:] = 0.0
    again = torch._scaled_dot_product_flash_attention_for_cpu(q, k[:, :1], k[:, :1], 0.0, False)[0]
    assert torch.allclose(again, every) == cpu_attention.kernel_shares_keys()


@given(
    batch=st.integers(1, 3), groups=st.integers(1, 3), share=st.integers(1, 3), keys=st.integers(1, 9), per_head=st.booleans()
)  # fmt: skip
def test_one_query_equals_the_flash_kernel(batch: int, groups: int, share: int, keys: int, per_head: bool) -> None:
    """Keys a narrowed part of a cache, rows that see nothing, and NaN among what is seen included."""
    heads = groups * share
    q = torch.randn(batch, 1, heads, 8).transpose(1, 2)
    k, v = (torch.randn(batch, groups, keys + 1, 8)[:, :, :keys] for _ in range(2))
    mask = torch.rand(batch, heads if per_head else 1, 1, keys) > 0.4
    mask[-1, ..., 0] = True
    mask[0, 0] &= batch == 1  # else its query sees nothing
    v[-1, -1, -1, 0] = torch.nan
    recording = CpuDevice().record(segment_of(Attend(), q, k, v, mask))
    assert "aten_baddbmm(" in recording.source
    expected = F.scaled_dot_product_attention(q, k, v, mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(
        recording.replay(q, k, v, mask)[0], expected.transpose(1, 2).reshape(batch, 1, -1), equal_nan=True
    )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("tokens", [256, 300, 513])
def test_tiles_equal_the_flash_kernel(groups: int, tokens: int) -> None:
    torch.manual_seed(0)
    q, (k, v) = torch.randn(2, 4, tokens, 8), torch.randn(2, 2, groups, tokens, 8)
    recording = CpuDevice().record(segment_of(AttendBefore(), q, k, v))
    assert "cpu_attend_tiles(" in recording.source
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    got = recording.replay(q, k, v)[0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert got.stride() == AttendBefore()(q, k, v).stride()


def test_one_row_turns_queries_and_keys_together() -> None:
    torch.manual_seed(0)
    layer, x, position = Layer(), torch.randn(1, 1, 64), torch.tensor([3])
    recording = CpuDevice().record(segment_of(layer, x, position))
    assert recording.source.count("addcmul_(") == 2
    many = CpuDevice().record(segment_of(layer, torch.randn(1, 4, 64), torch.arange(4)))
    assert many.source.count("addcmul_(") == 4


class Copied(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = x + y
        copy = total.clone(memory_format=torch.contiguous_format)
        return copy * 2, total.t().clone(memory_format=torch.contiguous_format) * 3


def test_only_copies_that_change_the_layout_stay() -> None:
    x, y = torch.randn(3, 5), torch.randn(3, 5)
    recording = CpuDevice().record(segment_of(Copied(), x, y))
    assert recording.source.count("aten_clone(") == 1
    for got, expected in zip(recording.replay(x, y), Copied()(x, y), strict=True):
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()


def test_a_copy_of_state_is_kept() -> None:
    """The buffer is overwritten in the same call; what was copied is its old value."""

    class Counter(nn.Module):
        total: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            before = self.total.clone(memory_format=torch.contiguous_format)
            self.total.copy_(x)
            return before + 1

    module = Counter()
    recording = CpuDevice().record(segment_of(module, torch.ones(4)))
    assert recording.replay(torch.full((4,), 5.0))[0].tolist() == [1.0] * 4
    assert recording.replay(torch.zeros(4))[0].tolist() == [6.0] * 4
