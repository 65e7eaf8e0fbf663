"""The account of a run: what a Gaudi would have done, how often, with how many bytes, and at which line of the user's code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from gaudicc.emulator.pricing import Price

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
    COLLECTIVE = "collectives: no time is modelled for them"
    OVERFLOW = "int64 values that do not fit the device's int32"
    PRESUMED = "ops that no source vouches for"
    RUN = "ops on the device"


@dataclass(slots=True)
class Entry:
    """One thing at one line.

    Attributes:
        kind: what sort of thing.
        what: the op, graph or reason.
        source: the user's `file:line`, or "" when nothing of the user's is on the stack.
        count: how often.
        bytes: moved between host and device.
        seconds: what it takes, modelled: of the host, or for ops on the device of the engine.
    """

    kind: Kind
    what: str
    source: str
    count: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Ledger:
    """Counts things by kind, name and line."""

    def __init__(self) -> None:
        self._entries: dict[tuple[Kind, str, str], Entry] = {}
        self._runs: Counter[tuple[Price, str]] = Counter()

    def add(self, kind: Kind, what: str, nbytes: int = 0, seconds: float = 0.0) -> None:
        """Count one thing at the line that is running; the seconds are modelled."""
        entry = _entry(self._entries, kind, what, user_line())
        entry.count += 1
        entry.bytes += nbytes
        entry.seconds += seconds

    def run(self, price: Price, *, here: bool) -> None:
        """Count one run of a recipe.

        Args:
            price: what it costs.
            here: its ops count at the line that is running, and not where they were gathered when it was compiled.
        """
        self._runs[price, user_line() if here else ""] += 1

    def entries(self, kind: Kind | None = None) -> list[Entry]:
        """The entries, of one kind or all, in the order in which they first happened; the ops on the device come last."""
        found = [entry for entry in self._entries.values() if kind in (None, entry.kind)]
        return [*found, *self._ops()] if kind in (None, Kind.RUN) else found

    def _ops(self) -> list[Entry]:
        ops: dict[tuple[Kind, str, str], Entry] = {}
        for (price, source), runs in self._runs.items():
            for part in price.parts:
                entry = _entry(ops, Kind.RUN, part.what, source or part.source)
                entry.count += runs
                entry.seconds += runs * part.seconds
        return list(ops.values())

    def count(self, kind: Kind) -> int:
        """How many things of a kind."""
        return sum(entry.count for entry in self.entries(kind))

    def bytes(self, kind: Kind) -> int:
        """Bytes moved by things of a kind."""
        return sum(entry.bytes for entry in self.entries(kind))

    def seconds(self, kind: Kind) -> float:
        """What things of a kind take, modelled."""
        return sum(entry.seconds for entry in self.entries(kind))

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
        self._runs.clear()


def _entry(entries: dict[tuple[Kind, str, str], Entry], kind: Kind, what: str, source: str) -> Entry:
    return entries.setdefault((kind, what, source), Entry(kind, what, source))


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
