"""Recording and replaying on the CUDA device equals running the graph; what cannot be recorded is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gaudicc
from gaudicc.errors import AutocastError, DeviceError, InputError, LoweringError, ShapeError, StateError
from gaudicc.runtime.cuda import CudaDevice, open_cuda
from gaudicc.runtime.cuda_buffers import refuse_elsewhere
from gaudicc.runtime.device import Segment
from tests.runtime.cuda.conftest import HAS_GPU, Again, Names, at, check, compare, moved
from tests.runtime.test_cpu_recording import Build, cache_segment, random_segments, reference

aten = torch.ops.aten


@pytest.mark.skipif(HAS_GPU, reason="a GPU answers here")
def test_without_a_gpu_opening_says_so() -> None:
    with pytest.raises(DeviceError, match="no CUDA GPU") as caught:
        gaudicc.compile(nn.Linear(2, 2).eval(), (torch.ones(1, 2),), device="cuda")
    assert "device='cpu'" in str(caught.value)


def test_a_model_that_is_not_on_the_gpu_is_refused() -> None:
    build = Build()
    x = build.place("x", torch.randn(2), bind=False)
    segment = build.segment(build.call(aten.neg.default, x))
    with pytest.raises(LoweringError, match=r"the model is on cpu, not on cuda:0(.|\n)*model\.to\('cuda'\)"):
        refuse_elsewhere(segment, torch.device("cuda", 0))
    refuse_elsewhere(segment, torch.device("cpu"))


@settings(max_examples=25)
@given(
    segment=random_segments(),
    borrow=st.booleans(),
    where=st.sampled_from(["stand-in", "cuda"] if HAS_GPU else ["stand-in"]),
)
def test_replay_equals_the_graph(segment: Segment, borrow: bool, where: str) -> None:
    device = open_cuda()[0] if where == "cuda" else CudaDevice(Again())
    torch.manual_seed(5)
    x = torch.randn(4, 6)
    expected = reference(segment, [x])
    placed = moved(segment, device.graphs.place)
    recording = device.record(placed, borrow=borrow)
    compare(recording, placed, expected, at(device.graphs.place, [x]))
    here = Segment(segment.graph, {name: tensor.cpu() for name, tensor in placed.bound.items()}, segment.state)
    again = reference(here, [x + 1])  # a second replay starts from the state that the first one left
    compare(recording, placed, again, at(device.graphs.place, [x + 1]))


def test_outputs_are_fresh_and_alias_nothing(device: CudaDevice, place: torch.device) -> None:
    build = Build()
    x = build.place("x", torch.randn(3, 4), bind=False)
    w = build.place("w", torch.randn(3, 4), bind=True)
    total = build.call(aten.add.Tensor, x, w)
    turned, wide = build.call(aten.t.default, total), build.call(aten.expand.default, total, [2, 3, 4])
    recording = check(device, build.segment(x, w, total, turned, wide, 7), build.inputs)
    given_x = torch.randn(3, 4, device=place)
    *first, number = recording.replay(given_x)
    again = [value.clone() for value in first]
    recording.replay(torch.randn(3, 4, device=place))
    storages = [value.untyped_storage().data_ptr() for value in first]
    assert number == 7
    assert len({given_x.untyped_storage().data_ptr(), *storages}) == len(storages) + 1
    assert all(torch.equal(value, kept) for value, kept in zip(first, again, strict=True))


def test_borrowed_outputs_last_through_replays_of_others(device: CudaDevice, place: torch.device) -> None:
    recordings = []
    for size in (64, 32, 64):
        build = Build()
        value = build.place("x", torch.randn(size, size), bind=False)
        for _ in range(3):
            value = build.call(aten.sin.default, build.call(aten.mm.default, value, value))
        recordings.append((check(device, build.segment(value), build.inputs, borrow=True), size))
    given_x = [torch.randn(size, size, device=place) for _, size in recordings]
    borrowed = [recording.replay(x)[0] for (recording, _), x in zip(recordings, given_x, strict=True)]
    kept = [value.clone() for value in borrowed]
    for (recording, _), x, value in zip(recordings, given_x, borrowed, strict=True):
        assert all(torch.equal(now, before) for now, before in zip(borrowed, kept, strict=True))
        assert recording.replay(x)[0].data_ptr() == value.data_ptr()
    assert recordings[1][0].bytes_held == 2 * 32 * 32 * 4  # its input and its output


def test_state_is_written_in_place_and_read_back(device: CudaDevice, place: torch.device) -> None:
    build, segment = cache_segment()
    expected = reference(segment, build.inputs)
    placed = moved(segment, place)
    recording = device.record(placed)
    assert int(placed.bound["count"]) == 0  # recording ran nothing on it
    compare(recording, placed, expected, at(place, build.inputs))
    recording.replay(torch.ones(1, 4, device=place), torch.tensor([5], device=place))
    assert int(placed.bound["count"]) == 2
    assert torch.equal(placed.bound["cache"][5].cpu(), torch.ones(4))


def test_a_cache_is_never_copied(device: CudaDevice, place: torch.device) -> None:
    """A copy of the whole buffer would show in the graph's launches as a clone, or an op that is not in place."""
    build, segment = cache_segment()
    recording = device.record(moved(segment, place))
    if place.type == "cpu":  # where launching again is what a replay does
        with Names() as names:
            recording.replay(*build.inputs)
        assert "aten::index_copy_" in names.seen
        assert not {"aten::index_copy", "aten::clone"} & set(names.seen)


