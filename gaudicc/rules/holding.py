"""What static-state rewrites: an append becomes a write at a row of a buffer, and the program is signed anew."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import fx

from gaudicc.calling import GrowingCache, marker_of
from gaudicc.fake_values import fake_mode_of, propagate
from gaudicc.nodes import output_of, outputs_of, val
from gaudicc.padding.sizes import expression, text
from gaudicc.program import Guard, InputKind, InputSpec, OutputKind, OutputSpec, Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.appends import Append

aten = torch.ops.aten


@dataclass(frozen=True)
class _Marker:
    """What is left of the arguments of one dimension.

    Attributes:
        entry: the cache whose place it takes.
        node: its placeholder: int8, 1 in every other dim.
        rows: its size.
    """

    entry: Append
    node: fx.Node
    rows: fx.Node


class Holding:
    """Rewrites one program.

    Args:
        program: the pass's own copy.
        found: what to hold.
        highs: symbol -> its largest value.
    """

    def __init__(self, program: Program, found: Sequence[Append], highs: dict[str, int]) -> None:
        self.program = program
        self.found = found
        self.highs = highs
        self.names = {dim.symbol: dim.name for dim in program.dimensions}
        self.mode = fake_mode_of(program.root.graph)
        self.root = Rewriter(program.root)
        self.grown: list[tuple[Rewriter, fx.Node]] = []

    def run(self) -> Program:
        """The program with its caches as state."""
        caches = tuple(map(self._entry, self.found))
        markers = self._markers()
        rows = {symbol: marker.rows for symbol, marker in markers.items()}
        for entry, cache in zip(self.found, caches, strict=True):
            value, shape = val(entry.argument), self._shape(entry)
            zero = torch.zeros((), dtype=value.dtype, device=value.device)
            self.program.tensors[cache.state] = zero.expand(shape)  # takes no memory; what is written is a copy of it
            with self.mode:
                entry.argument.meta["val"] = torch.empty(shape, dtype=value.dtype, device=value.device)
        for entry in self.found:
            if entry.call is None:
                self._write(self.root, entry, rows[entry.dimension.symbol], entry.output)
        self._bodies(rows)
        for entry in self.found:
            if entry.call is not None:
                self._read_past(self.root, entry.argument, entry.dim, rows[entry.dimension.symbol], {entry.call})
        self._settle()
        return self._signed(caches, markers)

    def _entry(self, entry: Append) -> GrowingCache:
        calling, outputs = self.program.calling, self.program.outputs
        users = [i for i, spec in enumerate(outputs) if spec.kind is OutputKind.USER]
        leaves = [leaf for leaf in range(calling.out_spec.num_leaves) if leaf not in calling.literals]
        path = entry.spec.source
        return GrowingCache(
            state=path if path not in self.program.tensors else f"{path} as state",
            argument=calling.paths.index(path),
            result=leaves[users.index(entry.output)],
            dim=entry.dim,
            dimension=entry.dimension.name,
            grown=text(expression(val(entry.cat).shape[entry.dim]), self.names),
        )

    def _shape(self, entry: Append) -> list[int]:
        """The buffer's: one row more than any call reads, so that no size of a call is the whole buffer."""
        grown = expression(val(entry.cat).shape[entry.dim])
        most = grown.xreplace({symbol: sympy.Integer(self.highs[str(symbol)]) for symbol in grown.free_symbols})
        shape = list(val(entry.argument).shape)
        shape[entry.dim] = int(most) + 1
        return shape

    def _markers(self) -> dict[str, _Marker]:
        """By symbol, an argument that keeps only the size of the first cache, and the size read off at the top."""
        made: dict[str, _Marker] = {}
        for entry in self.found:
            symbol, value = entry.dimension.symbol, val(entry.argument)
            if symbol in made:
                continue
            with self.root.graph.inserting_after(entry.argument):
                node = self.root.graph.placeholder(f"{entry.argument.name}_rows")
            with self.mode:
                node.meta["val"] = marker_of(value, entry.dim)
            rows = self.root.emit(aten.sym_size.int, node, entry.dim, like=_first(self.root.graph))
            made[symbol] = _Marker(entry, node, rows)
        return made

    def _bodies(self, rows: dict[str, fx.Node]) -> None:
        """Rewrites every body once, and hands its call sites what it needs."""
        for name in dict.fromkeys(entry.body for entry in self.found if entry.body is not None):
            entries = [entry for entry in self.found if entry.body == name]
            calls = list(dict.fromkeys(entry.call for entry in entries if entry.call is not None))
            body = Rewriter(getattr(self.program.root, name))
            for entry in [entry for entry in entries if entry.call is calls[0]]:
                entry.base.meta["val"] = val(entry.argument)
                symbol = entry.dimension.symbol
                inside = _size_operand(body.graph, symbol)
                if inside is None:
                    inside = _new_operand(body, val(rows[symbol]))
                    for call in calls:
                        call.args = (*call.args, rows[symbol])
                self._write(body, entry, inside, entry.slot)
            body.finish()

    def _write(self, rewriter: Rewriter, entry: Append, rows: fx.Node, slot: int) -> None:
        """`cat` becomes a write at a row, and what reads it reads the rows that are valid then."""
        cat, dim = entry.cat, entry.dim
        count: Any = val(entry.new).shape[dim]
        if isinstance(count, torch.SymInt):
            count = rewriter.emit(aten.sym_size.int, entry.new, dim, like=cat)
        end = rewriter.emit(operator.add, rows, count, like=cat)
        written = rewriter.emit(aten.slice_scatter.default, entry.base, entry.new, dim, rows, end, like=cat)
        grown = rewriter.emit(aten.slice.Tensor, written, dim, 0, end, like=cat)
        results = list(outputs_of(rewriter.graph))
        results[slot] = written
        output_of(rewriter.graph).args = (tuple(results),)
        cat.replace_all_uses_with(grown)
        rewriter.graph.erase_node(cat)
        self.grown.append((rewriter, grown))
        self._read_past(rewriter, entry.base, dim, rows, {written})

    def _read_past(self, rewriter: Rewriter, base: fx.Node, dim: int, rows: fx.Node, kept: set[fx.Node]) -> None:
        """Whatever else reads the argument reads its valid rows, as they were before the call."""
        others = [user for user in base.users if user not in kept]
        for user in [user for user in others if user.target is aten.sym_size.int and user.args[1] == dim]:
            if user is not rows:
                rewriter.replace(user, rows)
                others.remove(user)
        if others:
            top = rows.next if rows.op != "placeholder" else _first(rewriter.graph)
            past = rewriter.emit(aten.slice.Tensor, base, dim, 0, rows, like=top)
            for user in others:
                user.replace_input_with(base, past)

    def _settle(self) -> None:
        """Types everything anew: the valid rows of a buffer lie apart, where a `cat` had no gaps."""
        values = [val(node) for node in self.program.root.graph.find_nodes(op="placeholder")]
        try:
            propagate(self.program.root, values, self.mode)
        except (RuntimeError, ValueError):  # a view of what has no gaps
            for rewriter, grown in self.grown:
                users = list(grown.users)
                whole = rewriter.emit(aten.clone.default, grown, like=grown.next, memory_format=torch.contiguous_format)
                for user in users:
                    user.replace_input_with(grown, whole)
                rewriter.finish()
            propagate(self.program.root, values, self.mode)
        self.root.finish()

    def _signed(self, caches: tuple[GrowingCache, ...], markers: dict[str, _Marker]) -> Program:
        """The program with the signature that its graphs have now."""
        program = self.program
        states = {entry.spec.name: cache.state for entry, cache in zip(self.found, caches, strict=True)}
        sizes = {marker.entry.spec.name: marker.node.name for marker in markers.values()}
        targets = {entry.output: states[entry.spec.name] for entry in self.found}
        inputs: list[InputSpec] = []
        for spec in program.inputs:
            held = spec.name in states
            inputs.append(InputSpec(spec.name, InputKind.STATE, states[spec.name]) if held else spec)
            if spec.name in sizes:
                inputs.append(InputSpec(sizes[spec.name], InputKind.USER, spec.source))
        example = {name: value for name, value in program.example.items() if name not in states}
        for name, marker in sizes.items():
            dim = next(m.entry.dim for m in markers.values() if m.node.name == marker)
            example[marker] = marker_of(program.example[name], dim)
        return replace(
            program,
            inputs=tuple(inputs),
            outputs=tuple(
                OutputSpec(OutputKind.STATE, targets[i]) if i in targets else spec
                for i, spec in enumerate(program.outputs)
            ),
            guards=(*program.guards, *_guards(program, self.found, markers)),
            calling=replace(program.calling, caches=caches),
            dimensions=tuple(replace(dim, positions=_kept(dim.positions, states, sizes)) for dim in program.dimensions),
            example=example,
        )


