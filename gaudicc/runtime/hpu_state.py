"""Third step of recording on a Gaudi: new values of state are written into the state buffers themselves.

Functional index writes (`index_copy(state, ...)`) become writes of the whole buffer in place, through every piece that
they pass, where nothing reads the old value afterwards. What cannot is copied at the end, once all else has been read.
Never is a view of a buffer written: a recorded graph on a Gaudi gives wrong results then.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from gaudicc.runtime.hpu_pieces import Call, DeviceProgram, Name, Piece, structure

_aten = torch.ops.aten
IN_PLACE: dict[Any, Any] = {
    _aten.index_copy.default: _aten.index_copy_.default,
    _aten.index_put.default: _aten.index_put_.default,
    _aten.index_add.default: _aten.index_add_.default,
    _aten.scatter.src: _aten.scatter_.src,
    _aten.scatter.value: _aten.scatter_.value,
    _aten.masked_fill.Scalar: _aten.masked_fill_.Scalar,
    _aten.masked_fill.Tensor: _aten.masked_fill_.Tensor,
}


def write_state(program: DeviceProgram, state: Mapping[str, int]) -> None:
    """Makes a program write its state; its outputs for state become the buffers themselves.

    Args:
        program: functional; changed in place.
        state: name of a state buffer -> index of the output that is its new value.
    """
    memories = _Memories(program)
    paths: dict[int, set[tuple[int, int]]] = {}
    in_place = set()
    for buffer, index in state.items():
        path = _path(program, Name(buffer), program.outputs[index], memories)
        if path:
            in_place.add(buffer)
            for at, operand, result in path:
                paths.setdefault(at, set()).add((operand, result))
    _write_in_place(program, paths)
    copied = {buffer: index for buffer, index in state.items() if buffer not in in_place}
    _copy_at_end(program, copied, set(state.values()), memories)


Memory = frozenset[Hashable]
"""What a value may lie in: tokens of allocations. Two values may share memory if they have a token in common."""


class _Memories(dict[Name, Memory]):
    """The memory of every value of a functional program; a value that no piece made is an allocation of its own."""

    def __init__(self, program: DeviceProgram) -> None:
        super().__init__()
        inner: dict[Piece, list[set[Hashable]]] = {}
        for at, call in enumerate(program.calls):
            for result, tokens in zip(
                call.results, inner.setdefault(call.piece, _result_tokens(call.piece)), strict=True
            ):
                operands = [call.operands[token] for token in tokens if isinstance(token, int)]
                own = frozenset((at, token) for token in tokens if not isinstance(token, int))
                self[result] = own.union(*(self[name] for name in operands if isinstance(name, Name)))

    def __missing__(self, name: Name) -> Memory:
        return frozenset({name})


def _result_tokens(piece: Piece) -> list[set[Hashable]]:
    """For each result of a piece the operands, by index, and the calls inside whose memory it may lie in."""
    reach: dict[fx.Node, set[Hashable]] = {node: {i} for i, node in enumerate(piece.operands)}
    for node in piece.graph.nodes:
        if node.op == "call_function":
            shared = [reach[each] for each in node.all_input_nodes] if may_share(node) else []
            fresh = not isinstance(node.target, OpOverload) or not node.target.is_view
            reach[node] = {node}.union(*shared) if fresh else set().union(*shared)
    return [reach[result] if isinstance(result, fx.Node) else set() for result in piece.results]


def may_share(node: fx.Node) -> bool:
    """Whether a call's result may lie in the memory of an operand."""
    op = node.target
    if not isinstance(op, OpOverload):
        return op is operator.getitem
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd")
    return composite or any(result.alias_info is not None for result in op._schema.returns)


def _path(program: DeviceProgram, buffer: Name, new: Any, memories: _Memories) -> list[tuple[int, int, int]]:
    """The calls that a buffer's new value passes: (call, operand, result), or nothing if it cannot be written in place."""
    path: list[tuple[int, int, int]] = []
    while new != buffer:
        at = next((i for i, call in enumerate(program.calls) if new in call.results), None)
        if at is None:
            return []
        call = program.calls[at]
        result = call.results.index(new)
        operand = _chain_start(call.piece, result)
        if operand is None or not isinstance(call.operands[operand], Name):
            return []
        old = call.operands[operand]
        later = [each for after in program.calls[at + 1 :] for each in after.operands]
        beside = [each for i, each in enumerate(call.operands) if i != operand]
        others = [each for each in (*later, *beside, *program.outputs) if isinstance(each, Name)]
        if any(memories[old] & memories[each] for each in others):
            return []
        path.append((at, operand, result))
        new = old
    return path


