"""Ops gathered since the last flush, and the recipes compiled for them: one flush is one look into the recipe cache.

Lazy mode flushes at `mark_step` and host reads, eager mode after every op. Values are computed at once on the CPU; what is
gathered here is the graph's form only. Two flushes share a recipe if they ran the same ops on the same wiring, shapes,
dtypes, strides and Python numbers. Source: HabanaAI/gaudi-pytorch-bridge 1.19.0, `habana_lazy/`,
`backend/kernel/hpu_habana_launch_op_pt.cpp`. A real flush drops ops whose results nobody holds any more; this one keeps
them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping

import torch

from gaudicc.emulator.events import EventDispatcher, EventId
from gaudicc.emulator.ledger import Kind, Ledger
from gaudicc.targets.calls import tensors_in

Signature = tuple[Hashable, ...]
IDENTITIES = frozenset({"aten::detach", "aten::alias", "aten::lift_fresh"})
"""Ops that give their input back: no node of a graph."""


class Step:
    """The graph gathered since the last flush.

    A tensor is known by what made it: the n-th input of the graph, or the n-th result in it.
    """

    def __init__(self) -> None:
        self._entries: list[Signature] = []
        self._serial = object()
        self._inputs = 0
        self._results = 0
        self.computes = False

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, name: str, arguments: object, results: object, *, computes: bool) -> None:
        """Gather one op.

        Args:
            name: the op.
            arguments: what it was called with, raw CPU tensors in place of the device's.
            results: what it gave; a tensor that it wrote to counts as a new result.
            computes: whether the device has work to do; a view is none.
        """
        if name in IDENTITIES:
            inputs = list(tensors_in(arguments))
            self._name(next(tensors_in(results)), self._describe(inputs[0]))
            return
        entry = (name, self._describe(arguments))
        for tensor in tensors_in(results):
            self._name(tensor, ("result", self._results))
            self._results += 1
        self._entries.append(entry)
        self.computes = self.computes or computes

    def signature(self) -> Signature:
        """What decides whether a recipe can be used again."""
        return tuple(self._entries)

    def _name(self, tensor: torch.Tensor, name: Hashable) -> None:
        tensor._gaudicc_name = (self._serial, name)  # type: ignore[attr-defined]

    def _describe(self, value: object) -> Hashable:
        if isinstance(value, torch.Tensor):
            owner, name = getattr(value, "_gaudicc_name", (None, None))
            if owner is not self._serial:
                name = ("input", self._inputs, tuple(value.shape), value.dtype, _strides(value))
                self._name(value, name)
                self._inputs += 1
            return name
        if isinstance(value, Mapping):
            return tuple((key, self._describe(item)) for key, item in value.items())
        if isinstance(value, Iterable) and not isinstance(value, str):
            return tuple(self._describe(item) for item in value)
        if isinstance(value, torch.Generator):
            return "generator"
        return (type(value).__name__, repr(value))


class Recipes:
    """The recipe cache, and the step whose graph comes next.

    Args:
        ledger: where compiles and hits are counted.
        max_ops: ops after which a step flushes by itself.
    """

    def __init__(self, ledger: Ledger, max_ops: int) -> None:
        self.step = Step()
        self.known: dict[Signature, str] = {}
        self.on_flush: Callable[[], None] = lambda: None
        self._ledger, self._max_ops = ledger, max_ops

    def add(self, name: str, arguments: object, results: object, *, computes: bool) -> None:
        """Gather one op, and flush if the step is full."""
        self.step.add(name, arguments, results, computes=computes)
        if len(self.step) >= self._max_ops:
            self.flush()

    def flush(self) -> bool:
        """Look up the gathered graph, compile it if it is new, and start the next step.

        Returns:
            Whether there was anything to run.
        """
        step, self.step = self.step, Step()
        if not step.computes:
            return False
        self.look_up(step.signature(), len(step))
        self.on_flush()
        return True

    def look_up(self, signature: Signature, ops: int) -> None:
        """Count a hit, or a miss and a compilation, and tell the event dispatcher.

        Args:
            signature: of the graph.
            ops: how many ops it has. Compile time is not modelled: this number stands for the duration.
        """
        dispatcher = EventDispatcher.instance()
        recipe = self.known.get(signature)
        if recipe is not None:
            self._ledger.add(Kind.HIT, recipe)
            dispatcher.publish(EventId.CACHE_HIT, [("recipe_id", recipe)])
            return
        recipe = self.known[signature] = f"recipe_{len(self.known)}"
        self._ledger.add(Kind.COMPILE, "a graph of 1 op" if ops == 1 else f"a graph of {ops} ops")
        dispatcher.publish(EventId.CACHE_MISS, [("recipe_id", recipe)])
        dispatcher.publish(EventId.GRAPH_COMPILATION, [("duration", str(max(ops, 1))), ("recipe", recipe)])


def _strides(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.stride()) if tensor.layout is torch.strided else ()
