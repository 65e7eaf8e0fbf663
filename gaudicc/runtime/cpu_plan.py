"""Fourth step of recording on the CPU: where every value lives, and which writes of state happen in place.

A value is *fixed* (its tensor is known when recording ends: bound tensors, planned buffers and all views of them) or a
*local* (a Python variable of the generated function). Planned buffers share one arena by liveness.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import fx

from gaudicc.runtime.cpu_calls import callee, is_maybe_view, is_view, writer
from gaudicc.runtime.cpu_flatten import Flat, byte_extent, is_dense
from gaudicc.runtime.cpu_fuse import rotary
from gaudicc.runtime.cpu_native import NativeStore

_aten = torch.ops.aten
_ALIGNMENT = 64
SLICE_WRITERS = frozenset({_aten.slice_scatter.default, _aten.select_scatter.default})


class Home(Enum):
    """Where a value lives."""

    FIXED = "a tensor known when recording ends"
    BUFFER = "a planned buffer: fixed, and written with out="
    LOCAL = "a variable of the generated function"


@dataclass(slots=True)
class Plan:
    """Homes, aliases and lifetimes of all values of a flat graph.

    Attributes:
        order: node -> position.
        home: node -> where its value lives.
        root: node -> the node whose storage its value shares.
        last: root -> position of the last use of any of its aliases.
        offsets: root of a planned buffer -> its first byte in the arena.
        arena_bytes: size of the arena.
        writes: node that overwrites a state buffer in place -> the buffer's placeholder.
        copies: placeholder of a state buffer -> node that is copied into it at the end.
        kept: outputs, by index, that are returned as they are; the others are copied to fresh storage.
    """

    order: dict[fx.Node, int]
    home: dict[fx.Node, Home] = field(default_factory=dict)
    root: dict[fx.Node, fx.Node] = field(default_factory=dict)
    last: dict[fx.Node, int] = field(default_factory=dict)
    offsets: dict[fx.Node, int] = field(default_factory=dict)
    arena_bytes: int = 0
    writes: dict[fx.Node, fx.Node] = field(default_factory=dict)
    copies: dict[fx.Node, Any] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)


def plan(flat: Flat, *, borrow: bool) -> Plan:
    """Plans one flat graph."""
    _places_first(flat)
    result = Plan({node: position for position, node in enumerate(flat.graph.nodes)})
    for node in flat.graph.nodes:
        result.root[node] = result.root[node.args[0]] if _shares(node) else node
    _plan_state(flat, result)
    _plan_outputs(flat, result, borrow=borrow)
    returned = set() if borrow else {result.root[flat.outputs[index]] for index in result.kept}
    for node in flat.graph.nodes:
        result.home[node] = _home(flat, result, node, returned)
        for source in node.all_input_nodes:
            result.last[result.root[source]] = result.order[node]
    _plan_arena(flat, result)
    return result


def _places_first(flat: Flat) -> None:
    """Computes where state is written before the first write of all, so that every place is checked before anything changes."""
    writes = {node for buffer, index in flat.state.items() for node in _write_chain(flat.outputs[index], buffer)}
    first = next((node for node in flat.graph.nodes if node in writes), None)
    behind: set[fx.Node] = set()  # what knows of a write
    for node in list(flat.graph.nodes):
        if node in writes or not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
    needed, pending = set(), [index for node in writes for index, _, _ in written_at(node)]
    while pending:
        node = pending.pop()
        if node.op == "call_function" and node not in behind and node not in needed:
            needed.add(node)
            pending += node.all_input_nodes
    late = False
    for node in list(flat.graph.nodes):
        late |= node is first
        if late and first is not None and node in needed:
            first.prepend(node)


def written_at(node: fx.Node) -> list[tuple[fx.Node, int, int]]:
    """Index tensors of a write: the node, the size it indexes, the lowest legal index."""
    size = node.meta["val"].shape
    if isinstance(node.target, NativeStore):
        return [(node.args[node.target.index], size[0], 0)]  # type: ignore[list-item]
    name = node.target._schema.name.removeprefix("aten::") if node.target not in SLICE_WRITERS else ""  # type: ignore[union-attr]
    if name == "index_put":
        entries = enumerate(node.args[1])  # type: ignore[arg-type]
        return [(index, size[dim], -size[dim]) for dim, index in entries if _is_integer(index)]
    if name in ("index_copy", "index_add", "index_fill", "scatter", "scatter_add") and size:
        index = node.args[2]
        return [(index, size[int(node.args[1])], 0)] if _is_integer(index) else []  # type: ignore[arg-type,list-item]
    return []


def _is_integer(index: Any) -> bool:
    return isinstance(index, fx.Node) and index.meta["val"].dtype in (torch.int64, torch.int32)


def _shares(node: fx.Node) -> bool:
    """Whether a call's result is, or may be, an alias of its first argument."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.target is operator.getitem:
        return is_view(node.args[0].target)
    return is_view(node.target) or is_maybe_view(node.target)


