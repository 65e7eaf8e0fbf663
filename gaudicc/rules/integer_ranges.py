"""Which int64 values of a program provably fit the 32 bits that a Gaudi computes them in, and which do not."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import zip_longest
from typing import Any

import torch
from torch import fx
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from gaudicc.nodes import body_of, call_loop, call_region, operands_of, outputs_of, val
from gaudicc.program import InputKind, Program
from gaudicc.rules.interval_calls import CASTS, IntervalCall, Known, entries, held_by
from gaudicc.rules.interval_forms import MOVES
from gaudicc.rules.intervals import ALL, FLAG, INF, INT32, Interval, add, exactly, hull

aten = torch.ops.aten
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
# What an index reads, whole: an index out of range is an error in eager, so a call that is valid keeps to it.
_WHOLE = (
    aten.view.default, aten.reshape.default, aten.unsqueeze.default, aten.expand.default, aten.permute.default,
    aten.transpose.int, aten.clone.default, aten.alias.default, aten._unsafe_view.default, aten.flatten.using_ints,
)  # fmt: skip
_FILLS = (aten.full.default, aten.full_like.default, aten.new_full.default)
_READS = {aten.embedding.default: (1, 0, None), aten.index_select.default: (2, 0, 1), aten.gather.default: (2, 0, 1)}


@dataclass
class IntegerRanges:
    """Walks a program in order, bodies once per call, and keeps what cannot be proved.

    Attributes:
        program: whose dimensions bound the sizes.
        declared: path of an argument or a buffer -> what its values are said to be.
        open: op -> the interval of its true values, where 32 bits may not hold them; None where nothing is known.
        held: tensor of the root -> what its values are, once they are computed or checked.
        seen: how many int64 results were looked at.
    """

    program: Program
    declared: Mapping[str, Interval] = field(default_factory=dict)
    open: dict[fx.Node, Interval | None] = field(default_factory=dict)
    held: dict[fx.Node, Known] = field(default_factory=dict)
    seen: int = 0

    def run(self) -> None:
        """Walks the root from what its inputs hold."""
        placeholders = {node.name: node for node in self.program.root.graph.nodes if node.op == "placeholder"}
        self._graph(self.program.root, [self._input(spec, placeholders[spec.name]) for spec in self.program.inputs])

    def _input(self, spec: Any, node: fx.Node) -> Known:
        value = val(node)
        if not isinstance(value, torch.Tensor):
            return self.size(value)
        held = range_of_dtype(value.dtype).cut(INT32) if value.dtype in _INTEGERS else range_of_dtype(value.dtype)
        if spec.kind is InputKind.CONSTANT:
            return held_by(self.program.tensors[spec.source]).cut(held)
        if spec.kind is InputKind.LENGTH:
            return hull(Interval(dim.low, dim.high) for dim in self.program.dimensions if dim.name == spec.source)
        if value.dtype is torch.int64:
            held = self.declared.get(spec.source, held)
        if spec.kind is InputKind.USER and value.dtype is torch.int64:
            for bound in self._indexed(node):
                held = bound.cut(held) if bound.high < held.high else held
        return held

    def _indexed(self, node: fx.Node) -> Iterator[Interval]:
        """What the ops say that read with a tensor, as it is, as an index."""
        for user in node.users:
            args: Any = user.args
            if user.target in _WHOLE or (user.target in CASTS and val(user).dtype in (torch.int64, torch.int32)):
                yield from self._indexed(user)
            elif user.target in _READS and args[_READS[user.target][0]] is node:
                _, read, place = _READS[user.target]
                dim = 0 if place is None else args[place]
                shape = val(args[read]).shape
                yield Interval(0, self.size(shape[dim] if shape else 1).high - 1)
            elif user.target is call_region:
                body = getattr(user.graph.owning_module, str(args[0].target))
                inner = body.graph.find_nodes(op="placeholder")
                for place, operand in enumerate(operands_of(user)):
                    if operand is node:
                        yield from self._indexed(inner[place])

    def size(self, size: Any) -> Interval:
        """Of a size: a number, or an expression over the program's dimensions."""
        if isinstance(size, (bool, int, float)):
            return exactly(size)
        if not isinstance(size, torch.SymInt):
            return ALL
        bounds = dict(size.node.shape_env.var_to_range) if size.node.shape_env else {}
        for dim in self.program.dimensions:
            known = next((symbol for symbol in size.node.expr.free_symbols if str(symbol) == dim.symbol), None)
            if known is not None and dim.high >= 0:
                bounds[known] = ValueRanges(dim.low, dim.high)
        found = bound_sympy(size.node.expr, bounds)
        low, high = (int(end) if end.is_Integer else INF for end in (found.lower, found.upper))
        return Interval(low if low < INF else -INF, high)

    def entries(self, node: fx.Node) -> Interval:
        """Of how many entries the operands of a node have together, and so of how many one result may be a sum."""
        shapes = [value.shape for value in map(val, node.all_input_nodes) if isinstance(value, torch.Tensor)]
        return reduce(add, (entries(shape, self.size) for shape in shapes), exactly(0))

    # -- graphs ----------------------------------------------------------------------------------------------------

    def _graph(self, module: fx.GraphModule, operands: Sequence[Known]) -> tuple[Known, ...]:
        known: dict[fx.Node, Known] = {}
        feed = iter(operands)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                known[node] = next(feed)
            elif node.op == "call_function":
                known[node] = self._node(module, node, known)
        if module is self.program.root:
            self.held = known
        return tuple(known.get(value, ALL) for value in outputs_of(module.graph))

    def _node(self, module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Known]) -> Known:
        if node.target is operator.getitem and isinstance(known.get(node.args[0]), list):  # type: ignore[arg-type]
            return known[node.args[0]][node.args[1]]  # type: ignore[index]
        if node.target is call_region:
            return list(self._graph(body_of(module, node), [known.get(arg, ALL) for arg in operands_of(node)]))
        if node.target is call_loop:
            return self._loop(module, node, [known.get(arg, ALL) for arg in operands_of(node)])
        value = val(node)
        if not isinstance(value, (torch.Tensor, tuple, list)):
            return self.size(value)
        found = IntervalCall(node, lambda arg: known.get(arg, ALL), self.size).result()
        if isinstance(value, torch.Tensor):
            return self._settled(node, found, value.dtype)
        results = (found,) * len(value) if found is None or isinstance(found, Interval) else found
        read = {user.args[1] for user in node.users}
        return [
            (self._settled(node, each, leaf.dtype) if place in read else range_of_dtype(leaf.dtype).cut(INT32))
            if isinstance(leaf, torch.Tensor)
            else self.size(leaf)
            for place, (each, leaf) in enumerate(zip_longest(results, value))
        ]

    def _loop(self, module: fx.GraphModule, node: fx.Node, operands: list[Known]) -> Known:
        """A trip is walked from what the first is given; what it widens may be anything the dtype holds."""
        body, carried = body_of(module, node), int(node.args[3])  # type: ignore[arg-type]
        limit = INT32.high if node.args[1] is None else self.size(_size_of(node.args[1])).high - 1
        number = Interval(0, max(limit, 0))
        before = dict(self.open)
        results = self._graph(body, [number, *operands])
        inner = body.graph.find_nodes(op="placeholder")[1:]
        widened = [
            given if result.within(given) else range_of_dtype(val(inner[i]).dtype).cut(INT32)
            for i, (given, result) in enumerate(zip(operands[:carried], results[:carried], strict=True))
        ]
        if widened != operands[:carried]:
            self.open = before
            results = self._graph(body, [number, *widened, *operands[carried:]])
        last = [hull(pair) for pair in zip(widened, results[:carried], strict=True)]
        return [*last, *(hull((exactly(0), row)) for row in results[carried:])]

    def _settled(self, node: fx.Node, found: Interval | None, dtype: torch.dtype) -> Interval:
        """What a result holds once it is computed, or checked."""
        holds = range_of_dtype(dtype)
        if dtype is not torch.int64:
            fits = found is not None and found.within(holds)
            return found if fits else holds  # type: ignore[return-value]
        self.seen += 1
        if found is not None and found.within(INT32):
            return found
        if node.target not in MOVES or fills_beyond(node):  # which else only hand on what was checked before
            self.open[node] = found
        return INT32 if found is None else found.cut(INT32)


def fills_beyond(node: fx.Node) -> bool:
    """Whether a node fills a tensor with a number that does not fit 32 bits; where one is an operand, the device's host looks."""
    if node.target not in _FILLS:
        return False
    number = node.args[-1]
    return type(number) is int and not exactly(number).within(INT32)


def range_of_dtype(dtype: torch.dtype) -> Interval:
    """Every value of a dtype."""
    if dtype is torch.bool:
        return FLAG
    if dtype in _INTEGERS:
        return Interval(torch.iinfo(dtype).min, torch.iinfo(dtype).max)
    return ALL


def _size_of(size: Any) -> Any:
    return val(size) if isinstance(size, fx.Node) else size
