"""What the CPU device makes of linears, norms, rotary embeddings and attention; weights packed, shared and released."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import export
from torch.export.graph_signature import InputKind, OutputKind

from gaudicc.runtime.cpu import CpuDevice
from gaudicc.runtime.cpu_calls import can_pack
from gaudicc.runtime.device import Segment

F = nn.functional


def segment_of(module: nn.Module, *args: torch.Tensor) -> Segment:
    program = export(module.eval(), args, strict=False).run_decompositions({})
    signature = program.graph_signature
    tensors = {**program.constants, **program.state_dict}
    own = dict(module.named_parameters())
    bound = {
        spec.arg.name: own.get(str(spec.target), tensors.get(str(spec.target)))
        for spec in signature.input_specs
        if spec.kind is not InputKind.USER_INPUT
    }
    names = {spec.target: spec.arg.name for spec in signature.input_specs}
    state = {
        names[spec.target]: index
        for index, spec in enumerate(signature.output_specs)
        if spec.kind is OutputKind.BUFFER_MUTATION
    }
    return Segment(program.graph_module, bound, state)  # type: ignore[arg-type]


class Norm(nn.Module):
    weight: nn.Parameter

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def turn(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


class Layer(nn.Module):
    """A decoder layer with grouped heads, a cache written by index, and a boolean mask."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, width: int = 64, heads: int = 4, groups: int = 2, context: int = 16, batch: int = 1) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.q, self.k = nn.Linear(width, width, bias=False), nn.Linear(width, groups * self.size, bias=False)
        self.v, self.o = nn.Linear(width, groups * self.size, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 3 * width, bias=False)
        self.down, self.before, self.after = nn.Linear(3 * width, width, bias=False), Norm(width), Norm(width)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.randn(batch, groups, context, self.size))

    def forward(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        h = self.before(x)
        q = self.q(h).view(batch, length, self.heads, self.size).transpose(1, 2)
        k = self.k(h).view(batch, length, self.groups, self.size).transpose(1, 2)
        v = self.v(h).view(batch, length, self.groups, self.size).transpose(1, 2)
        angle = position[:, None] * torch.arange(1, self.size + 1)[None] * 0.1
        cos, sin = angle.cos(), angle.sin()
        q, k = q * cos + turn(q) * sin, k * cos + turn(k) * sin
        self.keys.index_copy_(2, position, k)
        self.values.index_copy_(2, position, v)
        times = self.heads // self.groups
        shape = (batch, self.groups, times, self.keys.shape[2], self.size)
        keys = self.keys[:, :, None].expand(shape).reshape(batch, self.heads, -1, self.size)
        values = self.values[:, :, None].expand(shape).reshape(batch, self.heads, -1, self.size)
        mask = (torch.arange(self.keys.shape[2])[None] <= position[:, None])[None, None]
        attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        x = x + self.o(attended.transpose(1, 2).reshape(batch, length, -1))
        h = self.after(x)
        result: torch.Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return result


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 16)])
def test_a_decoder_layer_equals_eager(batch: int, length: int) -> None:
    torch.manual_seed(0)
    layer = Layer(batch=batch)
    x, position = torch.randn(batch, length, 64), torch.arange(length)
    segment = segment_of(layer, x, position)
    bound = {name: segment.bound[name].clone() for name in segment.state}
    recording = CpuDevice().record(segment)
    for _ in range(2):
        got = recording.replay(x, position)[0]
        mine = [segment.bound[name].clone() for name in segment.state]
        with torch.no_grad():
            layer.keys.copy_(bound[next(n for n in bound if "keys" in n)])
            layer.values.copy_(bound[next(n for n in bound if "values" in n)])
            expected = layer(x, position)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        for name, value in zip(segment.state, mine, strict=True):
            torch.testing.assert_close(value, layer.get_buffer(name.removeprefix("b_")), atol=1e-5, rtol=1e-5)


def test_a_decode_layer_takes_few_calls() -> None:
    layer = Layer()
    recording = CpuDevice().record(segment_of(layer, torch.randn(1, 1, 64), torch.tensor([3])))
    body = recording.source.split("def run")[1].split("\n")
    layer_calls = [line for line in body if "(" in line and "view(" not in line and "check" not in line]
    assert sum("mv(" in line for line in layer_calls) == 4  # q k v in one, o, gate and up in one, down
    assert [sum(name in line for line in layer_calls) for name in ("baddbmm(", "softmax(", "_bmm(")] == [1, 1, 1]
    assert not any("aten_clone" in line or "aten_cat" in line for line in layer_calls)