def _plan_state(flat: Flat, result: Plan) -> None:
    """Writes state in place where nothing reads the old value later; else copies the new value at the end."""
    for buffer, index in flat.state.items():
        new = flat.outputs[index]
        if new is buffer:
            continue
        chain = _write_chain(new, buffer)
        for node in chain:
            if not _may_overwrite(flat, result, node, buffer):
                break
            result.writes[node] = buffer
            for alias, root in result.root.items():
                if root is node:
                    result.root[alias] = buffer
        if new not in result.writes or result.writes[new] is not buffer:
            result.copies[buffer] = new


def _write_chain(new: Any, buffer: fx.Node) -> list[fx.Node]:
    """The writes that lead from the buffer's old value to its new one, first one first; empty if others do."""
    chain: list[fx.Node] = []
    while isinstance(new, fx.Node) and (writer(new.target) or new.target in SLICE_WRITERS):
        chain.insert(0, new)
        new = new.args[0]
        if new is buffer:
            return chain
    return []


def _may_overwrite(flat: Flat, result: Plan, node: fx.Node, buffer: fx.Node) -> bool:
    """Whether no alias of the value that `node` starts from is read at or after `node`, by anything but its base."""
    base, *others = node.args
    if node in result.writes or node.meta["val"].stride() != buffer.meta["val"].stride():
        return False
    old = {alias for alias, root in result.root.items() if root is buffer}
    sources: set[fx.Node] = set()
    fx.map_arg((others, node.kwargs), sources.add)
    if base not in old or sources & old:
        return False
    later = {user for alias in old for user in alias.users if result.order[user] > result.order[node]}
    return all(user.op == "output" for user in later) and old.isdisjoint(flat.outputs)


def _plan_outputs(flat: Flat, result: Plan, *, borrow: bool) -> None:
    """An output is returned as it is if nothing else can hold its storage, or if it may be borrowed."""
    taken: set[fx.Node] = set(flat.bound) | set(flat.inputs)
    for index, out in enumerate(flat.outputs):
        if index in flat.state.values() or not isinstance(out, fx.Node):
            continue
        root = result.root[out]
        whole = out.meta["val"].numel() == _numel(root) and root.target is not rotary
        if root not in taken and (borrow or whole):
            result.kept.add(index)
            if not borrow:
                taken.add(root)


def _numel(node: fx.Node) -> int:
    value = node.meta["val"]
    return value.numel() if isinstance(value, torch.Tensor) else -1


def _home(flat: Flat, result: Plan, node: fx.Node, returned: set[fx.Node]) -> Home:
    if node in flat.bound or node in result.writes:
        return Home.FIXED
    if node.op != "call_function":
        return Home.LOCAL
    if is_view(node.target) or node.target is operator.getitem:
        return Home.LOCAL if result.home[node.args[0]] is Home.LOCAL else Home.FIXED  # type: ignore[index]
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.numel() or not is_dense(value) or node in returned:
        return Home.LOCAL
    planned = node.target is rotary or (callee(node.target).out and _takes_tensor_first(node))
    return Home.BUFFER if planned else Home.LOCAL


def _takes_tensor_first(node: fx.Node) -> bool:
    first = node.args[0] if node.args else None
    return isinstance(first, (fx.Node, list, tuple))


def _plan_arena(flat: Flat, result: Plan) -> None:
    """Gives each planned buffer the lowest gap that is free during its life."""
    placed: list[tuple[int, int, int]] = []  # first byte, end byte, last use
    for node in flat.graph.nodes:
        if result.home[node] is not Home.BUFFER:
            continue
        size = -(-byte_extent(node.meta["val"]) // _ALIGNMENT) * _ALIGNMENT
        born, offset = result.order[node], 0
        for low, high, last in sorted(placed):
            if last < born:
                continue
            if low - offset >= size:
                break
            offset = max(offset, high)
        placed.append((offset, offset + size, result.last.get(node, born)))
        result.offsets[node] = offset
        result.arena_bytes = max(result.arena_bytes, offset + size)
