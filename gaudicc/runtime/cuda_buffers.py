"""What a CUDA recording reads and writes: static inputs, bound tensors, outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from gaudicc.errors import LoweringError, ShapeError, Where
from gaudicc.runtime.cpu_flatten import byte_extent
from gaudicc.runtime.device import Segment


def copy_into(target: torch.Tensor, source: torch.Tensor, *, non_blocking: bool = False) -> None:
    """Writes a tensor whose strides may repeat elements; those are written once."""
    if 0 in target.stride():
        first = tuple(slice(0, 1) if step == 0 else slice(None) for step in target.stride())
        target, source = target[first], source[first]
    target.copy_(source, non_blocking=non_blocking)


class InputBuffer:
    """The memory that a graph reads one input from.

    Attributes:
        buffer: on the GPU, also where the input of each call is on the host.

    Args:
        expected: shape, strides, dtype and device of what is given at each call.
        place: the GPU.
    """

    def __init__(self, expected: torch.Tensor, place: torch.device) -> None:
        self._shape, self._dtype = expected.shape, expected.dtype
        self._device = place if expected.device.type == place.type else expected.device
        self.buffer = torch.empty_strided(expected.shape, expected.stride(), dtype=expected.dtype, device=place)

    def check(self, given: Any) -> None:
        """Refuses what was not recorded.

        Raises:
            ShapeError: another shape, dtype or device, or no tensor.
        """
        if (
            isinstance(given, torch.Tensor)
            and given.shape == self._shape
            and given.dtype is self._dtype
            and given.device == self._device
        ):
            return
        raise ShapeError(
            f"an input is {_describe(given)}, the recording takes {_text(self._dtype, self._shape, self._device)}",
            where=Where(stage="replay"),
            hint="record the segment for this shape, or pad the input to the recorded one",
        )

    def fill(self, given: torch.Tensor) -> None:
        """Copies a checked input in. From the host it does not wait: CUDA has read pageable memory when it returns."""
        copy_into(self.buffer, given, non_blocking=given.device.type == "cpu" and not given.is_pinned())


class Output:
    """One output of a graph.

    Args:
        expected: shape, strides and dtype that the caller gets.
        device: where the caller gets it.
        place: the GPU.
        borrow: give the same memory at every replay, if it is on the GPU.

    Attributes:
        bytes_held: bytes that are kept for it between replays.
    """

    def __init__(self, expected: torch.Tensor, device: torch.device, place: torch.device, *, borrow: bool) -> None:
        self._expected, self._device = expected, device
        # Not in the pool: there the replay of another graph would write it.
        self._lent = self._empty() if borrow and device == place else None
        self._value = self._lent
        self.bytes_held = 0 if self._lent is None else byte_extent(self._lent)

    def keep(self, value: torch.Tensor, *, changes: bool) -> None:
        """Called while the graph is captured.

        Args:
            value: the output.
            changes: it lies in memory that the graph goes on to write.
        """
        if self._lent is not None:
            copy_into(self._lent, value)
        else:
            self._value = value.clone() if changes else value

    def give(self) -> torch.Tensor:
        """The output of the replay that was launched last, for the caller."""
        assert self._value is not None, "the graph was captured"
        if self._lent is not None:
            return self._lent
        result = self._empty()
        copy_into(result, self._value)
        return result

    def _empty(self) -> torch.Tensor:
        expected = self._expected
        return torch.empty_strided(expected.shape, expected.stride(), dtype=expected.dtype, device=self._device)


class Bound:
    """The tensors that are bound once. Weights and state are used where they lie; constants of the host are copied.

    Attributes:
        tensors: placeholder -> tensor on the GPU.
        bytes_held: bytes of the copies.

    Args:
        bound: placeholder -> tensor.
        state: names of state buffers.
        place: the GPU.

    Raises:
        LoweringError: a tensor is on another GPU, or state is not on this one.
    """

    def __init__(self, bound: Mapping[fx.Node, torch.Tensor], state: Mapping[str, int], place: torch.device) -> None:
        self.tensors: dict[fx.Node, torch.Tensor] = {}
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.bytes_held = 0
        for node, tensor in bound.items():
            here = tensor.device == place
            if not here and (tensor.device.type != "cpu" or node.name in state):
                raise LoweringError(f"{node.name} is on {tensor.device}, not on {place}", where=Where(stage="record"))
            self.tensors[node] = tensor if here else tensor.to(place)
            if not here and "hoisted" not in node.meta:
                self._copies.append((tensor, self.tensors[node]))
            if not here or "hoisted" in node.meta:
                self.bytes_held += byte_extent(tensor)
        self._versions = self._written()

    def refresh(self) -> None:
        """Copies again what was written on the host since."""
        versions = self._written()
        if versions != self._versions:
            for source, copy in self._copies:
                copy.copy_(source)
            self._versions = versions

    def _written(self) -> list[int]:
        return [source._version for source, _ in self._copies]


def refuse_elsewhere(segment: Segment, place: torch.device) -> None:
    """Refuses a segment of a model that is not on the GPU: weights are shared with the model, never copied.

    Raises:
        LoweringError: no value of the segment is on this kind of device.
    """
    values = [node.meta.get("val") for node in segment.graph.graph.nodes]
    devices = {value.device for value in (*values, *segment.bound.values()) if isinstance(value, torch.Tensor)}
    if devices and not any(device.type == place.type for device in devices):
        raise LoweringError(
            f"the model is on {', '.join(sorted(map(str, devices)))}, not on {place}",
            where=Where(stage="record"),
            hint=f"move the model and its example inputs before compiling: model.to('{place.type}')",
        )


def refuse_shared_state(segment: Segment) -> None:
    """State must be its own memory: a weight or another buffer that shares it would change under the recording.

    Raises:
        LoweringError: a state buffer is not bound, or overlaps another bound tensor.
    """
    if missing := [name for name in segment.state if name not in segment.bound]:
        raise LoweringError(f"state buffer {missing[0]} is not bound", where=Where(stage="record"))
    ranges = sorted(
        (str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + byte_extent(tensor), name)
        for name, tensor in segment.bound.items()
    )
    before, reach, owner = "", 0, ""
    for device, start, end, name in ranges:
        shares = device == before and start < reach
        if shares and (name in segment.state or owner in segment.state):
            raise LoweringError(f"{name} shares memory with {owner}, one of them is state", where=Where(stage="record"))
        if device != before or end > reach:
            before, reach, owner = device, end, name


def _describe(given: Any) -> str:
    if not isinstance(given, torch.Tensor):
        return f"of type {type(given).__name__}"
    return _text(given.dtype, given.shape, given.device)


def _text(dtype: torch.dtype, shape: torch.Size, device: torch.device) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)} on {device}"
