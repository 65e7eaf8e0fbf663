"""The Plan: what the host does for one bucket, as a small program over named buffers.

Lowering makes it; a device records its segments; the runner carries it out. Most plans are one Record. The others arise where
an op stays on the host, where a branch is decided between two recorded graphs, or where a loop runs in recorded chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import fx

from gaudicc.buckets import Bucket
from gaudicc.printing import graph_lines


class BufferKind(Enum):
    """Who owns a buffer and for how long."""

    INPUT = "input"
    BOUND = "bound once"
    CONSTANT = "bound once, never written"
    STATE = "state"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Ref:
    """A buffer as an argument of a host op."""

    name: str


@dataclass(frozen=True)
class Record:
    """Replays one recorded graph.

    Attributes:
        graph: the static segment; its placeholders are named as `inputs`.
        inputs: the buffer that each placeholder reads.
        outputs: the buffer that each output is put in; a state buffer's name writes its new value.
    """

    graph: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class HostOp:
    """Runs one op on the host, eagerly.

    Attributes:
        op: the op overload.
        args: arguments; buffers as `Ref`.
        kwargs: keyword arguments.
        outputs: one buffer, or one per result of an op with several.
        bytes_moved: bytes that a real device would send to the host and back.
        source: the user's source line.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[str, ...]
    bytes_moved: int = 0
    source: str | None = None


@dataclass(frozen=True)
class HostBranch:
    """Reads one flag on the host and carries out one of two step lists, both of which set the same buffers.

    Attributes:
        condition: a buffer of one element.
        then: steps if it is non-zero.
        otherwise: steps if it is zero.
        source: the user's source line.
    """

    condition: str
    then: tuple[Step, ...]
    otherwise: tuple[Step, ...]
    source: str | None = None


@dataclass(frozen=True)
class HostLoop:
    """Repeats a step list while a flag that it sets is non-zero; the body runs once at least.

    Attributes:
        body: steps of one chunk of trips.
        condition: a buffer of one element, set by the body.
        limit: most repetitions before the loop is given up with an error; None: as many as it takes.
    """

    body: tuple[Step, ...]
    condition: str
    limit: int | None


@dataclass(frozen=True)
class HostTrips:
    """Replays one recorded trip of a loop over a size as often as the size is long.

    Attributes:
        body: of one trip: it reads its number, the carried values and what every trip reads; it gives the new carried
            values, then what the trip adds to each stack.
        trips: how many, or the buffer of one element that says it.
        start: the buffers of the carried values before the loop.
        stacks: shape, dtype and device of each stack.
        outputs: the buffers of the carried values after the loop, then of the stacks.
        source: the user's source line.
    """

    body: Record
    trips: int | str
    start: tuple[str, ...]
    stacks: tuple[tuple[tuple[int, ...], torch.dtype, torch.device], ...]
    outputs: tuple[str, ...]
    source: str | None = None


@dataclass(frozen=True)
class Barrier:
    """Waits until everything launched so far is done."""


Step = Record | HostOp | HostBranch | HostLoop | HostTrips | Barrier


@dataclass(frozen=True)
class Plan:
    """What the host does for one bucket.

    Attributes:
        bucket: the physical sizes it is for.
        buffers: name -> kind, of every buffer that a step reads or writes.
        steps: carried out in order.
        outputs: the buffers that hold the root graph's outputs, one per output spec that is not a state write.
        writes: (state buffer, value): copied once all steps are done, so that an exception leaves state as it was. A plan
            of one Record has none, since there the recording writes state itself.
    """

    bucket: Bucket
    buffers: dict[str, BufferKind]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    writes: tuple[tuple[str, str], ...] = ()

    def all_steps(self) -> Iterator[Step]:
        """Every step, those inside branches and loops too."""
        yield from walk(self.steps)

    def __str__(self) -> str:
        lines = [f"plan for {str(self.bucket) or 'the only bucket'}:", *_text(self.steps, 1)]
        return "\n".join([*lines, f"  return {', '.join(self.outputs)}"])


def walk(steps: Iterable[Step]) -> Iterator[Step]:
    """Every one of some steps, those inside branches and loops too."""
    for step in steps:
        yield step
        if isinstance(step, HostBranch):
            yield from walk(step.then)
            yield from walk(step.otherwise)
        elif isinstance(step, HostLoop):
            yield from walk(step.body)
        elif isinstance(step, HostTrips):
            yield step.body


def _text(steps: tuple[Step, ...], depth: int) -> Iterator[str]:
    pad = "  " * depth
    for step in steps:
        if isinstance(step, Record):
            size = sum(1 for line in graph_lines("", step.graph, {}, {}) if " = " in line)
            yield f"{pad}record {', '.join(step.outputs)} <- {len(step.inputs)} buffers  # {size} lines"
        elif isinstance(step, HostOp):
            place = f"  # {step.source}" if step.source else ""
            yield f"{pad}host {', '.join(step.outputs)} <- {step.op}({', '.join(map(str, step.args))}){place}"
        elif isinstance(step, HostBranch):
            place = f"  # {step.source}" if step.source else ""
            yield f"{pad}if {step.condition}:{place}"
            yield from _text(step.then, depth + 1)
            if step.otherwise:
                yield f"{pad}else:"
                yield from _text(step.otherwise, depth + 1)
        elif isinstance(step, HostLoop):
            most = "" if step.limit is None else f", at most {step.limit} times"
            yield f"{pad}repeat while {step.condition}{most}:"
            yield from _text(step.body, depth + 1)
        elif isinstance(step, HostTrips):
            place = f"  # {step.source}" if step.source else ""
            yield f"{pad}{', '.join(step.outputs)} <- {', '.join(step.start)} after {step.trips} trips:{place}"
            yield from _text((step.body,), depth + 1)
        else:
            yield f"{pad}barrier"
