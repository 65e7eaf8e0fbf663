"""How the CPU device's rewrites change the flat graph: every new node gets sizes and strides at once."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from gaudicc.runtime.cpu_calls import is_view
from gaudicc.runtime.cpu_flatten import Flat, propagate
from gaudicc.runtime.cpu_weights import PackedWeights, Prepared

_aten = torch.ops.aten


class Editor:
    """Rewrites one flat graph.

    Attributes:
        flat: the graph.
        prepared: placeholder -> the derived tensor it stands for.
        held: derived tensors that weights live in, kept for other recordings to find.
        native: compiled kernels; None: ATen's calls alone.

    Args:
        flat: the graph.
        holder: the recording to be; bound tensors stay where they are while it lives.
        native: see above.
    """

    def __init__(self, flat: Flat, holder: Any, native: ctypes.CDLL | None = None) -> None:
        self.flat = flat
        self.native = native
        self._holder = holder
        self.held: list[Prepared] = []
        self.prepared: dict[fx.Node, Prepared] = {}
        self._numbers: dict[tuple[float, torch.dtype], torch.Tensor] = {}
        self._point: fx.Node | None = None
        self._moved: set[fx.Node] = set()
        self._halves: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}
        self._bound: dict[tuple[int, Any], fx.Node] = {}

    def calls(self) -> Iterator[fx.Node]:
        """The calls of the graph as it is now, in order."""
        return iter([node for node in self.flat.graph.nodes if node.op == "call_function"])

    def weight(self, node: Any) -> torch.Tensor | None:
        """The bound tensor, not state, that a node stands for, through views of it."""
        if not isinstance(node, fx.Node) or node in self.flat.state:
            return None
        if node.op == "placeholder":
            return self.flat.bound.get(node)
        if len(node.all_input_nodes) != 1 or not is_view(node.target):
            return None
        base = self.weight(node.args[0])
        return None if base is None else node.target(base, *node.args[1:], **node.kwargs)  # type: ignore[operator]

    def is_bound(self, tensor: torch.Tensor) -> bool:
        """Whether this very tensor object is bound, not a view of one."""
        return any(tensor is bound for bound in self.flat.bound.values())

    def pin_other_uses(self, weights: PackedWeights, linears: set[fx.Node]) -> None:
        """Pins bound tensors that are read by anything but these nodes."""
        for node, tensor in self.flat.bound.items():
            if not set(node.users) <= linears:
                weights.pin(tensor, self._holder)

    def can_derive(self, tensor: torch.Tensor) -> bool:
        """Whether writes to the tensor are counted, so that what is derived from it can be made again."""
        return not tensor.is_inference()

    @property
    def point(self) -> fx.Node:
        """What the next calls are put before."""
        assert self._point is not None
        return self._point

    def before(self, node: fx.Node) -> Editor:
        """Puts the next calls before `node`."""
        self._point = node
        return self

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Adds a call of an ATen op."""
        assert self._point is not None
        with self.flat.graph.inserting_before(self._point):
            node = self.flat.graph.call_function(target, args, kwargs)
        node.meta["stack_trace"] = self._point.meta.get("stack_trace", "")
        propagate(node)
        return node

    def opaque(self, function: Any, args: tuple[Any, ...], *, like: torch.Tensor) -> fx.Node:
        """Adds a call of something without a meta kernel; its result has the size, strides and dtype of `like`."""
        assert self._point is not None
        with self.flat.graph.inserting_before(self._point):
            node = self.flat.graph.call_function(function, args)
        node.meta["val"] = like
        return node

    def flat_view(self, node: fx.Node, size: list[int]) -> fx.Node:
        """`node` seen with another size; copies only where its strides do not allow a view."""
        value = node.meta["val"]
        if list(value.shape) == size:
            return node
        assert math.prod(size) == value.numel()
        return self.call(_view_or_reshape(value, size), node, size)

    def halves(self, node: fx.Node) -> tuple[fx.Node, fx.Node]:
        """The two halves of a node's last dim, the same nodes for every use."""
        if node not in self._halves:
            last, width = node.meta["val"].dim() - 1, node.meta["val"].shape[-1]
            low = self.call(_aten.slice.Tensor, node, last, 0, width // 2)
            self._halves[node] = (low, self.call(_aten.slice.Tensor, node, last, width // 2, width))
        return self._halves[node]

    def bind(self, name: str, tensor: torch.Tensor) -> fx.Node:
        """A placeholder for a tensor that never moves."""
        key = (id(tensor), tensor.stride())
        if key not in self._bound:
            self._bound[key] = self.flat.bind(name, tensor)
        return self._bound[key]

    def number(self, value: float, name: str, dtype: torch.dtype = torch.float32) -> fx.Node:
        """A placeholder for a tensor of one number, the same for every use."""
        return self.bind(name, self._numbers.setdefault((value, dtype), torch.tensor(value, dtype=dtype)))

    def bind_prepared(self, name: str, prepared: Prepared) -> fx.Node:
        """A placeholder for a derived tensor."""
        key = (id(prepared), "prepared")
        if key not in self._bound:
            node = self.flat.bind(name, prepared.value)
            self._bound[key] = node
            self.prepared[node] = prepared
        return self._bound[key]

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Puts `new` in the place of `old`."""
        old.replace_all_uses_with(new)
        if new.meta["val"].stride() != old.meta["val"].stride():
            self._moved.add(new)

    def collapse_views(self) -> None:
        """Makes one view of a chain of views from contiguous to contiguous: as a whole it keeps the order of elements."""
        for node in self.calls():
            value = node.meta["val"]
            if not is_view(node.target) or not isinstance(value, torch.Tensor) or not value.is_contiguous():
                continue
            base, start = node.args[0], node
            while isinstance(base, fx.Node) and _same_elements(base.meta["val"], value):
                start, base = base, (base.args[0] if is_view(base.target) else None)
            if start is not node and start is not node.args[0]:
                node.target, node.args, node.kwargs = _aten.view.default, (start, list(value.shape)), {}
        self.flat.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output") or n.meta.get("val") is None)

    def finish(self) -> None:
        """Drops what is unused and brings strides up to date behind every replacement that changed them."""
        self.flat.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output") or n.meta.get("val") is None)
        moved = set(self._moved)
        for node in self.calls():
            if not any(source in moved for source in node.all_input_nodes):
                continue
            before = node.meta["val"]
            if node.target in (_aten.view.default, _aten._unsafe_view.default) and isinstance(node.args[0], fx.Node):
                node.target = _view_or_reshape(node.args[0].meta["val"], node.args[1])
            if isinstance(node.target, torch._ops.OpOverload):
                propagate(node)
            if _strides(before) != _strides(node.meta["val"]):
                moved.add(node)
        self._moved.clear()


def is_call(node: Any, target: Any, uses: int = 1) -> bool:
    """Whether a node calls `target` and is read by so many others."""
    return isinstance(node, fx.Node) and node.target is target and len(node.users) == uses


def has_view(value: torch.Tensor, size: Any) -> bool:
    """Whether a tensor can be seen with another size without a copy."""
    try:
        value.view(size)
    except RuntimeError:
        return False
    return True


def _view_or_reshape(value: torch.Tensor, size: Any) -> Any:
    return _aten.view.default if has_view(value, size) else _aten.reshape.default


def _same_elements(base: Any, value: torch.Tensor) -> bool:
    return (
        isinstance(base, torch.Tensor)
        and base.is_contiguous()
        and base.numel() == value.numel()
        and (base.dtype == value.dtype)
    )


def _strides(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (value.shape, value.stride())
    return tuple(map(_strides, value)) if isinstance(value, tuple) else value
