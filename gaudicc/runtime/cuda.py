"""The CUDA device: a static segment becomes one CUDA graph, which is replayed for every call.

Recording, in the order of the steps: `cpu_flatten` inlines regions into one graph and `cpu_plan` finds the writes of
state that may happen in place, as on the CPU; `cuda_buffers` gives every value that outlives a replay its memory;
`cuda_calls` makes the calls ready, runs each once and launches them; `cuda_capture` records what they launch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from gaudicc.errors import AutocastError, DeviceError, InputError, StateError, Where
from gaudicc.nodes import outputs_of
from gaudicc.runtime.cpu_calls import below_autograd
from gaudicc.runtime.cpu_flatten import Flat, byte_extent, flatten
from gaudicc.runtime.cpu_plan import Plan, plan
from gaudicc.runtime.cuda_buffers import Bound, InputBuffer, Output, refuse_elsewhere, refuse_shared_state
from gaudicc.runtime.cuda_calls import Launcher, make_ready, refuse_host_reads, warm_up
from gaudicc.runtime.cuda_capture import GraphPool
from gaudicc.runtime.device import Segment


def open_cuda() -> tuple[CudaDevice, str]:
    """Opens the current GPU.

    Returns:
        The device, and its name with CUDA's version.

    Raises:
        DeviceError: no GPU answers.
    """
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        raise DeviceError(
            "no CUDA GPU answers" if built else f"no CUDA GPU: torch {torch.__version__} was built without CUDA",
            where=Where(stage="opening device cuda"),
            hint="use device='cpu'" if built else "install a torch with CUDA, or use device='cpu'",
        )
    place = torch.device("cuda", torch.cuda.current_device())
    return CudaDevice(GraphPool(place)), f"{torch.cuda.get_device_name(place)}, CUDA {torch.version.cuda}"


class CudaDevice:
    """Records segments as CUDA graphs on one GPU.

    Attributes:
        name: `cuda`.
        graphs: what the recordings share; `graphs.bytes_held` says what it costs.

    Args:
        graphs: captures on the GPU.
    """

    name = "cuda"

    def __init__(self, graphs: GraphPool) -> None:
        self.graphs = graphs

    def record(self, segment: Segment, *, borrow: bool = False) -> CudaRecording:
        """Records one segment; see `Device.record`.

        An index that is out of range on a replay ends the process's use of the GPU, as it does in eager PyTorch.

        Raises:
            LoweringError: weights or state lie elsewhere, an op makes the host wait, or a call cannot be captured.
        """
        return CudaRecording(segment, self.graphs, borrow=borrow)

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself; see `Device.fetch`."""
        return tensor


class CudaRecording:
    """One CUDA graph.

    Outputs are fresh, so what one call got is never touched by another's replay, unless recorded with `borrow`: then
    they are buffers of this recording alone, which no other recording writes.

    Attributes:
        bytes_held: bytes of static inputs, outputs and constants; the pool is counted by the device.
    """

    def __init__(self, segment: Segment, graphs: GraphPool, *, borrow: bool) -> None:
        place = graphs.place
        refuse_elsewhere(segment, place)
        refuse_shared_state(segment)
        self._graphs = graphs
        with torch.inference_mode(mode=False), below_autograd():
            flat = flatten(segment)
            planned = plan(flat, borrow=True)
            refuse_host_reads(flat)
            self._bound = Bound(flat.bound, segment.state, place)
            self._inputs = [InputBuffer(value, place) for value in _inputs_of(segment)]
            make_ready(flat, planned, place)
            graphs.warm(lambda: warm_up(flat, self._bound.tensors, place))
            self._outputs = _outputs_of(segment, flat, place, borrow=borrow)
            values = {**self._bound.tensors, **dict(zip(flat.inputs, self._buffers(), strict=True))}
            self._replay = graphs.capture(lambda: self._launch(Launcher(flat, values), flat, planned))
        self._state = {self._bound.tensors[node].untyped_storage().data_ptr() for node in flat.state}
        self.bytes_held = self._bound.bytes_held + sum(map(byte_extent, self._buffers()))
        self.bytes_held += sum(output.bytes_held for output in self._outputs if isinstance(output, Output))

    def _buffers(self) -> list[torch.Tensor]:
        return [slot.buffer for slot in self._inputs]

    def _launch(self, launcher: Launcher, flat: Flat, planned: Plan) -> None:
        """Everything that a replay does on the GPU: the calls, what outputs need of it, and the new state."""
        values = launcher.launch()
        given = [index for index in range(len(values)) if index not in flat.state.values()]
        for index, output in zip(given, self._outputs, strict=True):
            if isinstance(output, Output):
                changes = planned.root[flat.outputs[index]] in planned.copies
                output.keep(values[index], changes=changes)
        moves = []
        for buffer, new in planned.copies.items():
            value = values[flat.state[buffer]]
            read_later = isinstance(new, fx.Node) and planned.root[new] in flat.state
            moves.append((self._bound.tensors[buffer], value.clone() if read_later else value))
        for target, value in moves:
            target.copy_(value)

    def replay(self, *inputs: torch.Tensor) -> tuple[Any, ...]:
        """Runs the segment once; see `Recording.replay`. Returns before the GPU is done, as eager PyTorch does.

        Raises:
            ShapeError: an input is not of the recorded shape, dtype or device.
            StateError: an input overlaps state.
            AutocastError: autocast is active.
            InputError: the number of inputs is another one.
        """
        if len(inputs) != len(self._inputs):
            raise InputError(
                f"{len(inputs)} inputs given, the recording takes {len(self._inputs)}", where=Where(stage="replay")
            )
        if torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu"):
            raise AutocastError("autocast is active around a replay", where=Where(stage="replay"))
        for slot, given in zip(self._inputs, inputs, strict=True):
            slot.check(given)
        if self._state:
            self._refuse_overlap(inputs)
        with self._graphs.lock, below_autograd():
            self._graphs.take_turn()
            self._bound.refresh()
            for slot, given in zip(self._inputs, inputs, strict=True):
                slot.fill(given)
            self._replay()
            return tuple(output.give() if isinstance(output, Output) else output for output in self._outputs)

    def _refuse_overlap(self, inputs: tuple[torch.Tensor, ...]) -> None:
        for given in inputs:
            if given.untyped_storage().data_ptr() in self._state:
                raise StateError(
                    "an input shares memory with a state buffer",
                    where=Where(stage="replay"),
                    hint="pass a copy of it: input.clone()",
                )


def _inputs_of(segment: Segment) -> list[torch.Tensor]:
    """What each call must give, in order."""
    placeholders = segment.graph.graph.find_nodes(op="placeholder")
    return [node.meta["val"] for node in placeholders if node.name not in segment.bound]


def _outputs_of(segment: Segment, flat: Flat, place: torch.device, *, borrow: bool) -> list[Any]:
    """An `Output`, or the number that it is, for each output that is no new value of state."""
    made: list[Any] = []
    for index, out in enumerate(outputs_of(segment.graph.graph)):
        if index in flat.state.values():
            continue
        value = out.meta["val"] if isinstance(out, fx.Node) else out
        if isinstance(value, torch.Tensor):
            device = place if value.device.type == place.type else value.device
            made.append(Output(flat.expected[index], device, place, borrow=borrow))
        else:
            made.append(value)
    return made
