"""Models with time-step loops, compiled: right for every length, of one size, recorded, planned, saved and loaded."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.export import Dim
from torch.utils import _pytree as pytree

import gaudicc
from gaudicc.compiled import CompiledModel
from gaudicc.errors import ModelRaisedError
from gaudicc.lower import lower
from gaudicc.plan import HostTrips, Record
from gaudicc.runtime.cpu import CpuDevice
from gaudicc.runtime.cuda import CudaDevice
from gaudicc.runtime.device import Device
from gaudicc.runtime.runner import Counters, Runner
from tests.capture.looped import Looped
from tests.capture.looped_steps import CASES
from tests.runtime.cuda.conftest import Again

NAMES = ("recurrent_cell", "counts_down", "loop_in_a_loop", "writes_into_the_input", "state_in_a_buffer")
LENGTHS = ((2, 5), (1, 1), (3, 9), (4, 64))


def compiled(name: str, most: int = 64) -> CompiledModel:
    shapes = ({0: Dim("batch", min=1, max=4), 1: Dim("steps", min=1, max=most)},)
    buckets = [{"batch": 4, "steps": most}]
    return gaudicc.compile(Looped(CASES[name]), (torch.randn(2, 5, 4),), dynamic_shapes=shapes, buckets=buckets)


def same(given: object, wanted: object) -> None:
    for a, b in zip(pytree.tree_leaves(given), pytree.tree_leaves(wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_one_recording_serves_every_length(name: str) -> None:
    model, eager = compiled(name), copy.deepcopy(Looped(CASES[name]))
    model.warm_up()
    records = model.stats.records
    for batch, steps in LENGTHS:
        x = torch.randn(batch, steps, 4)
        mine, theirs = x.clone(), x.clone()
        same(model(mine), eager(theirs))
        same(mine, theirs)
    assert model.stats.records == records


def test_the_size_of_the_program_does_not_depend_on_the_longest_sequence() -> None:
    def sizes(most: int) -> tuple[int, int]:
        model = compiled("recurrent_cell", most)
        (bucket,) = model.buckets
        static = model.graph(bucket)
        assert isinstance(static, torch.fx.GraphModule)
        count = sum(len(graph.graph.nodes) for _, graph in model.program.graphs())
        return count, sum(len(part.graph.nodes) for part in static.modules() if isinstance(part, torch.fx.GraphModule))

    assert sizes(64) == sizes(512)


@pytest.mark.parametrize("device", [CpuDevice(), CudaDevice(Again())], ids=["cpu", "cuda's stand-in"])
def test_a_device_without_loops_replays_one_trip(device: Device) -> None:
    model, eager = compiled("recurrent_cell", 16), Looped(CASES["recurrent_cell"])
    (bucket,) = model.buckets
    static = model.static_program(bucket)
    plan = lower(static, bucket, loops=False)
    assert [type(step) for step in plan.steps] == [Record, HostTrips, Record]
    assert sum(isinstance(step, Record) for step in plan.all_steps()) == 3
    assert "after length_steps trips" in str(plan)
    runner = Runner(plan, static.bound(), device, Counters())
    for length in (16, 3, 0):
        x = torch.zeros(4, 16, 4)
        x[:, :length] = torch.randn(4, length, 4)
        given = dict(zip(runner.inputs, (x, torch.tensor(4), torch.tensor(length)), strict=True))
        stacked, last = runner.run([given[name] for name in runner.inputs])
        if length:
            same((stacked[:, :length], last), eager(x[:, :length]))
        else:
            assert last.eq(0).all()


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, eager = compiled("counts_down", 16), Looped(CASES["counts_down"])
    model.save(tmp_path / "bundle")
    again = gaudicc.load(tmp_path / "bundle")
    x = torch.randn(3, 7, 4)
    same(again(x), eager(x))


def test_stacking_no_trip_raises_as_in_eager() -> None:
    shapes = ({1: Dim("steps", min=0, max=8)},)
    eager, inputs = Looped(CASES["recurrent_cell"]), (torch.randn(2, 5, 4),)
    model = gaudicc.compile(Looped(CASES["recurrent_cell"]), inputs, dynamic_shapes=shapes, buckets=[{"steps": 8}])
    same(model(*inputs), eager(*inputs))
    for run, raised in ((eager, RuntimeError), (model, ModelRaisedError)):
        with pytest.raises(raised, match="non-empty TensorList"):
            run(torch.randn(2, 0, 4))


def test_no_trip() -> None:
    shapes = ({1: Dim("steps", min=0, max=8)},)
    model = gaudicc.compile(
        Looped(CASES["counts_down"]), (torch.randn(2, 5, 4),), dynamic_shapes=shapes, buckets=[{"steps": 8}]
    )
    assert model(torch.randn(2, 0, 4)).shape == (2, 0, 4)
