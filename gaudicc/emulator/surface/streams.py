"""`habana_frameworks.torch.hpu.streams` and `.events`."""

from gaudicc.emulator.streams import (
    Event,
    Stream,
    StreamContext,
    current_stream,
    default_stream,
    get_stream_info,
    set_stream,
    stream,
)

__all__ = [
    "Event",
    "Stream",
    "StreamContext",
    "current_stream",
    "default_stream",
    "get_stream_info",
    "set_stream",
    "stream",
]
