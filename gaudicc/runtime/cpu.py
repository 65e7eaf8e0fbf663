"""The CPU device: records a static segment once and replays it with as little Python as can be.

Recording, in the order of the steps: `cpu_flatten` inlines regions into one graph; `cpu_semantic`, `cpu_fuse`,
`cpu_attention`, `cpu_linear`, `cpu_tidy` rewrite it to the fewest and fastest calls, `cpu_native_calls` to kernels in C on
request; `cpu_plan` decides where every value lives; `cpu_emit` writes one straight-line Python function.
"""

from __future__ import annotations

import ctypes
import threading

import torch

from gaudicc.errors import AutocastError, InputError, LoweringError, StateError, Where
from gaudicc.runtime.cpu_attention import lower_attention
from gaudicc.runtime.cpu_calls import below_autograd
from gaudicc.runtime.cpu_edit import Editor
from gaudicc.runtime.cpu_emit import Emitter, Run
from gaudicc.runtime.cpu_flatten import byte_extent, flatten
from gaudicc.runtime.cpu_fuse import fuse
from gaudicc.runtime.cpu_linear import lower_linears
from gaudicc.runtime.cpu_loop import Loop
from gaudicc.runtime.cpu_native import Kernels
from gaudicc.runtime.cpu_native_calls import join_gates, join_stores, settle_native
from gaudicc.runtime.cpu_plan import plan
from gaudicc.runtime.cpu_semantic import lower_semantic
from gaudicc.runtime.cpu_tidy import drop_copies, join_rotations
from gaudicc.runtime.cpu_weights import PackedWeights, layout_of, versions
from gaudicc.runtime.device import Segment
from gaudicc.runtime.eager_ops import EagerOps, replayed


