"""Streams and events. Work is done at once, so every stream is idle and every event has happened: no race ever shows.

Events carry modelled time; all streams share the one chip's time line. Source of names and forms:
HabanaAI/gaudi-pytorch-bridge 1.19.0, `hpu/streams.py`, `hpu/events.py`, `backend/habana_device/HPUEvent.cpp`.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from gaudicc.emulator.emulation import current

_TICK = 1e-9
_stream_ids = itertools.count(1)
_event_ids = itertools.count(1)


class Stream:
    """A queue of work on the device, known by its id; the default stream is number 0.

    Args:
        device: the one device.
        priority: accepted; all streams are alike.
        stream_id: names an existing stream; a new one is made without it.
        device_index: of the stream named.
        device_type: of the stream named.
    """

    def __init__(
        self,
        device: object = None,
        priority: int = 0,
        *,
        stream_id: int | None = None,
        device_index: int = 0,
        device_type: int | None = None,
    ) -> None:
        self.priority = priority
        self.stream_id = next(_stream_ids) if stream_id is None else stream_id
        self.device = torch.device("hpu", device_index)
        self.device_index = device_index
        self.device_type = _device_type() if device_type is None else device_type
        self.is_capture = False

    @property
    def hpu_stream(self) -> int:
        """The handle: here the id."""
        return self.stream_id

    def id(self) -> int:
        """Its number."""
        return self.stream_id

    def wait_event(self, event: Event) -> None:
        """Later work waits for the event."""
        event.wait(self)

    def wait_stream(self, stream: Stream) -> None:
        """Later work waits for what the other stream holds now."""
        self.wait_event(stream.record_event())

    def record_event(self, event: Event | None = None) -> Event:
        """Records an event, or a new one, and gives it back."""
        recorded = Event() if event is None else event
        recorded.record(self)
        return recorded

    def query(self) -> bool:
        """Whether all work is done."""
        return True

    def synchronize(self) -> None:
        """Waits for the work, which flushes what lazy mode has gathered."""
        current().synchronize("a stream synchronises")

    def __enter__(self) -> Stream:
        self._before = current_stream()
        set_stream(self)
        return self

    def __exit__(self, *_: object) -> None:
        set_stream(self._before)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (Stream, torch.Stream)) and self.stream_id == other.stream_id

    def __hash__(self) -> int:
        return hash((self.stream_id, self.device))

    def __repr__(self) -> str:
        return f"<torch.hpu.Stream device={self.device} hpu_stream={self.stream_id:#x}>"


class Event:
    """A mark in a stream.

    Args:
        enable_timing: whether `elapsed_time` may be asked.
    """

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self.enable_timing = enable_timing
        self.event_id = next(_event_ids)
        self._recorded: float | None = None

    @property
    def hpu_event(self) -> int:
        """The handle: 0 until it is recorded."""
        return self.event_id if self._recorded is not None else 0

    def record(self, stream: Stream | None = None) -> None:
        """Marks the present end of a stream, the current one by default; in that one it flushes what lazy mode gathers."""
        if stream is None or stream == current_stream():
            current().flush()
        self._recorded = current().clock.now

    def wait(self, stream: Stream | None = None) -> None:
        """Later work of the stream waits for the mark."""

    def query(self) -> bool:
        """Whether the work before the mark is done; an event that was never recorded answers True."""
        return True

    def synchronize(self) -> None:
        """Waits for the work before the mark."""
        current().synchronize("an event synchronises")

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds of modelled time between two marks; never 0, as on the device.

        Raises:
            RuntimeError: one of them was not recorded.
        """
        if self._recorded is None or end_event._recorded is None:
            raise RuntimeError("Both events must be recorded before calculating elapsed time.")
        return max(end_event._recorded - self._recorded, _TICK) * 1e3

    def __repr__(self) -> str:
        return f"<torch.hpu.Event {self.event_id:#x}>" if self.hpu_event else "<torch.hpu.Event uninitialized>"


class StreamContext:
    """Makes a stream the current one inside a block; None changes nothing."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream
        self._before: Stream | None = None

    def __enter__(self) -> None:
        if self.stream is not None:
            self._before = current_stream()
            set_stream(self.stream)

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:
            set_stream(self._before)


_DEFAULT = None
_SELECTED: list[Stream] = []


def default_stream(device: object = None) -> Stream:
    """Stream number 0."""
    global _DEFAULT
    if _DEFAULT is None:
        _DEFAULT = Stream(stream_id=0)
    return _DEFAULT


def current_stream(device: object = None) -> Stream:
    """The stream that work goes to."""
    return _SELECTED[0] if _SELECTED else default_stream()


def set_stream(stream: Stream | None) -> None:
    """Sends later work to a stream; None changes nothing."""
    if stream is not None:
        _SELECTED[:] = [stream]


def stream(stream: Stream | None) -> StreamContext:
    """A block in which work goes to a stream."""
    return StreamContext(stream)


def get_stream_info(stream: Stream) -> tuple[int, int, int]:
    """Its id, device index and device type."""
    return stream.stream_id, stream.device_index, stream.device_type


def _device_type() -> int:
    number: int = torch._C._autograd.DeviceType.PrivateUse1.value
    return number