def test_two_buffers_may_change_places(device: CudaDevice) -> None:
    build = Build()
    a = build.place("a", torch.randn(3), bind=True)
    b = build.place("b", torch.randn(3), bind=True)
    check(device, build.segment(b, a, a, state={"a": 0, "b": 1}), [])


def test_old_value_read_after_the_write_is_the_old_value(device: CudaDevice) -> None:
    build = Build()
    state = build.place("state", torch.randn(4, 4), bind=True)
    x = build.place("x", torch.randn(1, 4), bind=False)
    new = build.call(aten.slice_scatter.default, state, x, 0, 1, 2)
    other = build.call(aten.select_scatter.default, new, build.call(aten.sum.dim_IntList, x, [0]), 0, 3)
    check(device, build.segment(other, build.call(aten.add.Tensor, state, new), state={"state": 0}), build.inputs)


@pytest.mark.parametrize("accumulate", [False, True])
def test_index_put_into_state(device: CudaDevice, accumulate: bool) -> None:
    build = Build()
    state = build.place("state", torch.randn(2, 5, 3), bind=True)
    where = build.place("where", torch.tensor([1, -1]), bind=False)
    x = build.place("x", torch.randn(2, 2, 3), bind=False)
    new = build.call(aten.index_put.default, state, [None, where], x, accumulate)
    check(device, build.segment(new, state={"state": 0}), build.inputs)


@pytest.mark.parametrize("bad", [torch.randn(3, 5), torch.randn(3, 4, dtype=torch.float64), torch.zeros(3, 4), "text"])
def test_another_input_than_recorded_is_refused(device: CudaDevice, place: torch.device, bad: Any) -> None:
    build = Build()
    x = build.place("x", torch.randn(3, 4), bind=False)
    state = build.place("state", torch.zeros(3, 4), bind=True)
    segment = build.segment(build.call(aten.add.Tensor, state, x), state={"state": 0})
    recording = check(device, segment, build.inputs)
    before = recording._bound.tensors[next(iter(recording._bound.tensors))].clone()
    elsewhere = torch.device("meta") if place.type == "cpu" else torch.device("cpu")
    wrong = bad.to(elsewhere if bad.shape == (3, 4) and bad.dtype == torch.float32 else place) if bad != "text" else bad
    with pytest.raises(ShapeError, match=rf"the recording takes float32\[3, 4\] on {place}"):
        recording.replay(wrong)
    fine = torch.randn(3, 4, device=place)
    with pytest.raises(InputError, match="2 inputs"):
        recording.replay(fine, fine)
    with torch.autocast(place.type, dtype=torch.bfloat16), pytest.raises(AutocastError):
        recording.replay(fine)
    with pytest.raises(StateError, match="shares memory"):
        recording.replay(next(iter(recording._bound.tensors.values()))[:3])
    assert torch.equal(before, next(iter(recording._bound.tensors.values())))


