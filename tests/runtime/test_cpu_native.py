"""Kernels in C: equal to ATen's calls on every layout, compiled once, and never waited for."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gaudicc
from gaudicc.errors import InputError, StateError
from gaudicc.kernels import attention, rms_norm, rotary
from gaudicc.models import load
from gaudicc.runtime.cpu import CpuDevice
from gaudicc.runtime.cpu_native import Kernels
from tests.runtime.test_cpu_models import segment_of

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
SIZES = st.integers(1, 9)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CpuDevice]:
    """One whose kernels are compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        device = CpuDevice(native=True)
        assert device.kernels is not None
        device.kernels.library(wait=True)
        yield device


ODD = (None, torch.inf, -torch.inf, torch.nan)


def same(device: CpuDevice, kernel: str, model: nn.Module, *inputs: torch.Tensor, odd: tuple[Any, ...] = ODD) -> None:
    """Records with and without the kernel; compares, on the inputs and with odd numbers among them."""
    segment = segment_of(model, *inputs)
    native, plain = device.record(segment), CpuDevice().record(segment)
    assert f"cpu_{kernel}" in native.source
    assert f"cpu_{kernel}" not in plain.source
    first = inputs[0].flatten()
    for number in odd:
        if number is not None:
            first[len(first) // 2] = number
        given = (first.view(inputs[0].shape), *inputs[1:])
        torch.testing.assert_close(native.replay(*given), plain.replay(*given), equal_nan=True, atol=1e-5, rtol=1e-5)


class Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = rms_norm(x, self.weight, 1e-5, False)
        return result


@settings(max_examples=12)
@given(rows=SIZES, width=st.integers(1, 70))
def test_norm(device: CpuDevice, rows: int, width: int) -> None:
    torch.manual_seed(0)
    same(device, "rms_norm", Norm(width), torch.randn(2, rows, width))


class Rotate(nn.Module):
    def __init__(self, *, turned: bool) -> None:
        super().__init__()
        self.turned = turned

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = rotary(x.transpose(1, 2) if self.turned else x, cos, sin, False)
        return result


@settings(max_examples=12)
@given(heads=SIZES, length=SIZES, half=SIZES, turned=st.booleans(), shared=st.booleans())
def test_rotation(device: CpuDevice, heads: int, length: int, half: int, turned: bool, shared: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, length, heads, 2 * half) if turned else torch.randn(2, heads, length, 2 * half)
    cos, sin = (torch.randn(1 if shared else 2, 1, length, 2 * half) for _ in range(2))
    same(device, "rotate", Rotate(turned=turned), x, cos, sin)


class Gate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.both = nn.Linear(width, 2 * width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.both(x).chunk(2, -1)
        result: torch.Tensor = torch.nn.functional.silu(gate) * up
        return result


@settings(max_examples=12)
@given(rows=SIZES, width=st.integers(1, 70))
def test_gate(device: CpuDevice, rows: int, width: int) -> None:
    torch.manual_seed(0)
    same(device, "gated", Gate(width), torch.randn(2, rows, width) * 5)


class Attend(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = attention(q, k, v, mask, False, 0.3)
        return result


@settings(max_examples=12)
@given(
    groups=st.sampled_from([1, 2, 4]),
    keys=SIZES,
    width=st.integers(1, 70),
    added=st.booleans(),
    heads=st.sampled_from([1, 4]),
)
def test_attention_of_one_token(device: CpuDevice, groups: int, keys: int, width: int, added: bool, heads: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, 1, width)
    k, v = (torch.randn(2, groups, keys + 3, width)[:, :, :keys] for _ in range(2))
    mask = torch.rand(2, heads, 1, keys) > 0.4
    mask[0, 0] = False  # a query that sees nothing gives zeros
    given_mask = torch.where(mask, torch.randn(mask.shape), -torch.inf) if added else mask
    same(device, "attend_one", Attend(), q, k, v, given_mask)


class AttendBefore(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = attention(q.transpose(1, 2), k, v, None, True, self.scale)
        return result


@settings(max_examples=12)
@given(groups=st.sampled_from([1, 2, 4]), tokens=st.integers(2, 40), vectors=st.integers(1, 5), batch=st.integers(1, 2))
def test_causal_attention(device: CpuDevice, groups: int, tokens: int, vectors: int, batch: int) -> None:
    torch.manual_seed(0)
    width = 16 * vectors
    q = torch.randn(batch, tokens, 4, width)
    k, v = (torch.randn(batch, groups, tokens + 3, width)[:, :, :tokens] for _ in range(2))
    same(device, "attend_causal", AttendBefore(0.3), q, k, v, odd=ODD[:-1])
    q[0, -1] = torch.nan  # PyTorch's kernel gives zeros
    segment = segment_of(AttendBefore(0.3), q, k, v)
    last = device.record(segment).replay(q, k, v)[0][0, :, -1]
    assert last.isnan().all()


class Cache(nn.Module):
    """Rows of a cache, written at given places; `read` also returns what the cache would be with rows at `others`."""

    rows: torch.Tensor

    def __init__(self, rows: torch.Tensor, heads: int) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.heads = heads

    def forward(self, x: torch.Tensor, places: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        _, tokens, _ = x.shape
        values = x[..., x.shape[-1] // 2 :].view(len(x), tokens, self.heads, -1)
        self.rows.index_copy_(0, places, values.reshape(-1, values.shape[-1]))
        return others.new_zeros(self.rows.shape, dtype=torch.float32).index_copy(0, others, self.rows[: len(others)])


@settings(max_examples=12)
@given(batch=SIZES, tokens=SIZES, heads=SIZES, width=st.integers(1, 40), data=st.data())
def test_rows_are_stored(
    device: CpuDevice, batch: int, tokens: int, heads: int, width: int, data: st.DataObject
) -> None:
    torch.manual_seed(0)
    count = batch * tokens * heads
    start = torch.randn(count + data.draw(SIZES), width)
    x = torch.randn(batch, tokens, 2 * heads * width)
    places, others = torch.randperm(len(start))[:count], torch.randperm(len(start))[: len(start) // 2]
    results = []
    for runs in (device, CpuDevice()):
        segment = segment_of(Cache(start.clone(), heads), x, places, others)
        recording = runs.record(segment)
        assert ("cpu_store" in recording.source) == (runs is device)
        read = recording.replay(x, places, others)[0]
        with pytest.raises(StateError, match="outside a state buffer"):
            recording.replay(x, places + 1 + count, others)
        results.append((read, segment.bound["b_rows"]))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
    assert not torch.equal(results[0][1], start)


def test_rows_of_a_part_are_stored_in_a_copy_of_it(device: CpuDevice) -> None:
    """Rows that are seen in another tensor, and begin behind its first element."""

    class Parts(nn.Module):
        def forward(self, x: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            whole = torch.relu(x)
            return whole.view(-1, 4).index_copy(0, places, values), whole[3:].view(-1, 4).index_copy(0, places, values)

    x, values = torch.randn(6, 8), torch.randn(2, 4)
    same(device, "store", Parts(), x, torch.tensor([4, 0]), values)
    for outside in (6, -1):
        recording = device.record(segment_of(Parts(), x, torch.tensor([4, 0]), values))
        with pytest.raises(IndexError, match=f"index {outside} is out of bounds"):
            recording.replay(x, torch.tensor([0, outside]), values)


def test_an_operand_that_was_moved_is_copied(device: CpuDevice) -> None:
    """A norm of a part of a joined product is laid out otherwise than the norm of the product alone."""

    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.norm = (
                nn.Linear(256, 256, bias=False),
                nn.Linear(256, 512, bias=False),
                Norm(256),
            )

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.norm(self.left(x)), torch.relu(self.right(x))

    torch.manual_seed(0)
    model, x = Moved(), torch.randn(3, 64, 256)
    same(device, "rms_norm", model, x)
    copies = [line for line in device.record(segment_of(model, x)).source.splitlines() if "= aten_clone(" in line]
    assert len(copies) == 1


def test_threads_share_the_work_and_change_nothing(device: CpuDevice) -> None:
    """Recorded for two threads and replayed with one, two and three; more work than a thread is worth."""
    before = torch.get_num_threads()
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 300, 3, 32), *(torch.randn(1, 1, 300, 32) for _ in range(2))
    cases = [
        ("rms_norm", Norm(512), (torch.randn(1, 67, 512),)),
        ("rotate", Rotate(turned=True), (torch.randn(2, 333, 3, 32), *torch.randn(2, 1, 1, 333, 32))),
        ("gated", Gate(128), (torch.randn(1, 333, 128),)),
        (
            "attend_one",
            Attend(),
            (torch.randn(2, 6, 1, 32), *torch.randn(2, 2, 3, 400, 32), torch.rand(2, 1, 1, 400) > 0.5),
        ),
        ("attend_causal", AttendBefore(0.3), (q, k, v)),
        (
            "store",
            Cache(torch.zeros(1300, 32), 3),
            (torch.randn(1, 400, 192), *(torch.randperm(1300)[:1200] for _ in "ab")),
        ),
    ]
    for kernel, model, inputs in cases:
        segment = segment_of(model, *inputs)
        results = []
        try:
            torch.set_num_threads(2)
            recording = device.record(segment)
            assert f"cpu_{kernel}" in recording.source
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(recording.replay(*inputs)[0].clone())
        finally:
            torch.set_num_threads(before)
        torch.testing.assert_close(results[0], CpuDevice().record(segment).replay(*inputs)[0], atol=1e-5, rtol=1e-5)
        if kernel != "gated":  # its product is oneDNN's
            assert all(torch.equal(result, results[0]) for result in results[1:])


def test_kernels_are_compiled_once_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen
    started: list[Any] = []

    def slow(command: list[str], **options: Any) -> Any:
        started.append(command)
        wait = f"import subprocess, sys; sys.stdin.read(); sys.exit(subprocess.call({command!r}))"
        return real([sys.executable, "-c", wait], stdin=subprocess.PIPE, **options)

    monkeypatch.setattr(subprocess, "Popen", slow)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device = CpuDevice(native=True)
    assert device.kernels is not None
    segment, x = segment_of(Norm(8), torch.randn(1, 8)), torch.randn(1, 8)
    early = device.record(segment)
    assert "cpu_rms_norm" not in early.source
    assert device.kernels.library(wait=True) is not None
    late = device.record(segment)
    assert "cpu_rms_norm" in late.source
    torch.testing.assert_close(early.replay(x), late.replay(x))
    before = len(started)
    assert Kernels().library() is not None
    assert len(started) == before
    assert [path.suffix for path in (tmp_path / "gaudicc").iterdir()] == [".so"]


def test_a_compiler_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho no such flag\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    failing = Kernels()
    for _ in range(2):
        with pytest.raises(InputError, match="no such flag"):
            failing.library(wait=True)
    del failing
    gc.collect()
    assert not list((tmp_path / "gaudicc").iterdir())
    monkeypatch.setenv("XDG_CACHE_HOME", str(compiler))
    with pytest.raises(InputError, match="cannot be kept in"):
        Kernels()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="no C compiler"):
        CpuDevice(native=True)


def test_a_language_model_generates_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    Kernels().library(wait=True)
    model, _ = load("llama")
    ids = torch.randint(5, 90, (2, 5), generator=torch.Generator().manual_seed(0))
    tokens, sources = [], []
    for native in (False, True):
        lm = gaudicc.compile_lm(model, max_batch=2, max_context=64, device="cpu", native=native)
        tokens.append(torch.as_tensor(lm.generate(ids, max_new_tokens=8)))
        entry = lm._graphs.entry("decode", False)
        recording: Any = entry.runner(entry.buckets[-1])._only
        sources.append(recording.source)
    assert torch.equal(*tokens)
    for kernel in ("rms_norm", "rotate", "gated", "attend_one"):
        assert [f"cpu_{kernel}" in source for source in sources] == [False, True]