def _chain_start(piece: Piece, result: int) -> int | None:
    """The operand that index writes lead from to a result, if all of them may happen in place."""
    order = {node: i for i, node in enumerate(piece.graph.nodes)}
    node: Any = piece.results[result]
    if piece.results.count(node) > 1:
        return None
    while isinstance(node, fx.Node) and node.op != "placeholder":
        if node.target not in IN_PLACE or not _dies_here(node, order):
            return None
        node = node.args[0]
    return piece.operands.index(node) if isinstance(node, fx.Node) and node is not piece.results[result] else None


def _dies_here(write: fx.Node, order: Mapping[fx.Node, int]) -> bool:
    """Whether nothing reads the value that is written to, or a view of it, at or after the write."""
    old: Any = write.args[0]
    if old in [node for arg in write.args[1:] for node in _nodes(arg)]:
        return False
    waiting = [old]
    while waiting:
        value = waiting.pop()
        users = [user for user in value.users if user is not write or value is not old]
        if any(order[user] >= order[write] for user in users):
            return False
        waiting.extend(user for user in users if may_share(user))
    return True


def _nodes(arg: Any) -> Iterable[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(arg, found.append)
    return found


def _write_in_place(program: DeviceProgram, paths: Mapping[int, set[tuple[int, int]]]) -> None:
    made: dict[tuple[Piece, frozenset[tuple[int, int]]], Piece] = {}
    renamed: dict[Any, Any] = {}
    for at, call in enumerate(program.calls):
        pairs = frozenset(paths.get(at, ()))
        operands = tuple(renamed.get(each, each) if isinstance(each, Name) else each for each in call.operands)
        renamed.update({call.results[result]: operands[operand] for operand, result in pairs})
        if (call.piece, pairs) not in made:
            made[call.piece, pairs] = _variant(call.piece, {result for _, result in pairs}) if pairs else call.piece
        results = tuple(name for i, name in enumerate(call.results) if i not in {result for _, result in pairs})
        program.calls[at] = replace(call, piece=made[call.piece, pairs], operands=operands, results=results)
    program.outputs = tuple(renamed.get(each, each) if isinstance(each, Name) else each for each in program.outputs)


def _variant(piece: Piece, written: set[int]) -> Piece:
    """A piece that writes these results into its operands and does not return them."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    returned = graph.graph_copy(piece.graph, values)
    for result in written:
        node: Any = values[piece.results[result]]
        while node.op != "placeholder":
            node.target = IN_PLACE[node.target]
            node = node.args[0]
    graph.output(tuple(value for i, value in enumerate(returned) if i not in written))  # type: ignore[arg-type]
    return Piece(piece.name, graph, structure(graph))


def _copy_at_end(
    program: DeviceProgram,
    copied: Mapping[str, int],
    state_outputs: set[int],
    memories: _Memories,
) -> None:
    """One more piece: results that lie in a buffer are cloned, then new values are copied into the buffers."""
    moves = {Name(buffer): program.outputs[i] for buffer, i in copied.items() if program.outputs[i] != Name(buffer)}
    targets = set(moves)
    shared = {each for each in (*moves.values(), *program.outputs) if isinstance(each, Name)}
    cloned = [name for name in shared if any(memories[name] & memories[target] for target in targets)]
    returned = [n for n in cloned if any(n == o for i, o in enumerate(program.outputs) if i not in state_outputs)]
    if not moves:
        return
    graph = fx.Graph()
    operands = sorted(
        {*targets, *(v for v in moves.values() if isinstance(v, Name)), *cloned}, key=lambda name: name.text
    )
    nodes: dict[Any, Any] = {}
    for i, name in enumerate(operands):
        nodes[name] = graph.placeholder(f"value_{i}")
        nodes[name].meta["val"] = program.metas[name]
    copies = {name: _called(graph, _aten.clone.default, nodes[name]) for name in sorted(cloned, key=lambda n: n.text)}
    for buffer, new in moves.items():
        _called(graph, _aten.copy_.default, nodes[buffer], copies.get(new, nodes.get(new, new)))
    graph.output(tuple(copies[name] for name in returned))
    results = tuple(Name(f"{name.text}.kept") for name in returned)
    kept = dict(zip(returned, results, strict=True))
    program.calls.append(Call(Piece("state", graph, structure(graph)), tuple(operands), results))
    program.outputs = tuple(
        each if i in state_outputs else kept.get(each, each) if isinstance(each, Name) else each
        for i, each in enumerate(program.outputs)
    )


def _called(graph: fx.Graph, op: OpOverload, *args: Any) -> fx.Node:
    node = graph.call_function(op, args)
    node.meta["val"] = args[0].meta["val"]
    return node
