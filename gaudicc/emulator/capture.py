"""What an HPU graph has recorded: calls on the captured memory, in the sub-graphs that flushes cut it into.

A replay runs them again on the same memory, so that addresses stay and new values appear in the old tensors. Crossings
between host and device are not recorded: what they brought in is frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gaudicc.emulator.ledger import Kind, Ledger
from gaudicc.emulator.pricing import Price
from gaudicc.emulator.tensor import FREED
from gaudicc.targets import op_name
from gaudicc.targets.calls import OpCall, tensors_in


@dataclass(frozen=True, slots=True)
class Node:
    """One recorded call on CPU tensors.

    Attributes:
        call: what ran.
        result: what it gave; replays write there.
    """

    call: OpCall
    result: object


class Capture:
    """A capture under way, and afterwards the recording.

    Args:
        ledger: where broken rules are counted.
        dry_run: nothing is launched: what the ops wrote is taken back at the end.

    Attributes:
        graphs: the recorded sub-graphs.
        user_inputs: what `mark_user_inputs` named.
        dry_run: see above.
        prices: of the recipes recorded.
    """

    def __init__(self, ledger: Ledger, dry_run: bool) -> None:
        self.graphs: list[list[Node]] = [[]]
        self.user_inputs: list[Tensor] = []
        self.prices: list[Price] = []
        self._ledger, self.dry_run = ledger, dry_run
        self._made: set[int] = set()
        self._views: dict[int, Tensor] = {}
        self._saved: dict[int, tuple[Tensor, Tensor]] = {}

    def before(self, call: OpCall) -> None:
        """Look at a call that is about to run: writes to memory from outside the capture."""
        for tensor in [*call.written(), *_written_unsaid(call)]:
            key = tensor.untyped_storage()._cdata
            if key in self._made:
                continue
            if id(tensor) in self._views:
                self._ledger.add(Kind.HAZARD, f"{op_name(call.op)} updates a view of memory from outside the capture")
            if self.dry_run and key not in self._saved:
                whole = _whole(tensor)
                self._saved[key] = (whole, whole.clone())

    def add(self, call: OpCall, result: object) -> None:
        """Record a call that has run."""
        self.graphs[-1].append(Node(call, result))
        written = {id(tensor) for tensor in call.written()}
        for tensor in tensors_in(result):
            if call.op.is_view:
                self._views[id(tensor)] = tensor
            elif id(tensor) not in written:
                self._made.add(tensor.untyped_storage()._cdata)

    def split(self) -> None:
        """A flush ends a sub-graph."""
        if self.graphs[-1]:
            self.graphs.append([])

    def finish(self) -> None:
        """The capture is over; after a dry run memory is as before, and results hold no values yet."""
        self.graphs = [graph for graph in self.graphs if graph]
        for whole, before in self._saved.values():
            whole.copy_(before)
        if self.dry_run:
            for node in self._nodes():
                for tensor in _fresh(node):
                    tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
        self._saved, self._views = {}, {}

    def matches(self) -> set[int]:
        """Which user inputs the recording reads, by position."""
        read = {id(tensor) for node in self._nodes() for tensor in node.call.tensors()}
        return {at for at, tensor in enumerate(self.user_inputs) if id(tensor) in read}

    def keep_only(self, outputs: Iterable[Tensor]) -> None:
        """Give back intermediates: whoever still holds one meets an error."""
        kept = {tensor.untyped_storage()._cdata for tensor in outputs}
        for node in self._nodes():
            for tensor in _fresh(node):
                if tensor.untyped_storage()._cdata not in kept:
                    setattr(tensor, FREED, True)

    def replay(self, run: Callable[[OpCall], object], binding: dict[int, Tensor] | None = None) -> None:
        """Run the recording again.

        Args:
            run: runs one call under the device's rules.
            binding: id of a captured CPU tensor -> what takes its place in this replay.
        """
        places = dict(binding or {})
        for node in self._nodes():
            call = node.call.map(lambda leaf: places.get(id(leaf), leaf)) if places else node.call
            moved = any(id(tensor) in places for tensor in node.call.tensors())
            if node.call.op.is_view:
                if moved:
                    for old, new in zip(tensors_in(node.result), tensors_in(call.run()), strict=True):
                        places[id(old)] = new
                continue
            for old, new in zip(tensors_in(node.result), tensors_in(run(call)), strict=True):
                if old is not new and id(old) not in places:
                    _copy_frozen(old, new)

    def _nodes(self) -> Iterable[Node]:
        return (node for graph in self.graphs for node in graph)


def _fresh(node: Node) -> list[Tensor]:
    """The tensors that a recorded call made, views and arguments left out."""
    if node.call.op.is_view:
        return []
    written = {id(tensor) for tensor in node.call.written()}
    return [tensor for tensor in tensors_in(node.result) if id(tensor) not in written]


def _written_unsaid(call: OpCall) -> list[Tensor]:
    """What a training batch norm writes although its schema does not say so."""
    named = call.named()
    if op_name(call.op) != "aten::native_batch_norm" or not named.get("training"):
        return []
    return list(tensors_in([named.get("running_mean"), named.get("running_var")]))


def _whole(tensor: Tensor) -> Tensor:
    """All bytes of a tensor's memory."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def _copy_frozen(old: Tensor, new: Tensor) -> None:
    """Write a replayed result into its captured place; a size that was read from data stays what it was."""
    if old.shape == new.shape:
        old.copy_(new)
        return
    common = tuple(slice(0, min(sizes)) for sizes in zip(old.shape, new.shape, strict=True))
    old.zero_()
    old[common] = new[common]
