"""What only a GPU can show: captures that fail, the pool that recordings share, streams, random numbers."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import gaudicc
from gaudicc.errors import LoweringError
from gaudicc.runtime.cuda import CudaDevice, CudaRecording, open_cuda
from tests.runtime.cuda.conftest import HAS_GPU, at, check, compare, moved
from tests.runtime.test_cpu_recording import Build, cache_segment, reference

aten = torch.ops.aten
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="no CUDA GPU here: nothing can be captured")


@needs_gpu
@pytest.mark.cuda
def test_auto_never_takes_the_gpu_by_itself() -> None:
    compiled = gaudicc.compile(nn.Linear(2, 2).eval(), (torch.ones(1, 2),))
    assert "device cpu" in compiled.notes[0]
    asked = gaudicc.compile(nn.Linear(2, 2).cuda().eval(), (torch.ones(1, 2, device="cuda"),), device="cuda")
    assert torch.cuda.get_device_name() in asked.notes[0]


@needs_gpu
@pytest.mark.cuda
def test_a_compiled_model_on_the_cpu_is_refused_at_its_first_call() -> None:
    compiled = gaudicc.compile(nn.Linear(2, 2).eval(), (torch.ones(1, 2),), device="cuda")
    with pytest.raises(LoweringError, match="the model is on cpu, not on cuda"):
        compiled.warm_up()


@needs_gpu
@pytest.mark.cuda
def test_a_capture_that_fails_half_way_leaves_all_as_it_was() -> None:
    device = open_cuda()[0]
    place = device.graphs.place
    build, segment = cache_segment()
    placed = moved(segment, place)
    fine = device.record(placed)
    broken = Build()
    state = broken.place("state", torch.zeros(4), bind=True)
    mask = broken.place("mask", torch.ones(4, dtype=torch.bool), bind=False)
    x = broken.place("x", torch.randn(4), bind=False)
    doubled = broken.call(aten.mul.Tensor, x, 2)
    new = broken.call(aten.index_put.default, state, [mask], doubled)  # finds the places on the host
    bad = moved(broken.segment(new, state={"state": 0}), place)
    for _ in range(2):
        with pytest.raises(LoweringError, match="index_put"):
            device.record(bad)
        assert torch.equal(bad.bound["state"].cpu(), torch.zeros(4))
    compare(fine, placed, reference(segment, build.inputs), at(place, build.inputs))
    for _ in range(2):  # a new recording is possible, and both replay
        later, after = cache_segment()
        check(device, after, later.inputs)
        fine.replay(*at(place, build.inputs))
    torch.cuda.synchronize()
    assert torch.randn(1000, device=place).isfinite().all()


@needs_gpu
@pytest.mark.cuda
def test_recordings_share_one_pool() -> None:
    device = open_cuda()[0]

    def record(size: int) -> CudaRecording:
        build = Build()
        value = build.place("x", torch.randn(size, size), bind=False)
        for _ in range(6):
            value = build.call(aten.mm.default, value, build.call(aten.neg.default, value))
        segment = moved(build.segment(build.call(aten.sum.default, value)), device.graphs.place)
        return device.record(segment, borrow=True)

    kept = [record(1024)]
    held = device.graphs.bytes_held
    assert held > 0
    kept += [record(1024) for _ in range(3)]
    assert device.graphs.bytes_held == held
    kept += [record(size) for size in (512, 256)]
    assert device.graphs.bytes_held < 1.2 * held  # small values lie in segments of their own


@needs_gpu
@pytest.mark.cuda
def test_graphs_outlive_the_workspaces_that_torch_compile_frees() -> None:
    device = open_cuda()[0]
    build = Build()
    value = build.place("x", torch.randn(8, 4096), bind=False)
    for _ in range(2):
        w = build.place(f"w{len(build.bound)}", torch.randn(4096, 4096) / 64, bind=True)
        value = build.call(aten.mm.default, value, w)
    recording = device.record(moved(build.segment(value), device.graphs.place))
    x = build.inputs[0].to(device.graphs.place)
    before = recording.replay(x)[0]
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()  # what is unmapped now cannot be read any more
    assert torch.equal(recording.replay(x)[0], before)


@needs_gpu
@pytest.mark.cuda
def test_random_numbers_are_new_at_every_replay() -> None:
    device = open_cuda()[0]
    build = Build()
    x = build.place("x", torch.zeros(100), bind=False)
    segment = moved(build.segment(build.call(aten.rand_like.default, x)), device.graphs.place)
    recording = device.record(segment)
    first, second = (recording.replay(torch.zeros(100, device="cuda"))[0] for _ in range(2))
    assert not torch.equal(first, second)


def test_threads_get_their_own_outputs(device: CudaDevice, place: torch.device) -> None:
    build = Build()
    x = build.place("x", torch.randn(64), bind=False)
    value = x
    for _ in range(20):
        value = build.call(aten.sin.default, build.call(aten.add.Tensor, value, x))
    segment = build.segment(value)
    inputs = [torch.randn(64) for _ in range(4)]
    expected = [reference(segment, [one])[0].to(place) for one in inputs]
    recording = check(device, segment, build.inputs)
    wrong: list[int] = []

    def work(which: int) -> None:
        given_x = inputs[which].to(place)
        if place.type == "cpu":
            got = [recording.replay(given_x)[0] for _ in range(30)]
        else:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                got = [recording.replay(given_x)[0] for _ in range(30)]
            stream.synchronize()
        wrong.extend(which for one in got if not torch.allclose(one, expected[which], atol=1e-5))

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
