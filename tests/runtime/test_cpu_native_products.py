"""Products of a weight and a vector in C: equal to ATen's, the weight read where it lies."""

from __future__ import annotations

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gaudicc.errors import StateError
from gaudicc.runtime.cpu import CpuDevice
from tests.runtime.test_cpu_models import segment_of
from tests.runtime.test_cpu_native import device, same

__all__ = ["device"]
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")


class Layer(nn.Module):
    def __init__(self, width: int, out: int, adds: str) -> None:
        super().__init__()
        self.linear, self.adds = nn.Linear(width, out, bias=adds == "bias"), adds

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        product: torch.Tensor = self.linear(x)
        return product + other if self.adds == "residual" else product


@settings(max_examples=16)
@given(out=st.integers(1, 13), vectors=st.integers(1, 5), adds=st.sampled_from(["", "bias", "residual"]))
def test_one_row(device: CpuDevice, out: int, vectors: int, adds: str) -> None:
    torch.manual_seed(0)
    kernel = "weigh_add" if adds else "weigh"
    same(device, kernel, Layer(16 * vectors, out, adds), torch.randn(1, 1, 16 * vectors), torch.randn(1, 1, out))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_rows(device: CpuDevice, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        same(device, "weigh_add", Layer(512, 103, "residual"), torch.randn(1, 512), torch.randn(1, 103))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("rows", "width"), [(2, 16), (1, 17)])
def test_several_rows_and_broken_vectors_are_left_to_aten(device: CpuDevice, rows: int, width: int) -> None:
    segment = segment_of(nn.Linear(width, 8), torch.randn(rows, width))
    assert "cpu_weigh" not in device.record(segment).source


def test_a_weight_that_lies_by_columns_is_left_to_aten(device: CpuDevice) -> None:
    model = nn.Linear(16, 8)
    model.weight.data = model.weight.data.t().contiguous().t()
    assert "cpu_weigh" not in device.record(segment_of(model, torch.randn(1, 16))).source


def test_weights_are_read_as_they_are_now_and_stay_where_they_are(device: CpuDevice) -> None:
    model, x = nn.Linear(512, 512, bias=False), torch.randn(1, 512)
    recording = device.record(segment_of(model, x))
    model.load_state_dict({"weight": 2 * model.weight.detach()})
    torch.testing.assert_close(recording.replay(x)[0], model(x))
    # One that holds a single copy of each weight would move this one.
    other = CpuDevice(release=True).record(segment_of(model, x))
    assert model.weight.is_contiguous()
    torch.testing.assert_close([*recording.replay(x), *other.replay(x)], [model(x)] * 2)
    del recording
    CpuDevice(release=True).record(segment_of(model, x))
    assert not model.weight.is_contiguous()


def test_a_weight_of_another_dtype_is_refused_and_one_that_moved_is_read(device: CpuDevice) -> None:
    model, x = nn.Linear(512, 512, bias=False), torch.randn(1, 512)
    recording = device.record(segment_of(model, x))
    model.weight.data = torch.randn(512, 512)
    torch.testing.assert_close(recording.replay(x)[0], model(x))
    model.half()
    with pytest.raises(StateError, match=r"is now torch.float16 \[512, 512\]"):
        recording.replay(x)
