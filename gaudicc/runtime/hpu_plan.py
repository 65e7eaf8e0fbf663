"""Does it fit? Bytes of weights, state and recorded graphs per bucket, from sizes alone: no Gaudi is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from gaudicc.buckets import Bucket
from gaudicc.machine import load_chip
from gaudicc.plan import BufferKind, Plan, Record
from gaudicc.program import InputKind, Program
from gaudicc.runtime.device import Segment
from gaudicc.runtime.hpu_pieces import split
from gaudicc.runtime.hpu_prepare import Preparer
from gaudicc.runtime.hpu_state import write_state
from gaudicc.runtime.hpu_workspace import input_bytes, workspace_bytes
from gaudicc.targets import Mode, load_target


@dataclass(frozen=True, slots=True)
class BucketMemory:
    """What the recorded graphs of one bucket hold.

    Attributes:
        bucket: as text.
        inputs: bytes of static input buffers.
        workspace: bytes of what is computed in between, at most.
    """

    bucket: str
    inputs: int
    workspace: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Whether a compiled model fits.

    Attributes:
        target: the chip.
        cards: how many share the model.
        capacity: usable bytes of one card.
        weights: bytes of weights and constants, each counted once.
        state: bytes of state buffers: key/value caches and the like.
        buckets: one entry per bucket.
    """

    target: str
    cards: int
    capacity: int
    weights: int
    state: int
    buckets: tuple[BucketMemory, ...]

    @property
    def fixed(self) -> int:
        """Bytes on one card beside recorded graphs, if weights and state are divided evenly."""
        return -(-(self.weights + self.state) // self.cards)

    @property
    def graphs(self) -> int:
        """Bytes of all recorded graphs; each card holds all of them."""
        return sum(bucket.inputs + bucket.workspace for bucket in self.buckets)

    @property
    def needed(self) -> int:
        """Bytes of one card without which no call can be served: all that is fixed, and the largest bucket."""
        return self.fixed + max((bucket.inputs + bucket.workspace for bucket in self.buckets), default=0)

    @property
    def fits(self) -> bool:
        """Whether every bucket can be recorded, if not all of them at once."""
        return self.needed <= self.capacity

    @property
    def verdict(self) -> str:
        """One sentence."""
        left = self.capacity - self.fixed
        if self.graphs <= left:
            return f"fits: {_size(left - self.graphs)} of {_size(self.capacity)} are left with every bucket recorded"
        if self.fits:
            return f"fits with eviction: graphs take {_size(self.graphs)}, {_size(left)} are there for them"
        return f"does not fit: {_size(self.needed)} are needed, a card has {_size(self.capacity)}"

    def as_json(self) -> dict[str, Any]:
        """The plan as plain data, sizes in bytes."""
        return {
            "target": self.target,
            "cards": self.cards,
            "capacity": self.capacity,
            "weights": self.weights,
            "state": self.state,
            "fixed_per_card": self.fixed,
            "graphs": self.graphs,
            "buckets": [
                {"bucket": each.bucket, "inputs": each.inputs, "workspace": each.workspace} for each in self.buckets
            ],
            "fits": self.fits,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        rows = [
            f"{self.cards} x {self.target}, {_size(self.capacity)} each (estimated from sizes; nothing ran on a Gaudi)",
            f"weights {_size(self.weights)}, state {_size(self.state)}: {_size(self.fixed)} a card, divided evenly",
            *(
                f"{each.bucket or 'the only bucket'}: inputs {_size(each.inputs)}, workspace {_size(each.workspace)}"
                for each in self.buckets
            ),
            f"all graphs {_size(self.graphs)} a card",
            self.verdict,
        ]
        return "\n".join(rows)


def plan_memory(
    programs: Mapping[Bucket, Program], plans: Mapping[Bucket, Plan], target: str, cards: int = 1
) -> MemoryPlan:
    """Plans the memory of a compiled model in lazy mode, where recorded graphs keep their workspace.

    Args:
        programs: the static program of every bucket.
        plans: the plan of every bucket.
        target: the chip.
        cards: how many share weights and state evenly; gaudicc itself does not divide a model yet.
    """
    preparer = Preparer(load_target(target), Mode.LAZY)
    buckets = tuple(_bucket(bucket, programs[bucket], plan, preparer) for bucket, plan in plans.items())
    held = [_bound(program) for program in programs.values()]
    return MemoryPlan(
        target,
        cards,
        int(load_chip(target).memory.hbm_bytes),
        _distinct(tensor for weights, _ in held for tensor in weights),
        _distinct(tensor for _, state in held for tensor in state),
        buckets,
    )


def _bound(program: Program) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Weights and constants, and state."""
    found = program.bound()
    state = {spec.name for spec in program.inputs if spec.kind is InputKind.STATE}
    return [t for name, t in found.items() if name not in state], [found[name] for name in sorted(state)]


def _distinct(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors, tied ones once; by storage, since tensors on the meta device have no address."""
    return sum(
        {(StorageWeakRef(t.untyped_storage()), t.numel()): t.numel() * t.element_size() for t in tensors}.values()
    )


def _bucket(bucket: Bucket, program: Program, plan: Plan, preparer: Preparer) -> BucketMemory:
    bound = program.bound()
    inputs = workspace = 0
    for step in plan.all_steps():
        if isinstance(step, Record):
            names = {
                node.name: name
                for node, name in zip(step.graph.graph.find_nodes(op="placeholder"), step.inputs, strict=True)
            }
            state = {
                name: step.outputs.index(buffer)
                for name, buffer in names.items()
                if plan.buffers[buffer] is BufferKind.STATE and buffer in step.outputs
            }
            segment = Segment(step.graph, {n: bound[buffer] for n, buffer in names.items() if buffer in bound}, state)
            divided = split(segment, preparer.prepare, together=False)
            write_state(divided, state)
            inputs += input_bytes(divided)
            workspace += workspace_bytes(divided)
    return BucketMemory(str(bucket), inputs, workspace)


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