def _guards(program: Program, found: Sequence[Append], markers: dict[str, _Marker]) -> Iterator[Guard]:
    """What a call's caches must be: the host checks them, for the graph never sees them."""
    for entry in found:
        marker, name = markers[entry.dimension.symbol], entry.spec.name
        for at, size in enumerate(program.example[name].shape):
            if at != entry.dim:
                yield Guard(f"{name}.shape[{at}] == {size}", f"captured with this size of {entry.spec.source}")
        if marker.entry is not entry:
            first = f"{marker.node.name}.shape[{marker.entry.dim}]"
            yield Guard(f"{name}.shape[{entry.dim}] == {first}", f"both are {entry.dimension.name}")


def _kept(
    positions: tuple[tuple[str, int], ...], states: dict[str, str], sizes: dict[str, str]
) -> tuple[tuple[str, int], ...]:
    """Where a size can still be read off."""
    moved = ((sizes.get(name, name if name not in states else None), at) for name, at in positions)
    return tuple((name, at) for name, at in moved if name is not None)


def _first(graph: fx.Graph) -> fx.Node:
    first: fx.Node = next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
    return first


def _size_operand(graph: fx.Graph, symbol: str) -> fx.Node | None:
    """The operand of a body that is a size, if it has one."""
    sizes = [node for node in graph.find_nodes(op="placeholder") if isinstance(val(node), torch.SymInt)]
    return next((node for node in sizes if str(expression(val(node))) == symbol), None)


def _new_operand(rewriter: Rewriter, value: torch.SymInt) -> fx.Node:
    """One more operand of a body, behind the others."""
    with rewriter.graph.inserting_after(rewriter.graph.find_nodes(op="placeholder")[-1]):
        node = rewriter.graph.placeholder("rows")
    node.meta["val"] = value
    rewriter.modified = True
    return node
