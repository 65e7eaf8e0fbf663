"""`habana_frameworks.torch.utils.event_dispatcher`."""

from gaudicc.emulator.events import (
    EventDispatcher,
    EventDispatcherHandle,
    EventId,
)

__all__ = ["EventDispatcher", "EventDispatcherHandle", "EventId"]
