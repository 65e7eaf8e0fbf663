"""What the tests of the CUDA device share. Without a GPU a stand-in launches all calls again instead of replaying a graph."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gaudicc.runtime import cuda
from gaudicc.runtime.cuda import CudaDevice, CudaRecording, open_cuda
from gaudicc.runtime.cuda_capture import GraphPool
from gaudicc.runtime.device import Segment
from tests.runtime.test_cpu_recording import reference

HAS_GPU = torch.cuda.is_available()
ON_GPU = pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not HAS_GPU, reason="no CUDA GPU here")])


class Again(GraphPool):
    """Stands in for CUDA graphs: a replay launches everything again, on the CPU."""

    def __init__(self) -> None:
        self.place = torch.device("cpu")
        self.lock = threading.RLock()

    def warm(self, work: Callable[[], object]) -> None:
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return work

    def take_turn(self) -> None:
        """There are no streams."""


@pytest.fixture(params=["stand-in", ON_GPU])
def device(request: pytest.FixtureRequest) -> CudaDevice:
    return open_cuda()[0] if request.param == "cuda" else CudaDevice(Again())


@pytest.fixture
def place(device: CudaDevice) -> torch.device:
    return device.graphs.place


@pytest.fixture
def opened(device: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    """What `device="cuda"` opens."""
    monkeypatch.setattr(cuda, "open_cuda", lambda: (device, "for tests"))
    return device


def moved(segment: Segment, place: torch.device) -> Segment:
    """The same segment of a model on `place`."""
    for node in segment.graph.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            node.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=place)
    return Segment(segment.graph, {name: tensor.to(place) for name, tensor in segment.bound.items()}, segment.state)


def at(place: torch.device, inputs: list[Tensor]) -> list[Tensor]:
    return [tensor.to(place) for tensor in inputs]


def check(device: CudaDevice, segment: Segment, inputs: list[Tensor], *, borrow: bool = False) -> CudaRecording:
    """Records, replays, and compares with the graph run on the CPU; state too."""
    place = device.graphs.place
    expected = reference(segment, inputs)
    placed = moved(segment, place)
    recording = device.record(placed, borrow=borrow)
    compare(recording, placed, expected, at(place, inputs))
    return recording


def compare(recording: CudaRecording, segment: Segment, expected: tuple[Any, ...], inputs: list[Tensor]) -> None:
    held = [tensor.clone() for tensor in inputs]
    got = recording.replay(*inputs)
    plain = [value for index, value in enumerate(expected) if index not in segment.state.values()]
    for mine, theirs in zip(got, plain, strict=True):
        if not isinstance(theirs, Tensor):
            assert mine == theirs
            continue
        assert mine.stride() == theirs.stride()
        torch.testing.assert_close(mine.cpu(), theirs, atol=1e-4, rtol=1e-5, equal_nan=True)
    for name, index in segment.state.items():
        torch.testing.assert_close(segment.bound[name].cpu(), expected[index], atol=1e-4, rtol=1e-5)
    assert all(torch.equal(now, before) for now, before in zip(inputs, held, strict=True))


class Names(TorchDispatchMode):
    """Notes the names of the ops that run inside.

    Attributes:
        seen: in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))
