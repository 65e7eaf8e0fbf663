"""The Gaudi device: what both execution modes share. Read this after `device.py`, then `hpu_graph` and `hpu_compile`.

Recording, in the order of the steps: `hpu_pieces` divides a segment into calls of flat graphs, `hpu_prepare` puts the
device's kernels in and checks every rule, `hpu_state` makes state be written in place, `hpu_memory` uploads weights and
state; then the mode captures. Captured graphs live in a cache bounded by device bytes (`graph_cache`) and are captured
again, by the same recording, should they have been evicted.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

import torch

from gaudicc.errors import AutocastError, InputError, ShapeError, StateError, Where
from gaudicc.runtime.device import Device, Segment
from gaudicc.runtime.graph_cache import ExactKey, GraphCache
from gaudicc.runtime.hpu_memory import Residents, buffer_like, first_use, free_bytes, refuse_shared_state, refuse_wide
from gaudicc.runtime.hpu_pieces import DeviceProgram, Name, describe, split
from gaudicc.runtime.hpu_prepare import HPU, Preparer, refuse_host_reads
from gaudicc.runtime.hpu_software import Software, start
from gaudicc.runtime.hpu_state import write_state
from gaudicc.targets import Mode, load_target


class Captured(Protocol):
    """A program that is ready to run on memory of its own.

    Attributes:
        bytes_held: bytes of device memory, weights and state apart.
        inputs: the buffers that a launch reads.

    Args:
        program: what is run.
        bound: weights, state and constants on the device.
        inputs: the buffers that a launch reads.
    """

    bytes_held: int
    inputs: tuple[torch.Tensor, ...]

    def __init__(
        self, program: DeviceProgram, bound: Mapping[Name, torch.Tensor], inputs: tuple[torch.Tensor, ...]
    ) -> None: ...

    @staticmethod
    def expected_bytes(program: DeviceProgram) -> int:
        """What `bytes_held` will be, from sizes alone."""
        ...

    def launch(self) -> Mapping[Name, Any]:
        """Runs it, and gives every value by name; they are valid until the next launch."""
        ...

    def release(self) -> None:
        """Gives its memory back."""
        ...


class HpuDevice:
    """Records segments on a Gaudi, in the mode that its software runs.

    Attributes:
        name: `hpu`.
        software: what answered.
        cache: the captured graphs.
        residents: weights and state on the device.
        lock: held while the device is driven.

    Args:
        software: what answered.
        captured: how this mode captures.
        budget: most bytes that captured graphs may hold together; by default a share of what is free now.
    """

    name = "hpu"

    def __init__(self, software: Software, captured: type[Captured], budget: int | None = None) -> None:
        self.software, self.captured = software, captured
        self.cache: GraphCache[Captured] = GraphCache(free_bytes() if budget is None else budget)
        self.residents = Residents(narrow=not software.int64)
        self.preparer = Preparer(load_target(software.chip), software.mode)
        self.lock = threading.RLock()
        self._driven = False
        self._users: Counter[ExactKey] = Counter()
        self._unused: list[ExactKey] = []

    def record(self, segment: Segment, *, borrow: bool = False) -> HpuRecording:
        """Records one segment; see `Device.record`.

        Inputs are given where the segment has them, on the host or the device; outputs come back there. With `borrow`
        they stay on the device, in the recording's own memory.

        Raises:
            LoweringError: a rule of the device is broken: the node and the user's line are named.
            OutOfDeviceMemoryError: the device or the budget has no room.
        """
        with self.driving():
            return HpuRecording(self, segment, borrow=borrow)

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """Brings a host tensor that the device holds as state up to date, and gives it back."""
        with self.driving():
            return self.residents.fetch(tensor)

    @contextmanager
    def driving(self) -> Iterator[None]:
        """A block in which one thread has the device; graphs that nobody can replay any more are released before it."""
        with self.lock, torch.no_grad():
            self._release_unused()
            self._driven = True
            try:
                yield
            finally:
                self._driven = False

    def keep(self, recording: HpuRecording) -> None:
        """Keeps a recording's graph in the cache for as long as a recording of that key lives."""
        self._users[recording.key] += 1
        weakref.finalize(recording, self._let_go, recording.key).atexit = False

    def _let_go(self, key: ExactKey) -> None:
        """Runs wherever Python collects a recording, so also inside a capture: then the release waits for the next block."""
        self._unused.append(key)
        if self.lock.acquire(blocking=False):
            try:
                if not self._driven:
                    self._release_unused()
            finally:
                self.lock.release()

    def _release_unused(self) -> None:
        while self._unused:
            key = self._unused.pop()
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
                self.cache.release(key)