class CpuDevice:
    """Records segments for this machine's CPU.

    Attributes:
        name: `cpu`.
        weights: what was derived from weights, shared by all recordings; `weights.bytes_held` says what it costs.
        kernels: in C; None: not asked for.

    Args:
        release: hold each weight once: weights that run best by columns are moved into that layout in place (same
            values and shapes, other strides) and no second layout is made for other row counts.
        native: use kernels in C for what ATen has several calls for, in what is recorded from when they are compiled.

    Raises:
        InputError: `native` without a C compiler.
    """

    name = "cpu"

    def __init__(self, *, release: bool = False, native: bool = False) -> None:
        self.weights = PackedWeights(release=release)
        self.kernels = Kernels() if native else None

    def record(self, segment: Segment, *, borrow: bool = False) -> CpuRecording:
        """Records one segment; see `Device.record`."""
        native = self.kernels.library() if self.kernels is not None else None
        return CpuRecording(segment, self.weights, borrow=borrow, native=native)

    def eager_ops(self) -> EagerOps:
        """Counts, while entered, the torch ops outside of replays that touch what this device holds."""
        return EagerOps(self.weights.is_pinned)

    def fetch(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself; see `Device.fetch`."""
        return tensor


class CpuRecording:
    """One recorded segment.

    Replays of one recording run one at a time, under a lock: they share the planned buffers. Outputs are fresh, so
    what one thread got is never touched by another's replay, unless recorded with `borrow`.

    Attributes:
        bytes_held: bytes of planned buffers and constants; what is derived from weights is counted by the device.
        source: the generated function, readable.
    """

    def __init__(
        self, segment: Segment, weights: PackedWeights, *, borrow: bool, native: ctypes.CDLL | None = None
    ) -> None:
        _check_bound(segment)
        with below_autograd():
            flat = flatten(segment)
            editor = Editor(flat, self, native)
            lower_semantic(editor, weights)
            editor.finish()
            fuse(editor, weights)
            lower_attention(editor)
            editor.finish()
            lower_linears(editor, weights)
            editor.finish()
            join_gates(editor)
            join_stores(editor)
            drop_copies(editor)
            join_rotations(editor)
            editor.finish()
            settle_native(editor)
            editor.collapse_views()
            loops = [node for node in flat.graph.nodes if isinstance(node.target, Loop)]
            for node in loops:
                known = {i: flat.bound[arg] for i, arg in enumerate(node.args[1:]) if arg in flat.bound}
                node.target.record(lambda body: CpuRecording(body, weights, borrow=True, native=native), known)
            planned = plan(flat, borrow=borrow)
            self._emitter = Emitter(flat, planned)
            self._emitter.emit()
        read = [tensor for node, tensor in flat.bound.items() if node.users and tensor.layout is torch.strided]
        for tensor in read:
            weights.pin(tensor, self)
            if native is not None:
                weights.settle(tensor, self)
        self.source = self._emitter.source
        self.bytes_held = planned.arena_bytes + sum(
            tensor.numel() * tensor.element_size() for node, tensor in flat.bound.items() if "hoisted" in node.meta
        )
        self.bytes_held += sum(node.target.bytes_held for node in loops)
        self._weights = weights
        self._held = editor.held
        self._prepared = {node: editor.prepared[node] for node in editor.prepared if node.users}
        self._sources = tuple({id(s): s for p in self._prepared.values() for s in p.sources}.values())
        self._state = {segment.bound[name].untyped_storage().data_ptr() for name in segment.state}
        self._inputs = len(flat.inputs)
        self._lock = threading.Lock()
        self._versions = versions(self._sources)
        given = {
            id(tensor) for name, tensor in segment.bound.items() if native is not None and name not in segment.state
        }
        self._by_address = [(tensor, layout_of(tensor)) for tensor in read if id(tensor) in given]
        self._pointers = [tensor.data_ptr for tensor, _ in self._by_address]
        self._places = self._addresses()
        self._run = self._emitter.bind()

    def replay(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs the segment once; see `Recording.replay`.

        Inputs are checked first and indices into state before the first write, so that state is as it was after
        either error.

        Raises:
            ShapeError: an input is not of the recorded shape, dtype or device.
            StateError: an input overlaps state, an index lies outside a state buffer, or a weight that kernels in C read has
                another layout or dtype by now.
            AutocastError: autocast is active.
            InputError: the number of inputs is another one.
        """
        if len(inputs) != self._inputs:
            raise InputError(
                f"{len(inputs)} inputs given, the recording takes {self._inputs}", where=Where(stage="replay")
            )
        if torch.is_autocast_enabled("cpu"):
            raise AutocastError("autocast is active around a replay", where=Where(stage="replay"))
        if self._state:
            self._check_overlap(inputs)
        with self._lock, below_autograd():
            return replayed(self.runner(), inputs)

    def runner(self) -> Run:
        """What a replay runs, with weights as they are now; for a recording that holds this one and runs it by itself."""
        if [source._version for source in self._sources] != self._versions:
            self._prepare()
        if self._addresses() != self._places:
            self._look_again()
        return self._run

    def _addresses(self) -> list[int]:
        return [pointer() for pointer in self._pointers]

    def _look_again(self) -> None:
        """Takes weights that have moved for what they are; kernels in C would read others beyond their end."""
        for tensor, layout in self._by_address:
            if layout_of(tensor) != layout:
                raise StateError(
                    f"a weight recorded as {layout[0]} {list(layout[1])} is now {tensor.dtype} {list(tensor.shape)}",
                    where=Where(stage="replay"),
                    hint="compile the model again after it was changed",
                )
        self._places = self._addresses()

    def _prepare(self) -> None:
        """Derives again what changed weights were derived into."""
        self._weights.refresh(tuple(self._prepared.values()))
        for node, prepared in self._prepared.items():
            self._emitter.constants[self._emitter.node_names[node]] = prepared.value
        self._versions = versions(self._sources)
        self._run = self._emitter.bind()

    def _check_overlap(self, inputs: tuple[torch.Tensor, ...]) -> None:
        for given in inputs:
            if isinstance(given, torch.Tensor) and given.untyped_storage().data_ptr() in self._state:
                raise StateError(
                    "an input shares memory with a state buffer",
                    where=Where(stage="replay"),
                    hint="pass a copy of it: input.clone()",
                )


def _check_bound(segment: Segment) -> None:
    """State must be its own memory: a weight or another buffer that shares it would change under the recording."""
    for name in segment.state:
        if name not in segment.bound:
            raise LoweringError(f"state buffer {name} is not bound", where=Where(stage="record"))
    ranges = []
    for name, tensor in segment.bound.items():
        if not tensor.is_cpu:
            raise LoweringError(f"{name} is on {tensor.device}, not on the cpu", where=Where(stage="record"))
        ranges.append((tensor.data_ptr(), tensor.data_ptr() + byte_extent(tensor), name))
    reach, owner = 0, ""
    for start, end, name in sorted(ranges):
        if start < reach and (name in segment.state or owner in segment.state):
            raise LoweringError(f"{name} shares memory with {owner}, one of them is state", where=Where(stage="record"))
        if end > reach:
            reach, owner = end, name