def test_inputs_with_other_strides_are_brought_to_the_recorded_ones(device: CudaDevice, place: torch.device) -> None:
    build = Build()
    x = build.place("x", torch.randn(3, 4), bind=False)
    wide = build.place("wide", torch.randn(1, 4).expand(3, 4), bind=False)
    recording = check(device, build.segment(build.call(aten.add.Tensor, x, wide)), build.inputs)
    given_x, repeated = torch.randn(4, 3, device=place).t(), torch.randn(4, device=place).expand(3, 4)
    torch.testing.assert_close(recording.replay(given_x, repeated.contiguous())[0], given_x + repeated)


def test_values_of_the_host_are_not_frozen(device: CudaDevice, place: torch.device) -> None:
    """A length comes as a number on the host, and is computed with there; a constant may lie there."""
    build = Build()
    x = build.place("x", torch.randn(6), bind=False)
    length = build.place("length", torch.tensor(4), bind=False)
    table = build.place("table", torch.randn(6), bind=True)
    more = build.call(aten.add.Tensor, length, 1)
    mask = build.call(aten.lt.Tensor, build.call(aten.arange.default, 6, device=torch.device("cpu")), more)
    kept = build.call(aten.mul.Tensor, x, mask)
    total = build.call(aten.add.Tensor, kept, table)
    segment = build.segment(total, more)
    for node in (x, kept, total):
        node.meta["val"] = node.meta["val"].to(place)
    recording = device.record(segment)
    given_x = torch.randn(6, device=place)
    for count in (4, 2, 0):
        got, host = recording.replay(given_x, torch.tensor(count))
        assert (host.device.type, int(host)) == ("cpu", count + 1)
        expected = torch.where(torch.arange(6) < count + 1, given_x.cpu(), 0.0) + segment.bound["table"]
        torch.testing.assert_close(got.cpu(), expected)
        segment.bound["table"].add_(1)


def test_an_op_that_makes_the_host_wait_is_refused_before_anything_runs(
    device: CudaDevice, place: torch.device
) -> None:
    build = Build()
    x = build.place("x", torch.randn(3), bind=False)
    node = build.call(aten.nonzero.default, x)
    node.meta["stack_trace"] = '  File "/home/user/model.py", line 12, in forward\n    return x.nonzero()'
    with pytest.raises(LoweringError, match=r"aten\.nonzero makes the host wait") as caught:
        device.record(moved(build.segment(node), place))
    assert "user/model.py:12" in str(caught.value)


def test_a_call_that_fails_is_named(device: CudaDevice, place: torch.device) -> None:
    build = Build()
    x = build.place("x", torch.randn(3), bind=False)
    y = build.call(aten.neg.default, x)
    y.meta["val"] = torch.randn(2, 5)
    node = build.graph.call_function(aten.mm.default, (y, y))  # which nobody could run
    node.meta = {"val": torch.randn(2, 2), "stack_trace": '  File "/home/user/model.py", line 7, in forward'}
    with pytest.raises(LoweringError, match=r"aten\.mm cannot be recorded: (.|\n)*user/model\.py:7"):
        device.record(moved(build.segment(node), place))


def test_state_must_be_its_own_memory(device: CudaDevice, place: torch.device) -> None:
    build = Build()
    build.place("a", torch.randn(3), bind=True)
    b = build.place("b", torch.randn(3), bind=True)
    segment = moved(build.segment(b, state={"b": 0}), place)
    whole = torch.randn(4, device=place)
    with pytest.raises(LoweringError, match="shares memory"):
        device.record(Segment(segment.graph, {"a": whole[:3], "b": whole[1:]}, segment.state))
    device.record(Segment(segment.graph, {"a": whole[:3], "b": whole[1:].clone()}, segment.state))
    with pytest.raises(LoweringError, match="not bound"):
        device.record(Segment(segment.graph, {}, {"b": 0}))