class Two(nn.Module):
    """Linears with everything that can follow one, on one input."""

    def __init__(self, width: int, out: int, *, bias: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.one, self.two = (nn.Linear(width, out, bias=bias, dtype=dtype) for _ in range(2))
        self.back = nn.Linear(out, width, bias=bias, dtype=dtype)
        self.raw = nn.Parameter(torch.randn(width, out, dtype=dtype) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.gelu(self.one(x), approximate="tanh") * self.two(x) + F.relu(self.one(x)) + x @ self.raw
        result: torch.Tensor = x + self.back(h + F.gelu(self.two(x)))
        return result


@pytest.mark.parametrize("rows", [(1,), (2, 3), (2, 100)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(64, 96), (96, 64)])
def test_linears_equal_eager(rows: tuple[int, ...], bias: bool, shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    model = Two(*shape, bias=bias)
    x = torch.randn(*rows, shape[0])
    with torch.no_grad():
        expected = model(x)
    segment = segment_of(model, x)
    for release in (False, True):
        got = CpuDevice(release=release).record(segment).replay(x)[0]
        assert got.stride() == expected.stride()
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_linears_in_bfloat16_equal_eager() -> None:
    torch.manual_seed(1)
    for rows in (1, 40):
        model = Two(64, 512, bias=True, dtype=torch.bfloat16)
        x = torch.randn(rows, 64, dtype=torch.bfloat16)
        got = CpuDevice().record(segment_of(model, x)).replay(x)[0]
        torch.testing.assert_close(got, model(x).detach(), atol=4e-2, rtol=4e-2)


def big_linears() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(128, 256, bias=False), nn.SiLU(), nn.Linear(256, 512, bias=False))
    return model, torch.randn(1, 128), torch.randn(64, 128)


@pytest.mark.skipif(not can_pack(torch.float32), reason="oneDNN is not in this build")
def test_packing_is_shared_by_recordings_and_freed_with_them() -> None:
    model, one, many = big_linears()
    device = CpuDevice()
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    first = device.record(segment_of(model, many))
    assert device.weights.bytes_held == weights
    second = device.record(segment_of(model, torch.cat([many, many])))
    assert device.weights.bytes_held == weights
    row = device.record(segment_of(model, one))
    assert device.weights.bytes_held == 2 * weights
    del first, second, row
    assert device.weights.bytes_held == 0


def test_released_weights_are_held_once() -> None:
    model, one, many = big_linears()
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        expected = model(one), model(many)
    device = CpuDevice(release=True)
    recordings = [device.record(segment_of(model, many)), device.record(segment_of(model, one))]
    assert device.weights.bytes_held == 0
    for parameter, before in zip(model.parameters(), kept, strict=True):
        assert parameter.stride() == (1, parameter.shape[0])
        assert torch.equal(parameter, before)
    torch.testing.assert_close(recordings[0].replay(many)[0], expected[1])
    torch.testing.assert_close(recordings[1].replay(one)[0], expected[0])
    torch.testing.assert_close(model(one).detach(), expected[0])


def test_a_weight_that_is_also_looked_up_is_not_released() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(32, 16)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return F.linear(self.table(ids), self.table.weight)

    model, ids = Tied(), torch.tensor([3])
    recording = CpuDevice(release=True).record(segment_of(model, ids))
    assert model.table.weight.is_contiguous()
    torch.testing.assert_close(recording.replay(ids)[0], model(ids).detach())


@pytest.mark.parametrize("release", [False, True])
def test_loading_other_weights_is_seen_by_the_next_replay(release: bool) -> None:
    model, one, many = big_linears()
    device = CpuDevice(release=release)
    recordings = [(device.record(segment_of(model, x)), x) for x in (one, many, one)]
    other = {name: 0.1 * torch.randn(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(other)
    for recording, x in recordings:
        torch.testing.assert_close(recording.replay(x)[0], model(x).detach(), atol=1e-5, rtol=1e-4)


def test_norm_weights_are_derived_again_after_a_change() -> None:
    model, x = Norm(32), torch.randn(1, 32)
    recording = CpuDevice().record(segment_of(model, x))
    assert "vector_norm" in recording.source
    with torch.no_grad():
        model.weight.mul_(3)
    torch.testing.assert_close(recording.replay(x)[0], model(x).detach())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", ["none", "bool", "float", "row"])
def test_attention_equals_eager_bitwise(causal: bool, mask: str) -> None:
    if causal and mask != "none":
        pytest.skip("is_causal excludes a mask")

    class Attend(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
            given: Any = None if mask == "none" else m
            first = F.scaled_dot_product_attention(q, k, v, attn_mask=given, is_causal=causal, scale=0.3)
            return F.scaled_dot_product_attention(first, k, v, attn_mask=given, is_causal=causal)

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8) for length in (5, 7, 7))
    m = torch.rand(1, 5 if mask == "row" else 1, 7) > 0.2 if mask != "float" else torch.randn(2, 1, 5, 7)
    m = m if mask == "float" else m.expand(2, 3, 5, 7) if mask == "row" else torch.rand(5, 7) > 0.2
    recording = CpuDevice().record(segment_of(Attend(), q, k, v, m))
    assert "flash_attention_for_cpu" in recording.source
    assert torch.equal(recording.replay(q, k, v, m)[0], Attend()(q, k, v, m))
