"""Caches that a program takes, grows by `cat` and gives back: found by structure, in the root and in region bodies."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from gaudicc.nodes import call_region, outputs_of, regions_called, val
from gaudicc.padding.sizes import expression, grows
from gaudicc.program import Dimension, InputKind, InputSpec, OutputKind, Program
from gaudicc.rules.match import argument

aten = torch.ops.aten
_CATS = (aten.cat.default, aten.concat.default, aten.concatenate.default)


@dataclass(frozen=True)
class Append:
    """One argument of the model that comes back with rows behind it.

    Attributes:
        spec: the argument.
        argument: its placeholder in the root.
        dimension: its rows before a call.
        dim: along which it grows.
        cat: the node that joins the new rows to it, in the root or in a body.
        base: what it joins them to: `argument`, or the placeholder of the body.
        slot: which output of its graph `cat` is.
        call: the region call that hands `argument` to the body; None in the root.
        operand: its place among the arguments of `call`.
        output: which output of the root gives it back.
    """

    spec: InputSpec
    argument: fx.Node
    dimension: Dimension
    dim: int
    cat: fx.Node
    base: fx.Node
    slot: int
    call: fx.Node | None
    operand: int
    output: int

    @property
    def new(self) -> fx.Node:
        """The rows that are joined."""
        return self.cat.args[0][1]  # type: ignore[index, return-value]

    @property
    def body(self) -> str | None:
        """The name of the body that `cat` is in."""
        return None if self.call is None else str(self.call.args[0].target)  # type: ignore[union-attr]

    @property
    def kind(self) -> tuple[object, ...]:
        """What all call sites of a body must agree on."""
        shape = tuple(map(str, val(self.argument).shape))
        return self.operand, self.slot, self.dim, self.dimension.symbol, shape


class _Unproved(Exception):
    """Why an argument that looks like a growing cache cannot be held as state."""


def appends(program: Program) -> tuple[list[Append], list[str]]:
    """The caches of a program that can be held as state.

    Args:
        program: with symbolic sizes, outputs as captured.

    Returns:
        The caches in the order of the arguments, and for each one that only looks like one a sentence that says why.
    """
    found: list[Append] = []
    notes: list[str] = []
    placeholders = {node.name: node for node in program.root.graph.find_nodes(op="placeholder")}
    for spec in program.user_inputs():
        try:
            found += _append(program, spec, placeholders[spec.name])
        except _Unproved as reason:
            notes.append(f"{spec.source} stays an argument: {reason}")
    agreed = [entry for entry in found if _sites_agree(program, entry, found)]
    notes += [
        f"{entry.spec.source} stays an argument: layers that share a body treat theirs otherwise"
        for entry in found
        if entry not in agreed
    ]
    return agreed, notes


def _append(program: Program, spec: InputSpec, node: fx.Node) -> list[Append]:
    """The one append of an argument; none if it is never joined to anything."""
    dims = {at: dim for dim in program.dimensions for name, at in dim.positions if name == spec.name}
    joined = [(*place, dims) for place in _joins(program, node) if _dim_of(place[-1]) in dims]
    entries = [entry for place in joined for entry in _given_back(program, spec, node, *place)]
    if not joined:
        return []
    if len(entries) != 1:
        raise _Unproved(f"it is joined to new rows {len(joined)} times and given back {len(entries)} times")
    _prove(program, entries[0], dims)
    return entries


def _joins(program: Program, node: fx.Node) -> Iterator[tuple[fx.Node | None, int, fx.Node, fx.Node]]:
    """Every `cat` that begins with an argument: region call or None, its operand, what is joined to, the `cat`."""
    for user in node.users:
        if _begins(user, node):
            yield None, 0, node, user
        elif user.target is call_region:
            body = getattr(program.root, str(user.args[0].target))  # type: ignore[union-attr]
            inner = body.graph.find_nodes(op="placeholder")
            for operand in (i for i, arg in enumerate(user.args) if arg is node):
                base = inner[operand - 1]
                yield from ((user, operand, base, cat) for cat in base.users if _begins(cat, base))


def _begins(cat: fx.Node, base: fx.Node) -> bool:
    return cat.target in _CATS and cat.args[0][0] is base  # type: ignore[index]


def _dim_of(cat: fx.Node) -> int:
    rank: int = val(cat).dim()
    return int(argument(cat, 1, "dim", 0)) % rank


def _given_back(
    program: Program,
    spec: InputSpec,
    node: fx.Node,
    call: fx.Node | None,
    operand: int,
    base: fx.Node,
    cat: fx.Node,
    dims: dict[int, Dimension],
) -> Iterator[Append]:
    """The outputs of the model that are this `cat`."""
    inner = outputs_of(cat.graph)
    for slot in (i for i, value in enumerate(inner) if value is cat):
        results = [cat] if call is None else [user for user in call.users if user.args[1] == slot]
        for output, (value, kind) in enumerate(zip(outputs_of(program.root.graph), program.outputs, strict=True)):
            if value in results and kind.kind is OutputKind.USER and (call is not None or slot == output):
                dim = _dim_of(cat)
                yield Append(spec, node, dims[dim], dim, cat, base, slot, call, operand, output)


def _prove(program: Program, entry: Append, dims: dict[int, Dimension]) -> None:
    """Refuses what a buffer of fixed size, written at a row, would not be equal to."""
    if len(entry.cat.args[0]) != 2:  # type: ignore[arg-type]
        raise _Unproved("more than one tensor is joined to it")
    if len(dims) > 1:
        others = " and ".join(dim.name for at, dim in dims.items() if at != entry.dim)
        raise _Unproved(f"{others} is dynamic too, and a buffer would have gaps")
    if entry.dimension.high < 0:
        raise _Unproved(f"{entry.dimension.name} has no largest size")
    if val(entry.cat).dtype != val(entry.argument).dtype or val(entry.new).dtype != val(entry.argument).dtype:
        raise _Unproved("its dtype changes")
    ranges = {dim.symbol: (dim.low, dim.high) for dim in program.dimensions}
    added = expression(val(entry.new).shape[entry.dim])
    if any(str(symbol) not in ranges for symbol in added.free_symbols) or not grows(added, ranges):
        raise _Unproved("nothing bounds how many rows a call adds")
    if any(ranges[str(symbol)][1] < 0 for symbol in added.free_symbols):
        raise _Unproved("nothing bounds how many rows a call adds")
    if entry.call is not None:
        read = [user for user in entry.call.users if user.args[1] == entry.slot]
        if len(read) != 1 or any(user.op != "output" for user in read[0].users):
            raise _Unproved("it is read again behind the layer that grows it")
        if sum(arg is entry.argument for arg in entry.call.args) != 1:
            raise _Unproved("its layer takes it twice")


def _sites_agree(program: Program, entry: Append, found: list[Append]) -> bool:
    """Whether every call of the body that an append is in hands it such a cache."""
    if entry.call is None:
        return True
    calls = [call for _, module in program.graphs() for call in regions_called(module.graph)]
    sites = [node for node, name in calls if name == entry.body]
    kinds = {other.call: other.kind for other in found if other.body == entry.body and other.operand == entry.operand}
    return all(kinds.get(site) == entry.kind for site in sites)


def static_buffers(program: Program) -> Iterator[str]:
    """The state buffers that a model writes by index as it is, as transformers' `StaticCache` does: source names."""
    state = {spec.source: spec.name for spec in program.inputs if spec.kind is InputKind.STATE}
    for value, spec in zip(outputs_of(program.root.graph), program.outputs, strict=True):
        if spec.kind is OutputKind.STATE and _written(program, value) == state[str(spec.target)]:
            yield str(spec.target)


_WRITES = (aten.index_copy.default, aten.index_put.default, aten.slice_scatter.default, aten.scatter.src)


def _written(program: Program, value: object) -> str | None:
    """The placeholder of the root that a value is, but for rows written by index; None for any other value."""
    if not isinstance(value, fx.Node):
        return None
    if value.target is operator.getitem and value.args[0].target is call_region:  # type: ignore[union-attr]
        call, slot = value.args
        body = getattr(program.root, str(call.args[0].target))  # type: ignore[union-attr]
        inner = _base(outputs_of(body.graph)[slot])  # type: ignore[index]
        places = body.graph.find_nodes(op="placeholder")
        value = call.args[1 + places.index(inner)] if inner in places else None  # type: ignore[union-attr]
        return value.name if isinstance(value, fx.Node) and value.op == "placeholder" else None
    base = _base(value)
    return base.name if base is not None and base.op == "placeholder" else None


def _base(value: object) -> fx.Node | None:
    """What writes by index began with; None if there are none."""
    written = False
    while isinstance(value, fx.Node) and value.target in _WRITES:
        value, written = value.args[0], True
    return value if isinstance(value, fx.Node) and written else None
