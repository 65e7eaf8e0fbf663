"""Between plan and hardware: what a device is asked for, and what it gives back.

A plan's Record step hands a device one static `Segment`. The device records it once, with weights and state bound
by address, and gives a `Recording` that is replayed for every call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.fx import GraphModule


@dataclass(frozen=True, slots=True)
class Segment:
    """One static piece of a program, ready to be recorded.

    Placeholders that are not in `bound` are the inputs of each call, in graph order.

    Attributes:
        graph: functional ATen with static shapes; every node has `meta["val"]` (a FakeTensor, an int, or a tuple of
            them). It may call shared region bodies with `gaudicc.nodes.call_region(body, *operands)`, whose tuple
            is read by `operator.getitem`.
        bound: placeholder name -> weight, constant or state tensor, bound once by address.
        state: placeholder name of a state buffer -> index of the output that is its new value.
        constants: names in `bound` of tensors that never change, so that what follows from them can be computed once.
        stays: its outputs go to other segments first, and may stay on the device, in memory of their own.
    """

    graph: GraphModule
    bound: Mapping[str, torch.Tensor]
    state: Mapping[str, int]
    constants: frozenset[str] = frozenset()
    stays: bool = False


class Recording(Protocol):
    """A recorded segment.

    Attributes:
        bytes_held: bytes this recording holds besides the bound tensors and what it shares with other recordings.
    """

    bytes_held: int

    def replay(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs the segment once.

        Args:
            *inputs: the placeholders that are not bound, in graph order, of the recorded shapes, dtypes and strides.

        Returns:
            The outputs that are not new values of state, in graph order.

        Raises:
            ShapeError: an input is not of the recorded shape, dtype or device.
        """
        ...


class Device(Protocol):
    """Something that segments can be recorded on.

    Attributes:
        name: what the user calls it, e.g. `cpu`.
    """

    name: str

    def record(self, segment: Segment, *, borrow: bool = False) -> Recording:
        """Records one segment.

        Args:
            segment: what to record.
            borrow: outputs may be buffers of the recording, valid until its next replay, instead of fresh storage.

        Returns:
            The recording.

        Raises:
            LoweringError: the segment holds something that this device cannot record.
        """
        ...

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """A bound tensor whose values the host wants to read or write now.

        Args:
            tensor: what was bound. A device that keeps a copy of its own brings this one up to date first.

        Returns:
            The tensor itself.
        """
        ...


def records_loops(device: Device) -> bool:
    """Whether a recording of the device may hold loops; elsewhere the host replays one recorded trip after the other."""
    return device.name == "cpu"