class HpuRecording:
    """One recorded segment.

    Attributes:
        bytes_held: bytes of device memory that the captured graph held when it was captured.
        key: of the captured graph in the device's cache.
        expected_bytes: what was planned for it before the capture, from sizes alone.
    """

    def __init__(self, device: HpuDevice, segment: Segment, *, borrow: bool) -> None:
        refuse_shared_state(segment.bound, segment.state)
        refuse_host_reads(segment.graph)
        program = split(segment, device.preparer.prepare)
        write_state(program, segment.state)
        for piece in program.pieces:
            device.preparer.check(piece.graph)
        if device.residents.narrow:
            for tensor in program.constants.values():
                refuse_wide("a constant that the model computes", tensor, Where(stage="record"))
        self._device, self._program, self._borrow, self._stays = device, program, borrow, segment.stays
        self._residents = {
            Name(name): device.residents.place(name, bound, first_use(segment.graph, name))
            for name, bound in segment.bound.items()
        }
        self._state = [self._residents[Name(name)] for name in segment.state]
        self._places = {resident.host.untyped_storage().data_ptr() for resident in self._state}
        values = [segment.graph.graph.find_nodes(op="placeholder")]
        self._given = [node.meta["val"] for node in values[0] if node.name not in segment.bound]
        self._kept = [i for i in range(len(program.outputs)) if i not in segment.state.values()]
        outputs = segment.graph.graph.output_node().args[0]
        self._homes = [_home(outputs[i]) for i in self._kept]  # type: ignore[index]
        self.expected_bytes = device.captured.expected_bytes(program)
        self.key = self._key()
        self.bytes_held = self._captured().bytes_held
        device.keep(self)

    def replay(self, *inputs: torch.Tensor) -> tuple[Any, ...]:
        """Runs the segment once; see `Recording.replay`.

        Raises:
            ShapeError: an input is not of the recorded shape, dtype or device.
            StateError: an input overlaps state, or the host wrote state that the device has newer values of.
            LoweringError: an int64 input does not fit the device's 32 bits.
            AutocastError: autocast is active.
            InputError: the number of inputs is another one.
        """
        self._check(inputs)
        with self._device.driving():
            for resident in self._residents.values():
                resident.refresh()
            captured = self._captured()
            for buffer, given in zip(captured.inputs, inputs, strict=True):
                buffer.copy_(given)
            values = captured.launch()
            for resident in self._state:
                resident.newer = True
            outputs = [self._program.outputs[i] for i in self._kept]
            found = [values[each] if isinstance(each, Name) else each for each in outputs]
            return tuple(self._give(value, home) for value, home in zip(found, self._homes, strict=True))

    def _captured(self) -> Captured:
        return self._device.cache.get(self.key, self._capture, self.expected_bytes)

    def _capture(self) -> Captured:
        program = self._program
        bound = {name: resident.here for name, resident in self._residents.items()}
        bound |= {name: tensor.to(HPU) for name, tensor in program.constants.items()}
        return self._device.captured(program, bound, tuple(map(buffer_like, self._given)))

    def _key(self) -> ExactKey:
        """What a captured graph depends on: the program, the layouts of its inputs, and what is bound where."""
        program = self._program
        calls = tuple((call.piece.structure, call.operands, call.results) for call in program.calls)
        bound = tuple((name, id(resident)) for name, resident in self._residents.items())
        constants = tuple((name, describe(tensor), _bytes(tensor)) for name, tensor in program.constants.items())
        shapes = ", ".join(f"{tuple(value.shape)}" for value in self._given)
        inputs = tuple((name, describe(value)) for name, value in zip(program.inputs, self._given, strict=True))
        return ExactKey(f"the graph of inputs {shapes}", calls, program.outputs, inputs, bound, constants)

    def _check(self, inputs: tuple[torch.Tensor, ...]) -> None:
        place = Where(stage="replay")
        if len(inputs) != len(self._given):
            raise InputError(f"{len(inputs)} inputs given, the recording takes {len(self._given)}", where=place)
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("hpu"):
            raise AutocastError("autocast is active around a replay", where=place)
        for name, given, wanted in zip(self._program.inputs, inputs, self._given, strict=True):
            if not isinstance(given, torch.Tensor) or given.shape != wanted.shape or given.dtype is not wanted.dtype:
                raise ShapeError(
                    f"input {name.text} is {_shown(given)}, the recording takes {_shown(wanted)}",
                    where=place,
                    hint="record the segment for this shape, or pad the input to the recorded one",
                )
            if given.device.type not in ("cpu", "hpu"):
                raise ShapeError(f"input {name.text} is on {given.device}, not on the host or the Gaudi", where=place)
            if given.untyped_storage().data_ptr() in self._places and given.numel():
                raise StateError(
                    "an input shares memory with a state buffer", where=place, hint="pass a copy of it: input.clone()"
                )
            if self._device.residents.narrow:
                refuse_wide(f"input {name.text}", given, Where(stage="replay"))

    def _give(self, value: Any, home: str) -> Any:
        """An output for the caller: on the host where the model has it there, unless it stays, else in memory of its own."""
        if not isinstance(value, torch.Tensor) or self._borrow:
            return value
        return value.cpu() if home == "cpu" and not self._stays else value.clone()


def _home(output: Any) -> str:
    value = output.meta["val"] if isinstance(output, torch.fx.Node) else output
    return str(value.device.type) if isinstance(value, torch.Tensor) else ""


def _shown(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return f"of type {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def open_hpu() -> tuple[Device, str]:
    """Opens the Gaudi of this process.

    Returns:
        The device, always the same one, and a sentence that says which mode it runs and why.

    Raises:
        DeviceError: no Gaudi software is here, or no card answers.
    """
    return _open()


@cache
def _open() -> tuple[Device, str]:
    """One device for all compiled models: they share its memory, and the state of a model that several were compiled from."""
    software = start()
    captured: type[Captured]
    if software.mode is Mode.LAZY:
        from gaudicc.runtime.hpu_graph import CapturedGraph as captured
    else:
        from gaudicc.runtime.hpu_compile import CompiledProgram as captured
    kind = "emulated " if software.emulated else ""
    sentence = f"device hpu: {kind}{software.chip}, Gaudi software {software.release}, {software.why}"
    return HpuDevice(software, captured), sentence
