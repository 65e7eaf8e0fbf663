"""The account of a run: what a Gaudi would have done, how often, with how many bytes, and at which line of the user's code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import torch

_HERE = os.path.dirname(__file__)
_INSIDE = (
    contextlib.__file__,
    os.path.dirname(torch.__file__) + os.sep,
    _HERE + os.sep,
    os.path.join(os.path.dirname(_HERE), "targets") + os.sep,
)


class Kind(Enum):
    """What is counted; the value is its heading in the report."""

    FALLBACK = "CPU fallbacks"
    HOST_READ = "host reads (item, bool, data-dependent sizes)"
    TO_HOST = "copies to the host"
    TO_DEVICE = "copies to the device"
    MIXED = "CPU tensors copied silently into hpu ops"
    COMPILE = "graphs compiled"
    HIT = "graphs found in the recipe cache"
    CAPTURE = "HPU graphs captured"
    REPLAY = "HPU graphs replayed"
    SPLIT = "crossings inside captures: each splits the graph and freezes what it read"
    HAZARD = "capture rules broken: replays give wrong results"
    OVERFLOW = "int64 values that do not fit the device's int32"
    PRESUMED = "ops that no source vouches for"


@dataclass(slots=True)
class Entry:
    """One thing at one line.

    Attributes:
        kind: what sort of thing.
        what: the op, graph or reason.
        source: the user's `file:line`, or "" when nothing of the user's is on the stack.
        count: how often.
        bytes: moved between host and device.
    """

    kind: Kind
    what: str
    source: str
    count: int = 0
    bytes: int = 0


class Ledger:
    """Counts things by kind, name and line."""

    def __init__(self) -> None:
        self._entries: dict[tuple[Kind, str, str], Entry] = {}

    def add(self, kind: Kind, what: str, nbytes: int = 0) -> None:
        """Count one thing at the line that is running."""
        source = user_line()
        entry = self._entries.setdefault((kind, what, source), Entry(kind, what, source))
        entry.count += 1
        entry.bytes += nbytes

    def entries(self, kind: Kind | None = None) -> list[Entry]:
        """The entries, of one kind or all, in the order in which they first happened."""
        return [entry for entry in self._entries.values() if kind in (None, entry.kind)]

    def count(self, kind: Kind) -> int:
        """How many things of a kind."""
        return sum(entry.count for entry in self.entries(kind))

    def bytes(self, kind: Kind) -> int:
        """Bytes moved by things of a kind."""
        return sum(entry.bytes for entry in self.entries(kind))

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()


def user_line() -> str:
    """The innermost `folder/file:line` on the stack outside torch and the emulator."""
    return next((f"{'/'.join(file.split(os.sep)[-2:])}:{line}" for file, line in _frames()), "")


def _frames() -> Iterator[tuple[str, int]]:
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_INSIDE) and not file.startswith("<"):
            yield file, frame.f_lineno
        if frame.f_back is None:
            return
        frame = frame.f_back
