"""Publishes what happens on the device, under the names of `habana_frameworks.torch.utils.event_dispatcher`.

Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `backend/helpers/event_dispatcher.h`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import Enum, auto

EventParameters = list[tuple[str, str]]
Callback = Callable[[datetime, EventParameters], None]


class EventId(Enum):
    """What can be subscribed to."""

    GRAPH_COMPILATION = auto()
    CPU_FALLBACK = auto()
    CACHE_HIT = auto()
    CACHE_MISS = auto()
    MEMORY_DEFRAGMENTATION = auto()
    MARK_STEP = auto()
    PROCESS_EXIT = auto()
    DEVICE_ACQUIRED = auto()
    CUSTOM_EVENT = auto()


class EventDispatcherHandle:
    """One subscription."""

    def __init__(self, event: EventId, callback: Callback) -> None:
        self.event, self.callback = event, callback


class EventDispatcher:
    """Calls the subscribers of each event in the order in which they subscribed."""

    def __init__(self) -> None:
        self._handles: list[EventDispatcherHandle] = []

    @staticmethod
    def instance() -> EventDispatcher:
        """The one dispatcher of the process."""
        return _INSTANCE

    def subscribe(self, event: EventId, callback: Callback) -> EventDispatcherHandle:
        """Calls `callback(timestamp, parameters)` at each event from now on; parameters are pairs of strings."""
        handle = EventDispatcherHandle(event, callback)
        self._handles.append(handle)
        return handle

    def unsubscribe(self, handle: EventDispatcherHandle) -> None:
        """Ends a subscription; one that has ended is left alone."""
        if handle in self._handles:
            self._handles.remove(handle)

    def publish(self, event: EventId, parameters: EventParameters) -> None:
        """Tells the subscribers."""
        now = datetime.now()
        for handle in [each for each in self._handles if each.event is event]:
            handle.callback(now, parameters)


_INSTANCE = EventDispatcher()
