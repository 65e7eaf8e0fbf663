"""stagger-rows: what is computed row by row -> halves of the rows, one's TPC work under the other's products; QKV apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import fx

from gaudicc.graph_module import copy_nodes
from gaudicc.invariants import ENGINE_ASSIGNED, LEGAL_OPS, STATIC, TYPED, Invariant, verdict_of
from gaudicc.kernels import rms_norm, rotary
from gaudicc.machine import CHIPS, Chip, load_chip, vendor_schedule
from gaudicc.machine.fx_order import bring_forward, order_by_schedule
from gaudicc.machine.fx_program import ProgramTasks
from gaudicc.machine.split import LEAST_GAIN, limits_of
from gaudicc.nodes import CALLS, is_op, val
from gaudicc.pipeline import GraphPass, Numerics
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.rules.parts import MOVES, fused_products, read_parts, replace_view, retype, split_products, transposed_dim
from gaudicc.targets import Engine

aten = torch.ops.aten
# Numbers of parts that are tried.
_PARTS = (2, 4)
# Rows that a part has at least: with fewer, a product fills no tile of the MME.
_LEAST_ROWS = 256
# Ops besides the elementwise ones whose row of a result depends on the same row of their first operand only.
_BY_ROW = (aten.linear.default, rms_norm, aten.layer_norm.default)
_ALSO_ELEMENTWISE = (aten._to_copy.default, aten.clone.default, rotary)  # rotary: but for the last dim


@dataclass(frozen=True)
class StaggerRows(GraphPass):
    """Cuts projections, norms and activations into parts of the batch, or of the tokens, where that is modelled faster.

    A norm or an activation is one TPC node that waits for a whole product, and the next product waits for it, so the MME
    idles. In halves, Gaudi's graph compiler runs the TPC work of one half under the products of the other, from layer to
    layer. Attention keeps its own slices; each reads the halves that hold its rows and keys. Halves of the batch are taken
    where there are any, else halves of the tokens. A product of which pieces are taken (a fused QKV projection) may become one
    product a piece, so that what follows the first piece runs under the others. Nodes are put in the order in which list
    scheduling starts them: what the graph compiler does not slice itself it hands out much as it stands. Long ops that wait for
    little, such as copies of experts' weights, are brought forward where that is faster.

        %5 = gaudicc.rms_norm(%x, %w); %6 = aten.linear(%5, %p)
        ->
        %7 = aten.slice(%x, 1, 0, 512); %8 = gaudicc.rms_norm(%7, %w); %9 = aten.linear(%8, %p); ...
        %6 = aten.cat([%9, %12], 1)

    Refuses (and leaves whole) what gains less than 3 %, parts of fewer than 256 rows, and a target that the machine model
    does not know. Every time in the notes is modelled.

    Attributes:
        parts: so many whatever the model says, 1 for none; for tests and experiments.
    """

    parts: int | None = None

    name: ClassVar[str] = "stagger-rows"
    requires: ClassVar[frozenset[Invariant]] = frozenset({TYPED, STATIC, LEGAL_OPS, ENGINE_ASSIGNED})
    numerics: ClassVar[Numerics] = Numerics.ROUNDING

    def rewrite(self, rewriter: Rewriter, program: Program) -> Iterator[str]:
        """Every way is tried on a copy of the graph and timed."""
        lead = _lead(rewriter.module)
        if lead is None or program.target is None or program.target.name not in CHIPS:
            return
        if self.parts is not None:
            if self.parts > 1 and (dim := _dim(lead, self.parts, least=1)) is not None:
                _cut(rewriter, program, lead, dim, self.parts)
            return
        chip, ways = load_chip(program.target.name), list(_ways(rewriter.graph, lead))
        if not ways:
            return
        _, least = _timed(rewriter.module, chip)
        taken = _copied(rewriter)
        chosen, moved = _WHOLE, _bring_forward(taken, chip, least)
        seconds = {_WHOLE: _timed(taken.module, chip)[0]}
        for way in ways:
            if seconds[chosen] * (1 - LEAST_GAIN) < least:
                break  # parts do not have less to do
            trial = _copied(rewriter)
            _apply(trial, program, lead, way, chip)
            forward = _bring_forward(trial, chip, least)
            seconds[way], _ = _timed(trial.module, chip)
            if seconds[way] <= seconds[chosen] * (1 - LEAST_GAIN):
                chosen, taken, moved = way, trial, forward
        yield _note(lead, chosen, seconds, chip) + (f"; {moved} long ops brought forward" if moved else "")
        if chosen != _WHOLE or moved:
            rewriter.take(taken)


def _bring_forward(rewriter: Rewriter, chip: Chip, least: float) -> int:
    """How many long ops were moved to in front, where there is anything to gain by it."""
    if _timed(rewriter.module, chip)[0] * (1 - LEAST_GAIN) < least:
        return 0
    moved = bring_forward(rewriter.module, chip, lambda module: _timed(module, chip)[0])
    rewriter.modified |= moved > 0
    return moved


def _copied(rewriter: Rewriter) -> Rewriter:
    """A copy to try something on."""
    trial = Rewriter(copy_nodes(rewriter.module))
    trial.results = rewriter.results
    return trial


@dataclass(frozen=True, slots=True)
class _Way:
    """So many parts of the rows; products of which pieces are taken (a fused QKV projection) as one product a piece."""

    parts: int
    apart: bool = False

    def __str__(self) -> str:
        return f"{self.parts} part{'s' * (self.parts > 1)}{', fused products apart' * self.apart}"


_WHOLE = _Way(1)


def _ways(graph: fx.Graph, lead: Lead) -> Iterator[_Way]:
    """What is tried besides leaving the graph as it is; what does more to it comes later."""
    apart = (False, True) if any(fused_products(graph)) else (False,)
    for way in (_Way(parts, each) for parts in (1, *_PARTS) for each in apart):
        if way != _WHOLE and _dim(lead, max(way.parts, 2)) is not None and _dim(lead, way.parts) is not None:
            yield way


def _apply(rewriter: Rewriter, program: Program, lead: Lead, way: _Way, chip: Chip) -> None:
    """Rewrites a graph that way, in an order that lets the engines overlap."""
    if way.apart:
        split_products(rewriter)
    if way.parts > 1 and (dim := _dim(lead, way.parts)) is not None:
        _cut(rewriter, program, lead, dim, way.parts)
    else:
        retype(rewriter)
        _assign_engines(rewriter, program)
    rewriter.finish()
    order_by_schedule(rewriter.module, chip)


Lead = tuple[int, int]
"""Batch and tokens."""


def _lead(module: fx.GraphModule) -> Lead | None:
    """Leading sizes of the largest projection: what the rows of the graph are."""
    found = [val(n) for n in module.graph.nodes if n.target is aten.linear.default and val(n).dim() == 3]
    largest = max(found, key=lambda value: value.numel(), default=None)
    return None if largest is None else (largest.shape[0], largest.shape[1])


def _dim(lead: Lead, parts: int, least: int = _LEAST_ROWS) -> int | None:
    """The dim that is cut; None if there is none."""
    if lead[0] * lead[1] < parts * least:
        return None
    return next((dim for dim in (0, 1) if lead[dim] % parts == 0), None)


def _cut(rewriter: Rewriter, program: Program, lead: Lead, axis: int, parts: int) -> None:
    """Puts so many parts in place of every node that computes row by row; `axis` is 0 for the batch, 1 for tokens."""
    cut = _cut_dims(rewriter.graph, lead, axis)
    whole, size = lead[axis], lead[axis] // parts
    made: dict[tuple[fx.Node, int], list[fx.Node]] = {}

    def part_of(arg: fx.Node, index: int, reader: fx.Node) -> fx.Node:
        dim = _operand_dim(arg, reader, cut[reader], whole)
        if dim is None:
            return arg
        if (arg, dim) not in made:
            made[arg, dim] = [
                rewriter.emit(aten.slice.Tensor, arg, dim, start, start + size, like=reader)
                for start in range(0, whole, size)
            ]
        return made[arg, dim][index]

    for node, dim in cut.items():
        new = []
        for index in range(parts):
            operands: Any = (node.args, node.kwargs)
            args, kwargs = fx.map_arg(operands, partial(part_of, index=index, reader=node))
            if node.target is aten.view.default:
                args = (args[0], [size if i == dim else n for i, n in enumerate(args[1])])
            new.append(rewriter.emit(node.target, *args, like=node, **kwargs))
        made[node, dim] = new
    for node, dim in reversed(cut.items()):
        if node.users:
            replace_view(rewriter, node, _joined(rewriter, made[node, dim], dim, node))
        else:
            rewriter.graph.erase_node(node)
    read_parts(rewriter)
    _assign_engines(rewriter, program)


def _assign_engines(rewriter: Rewriter, program: Program) -> None:
    for node in [node for node in rewriter.graph.nodes if is_op(node) and "engine" not in node.meta]:
        node.meta["engine"] = verdict_of(node, program).engine


def _joined(rewriter: Rewriter, parts: list[fx.Node], dim: int, like: fx.Node) -> fx.Node:
    """The parts one after the other, laid out as what they stand for, so that nothing need be copied."""
    value = val(like)
    order = sorted(range(value.dim()), key=value.stride, reverse=True)
    if order == list(range(value.dim())):
        return rewriter.emit(aten.cat.default, parts, dim, like=like)
    moved = [rewriter.emit(aten.permute.default, part, order, like=like) for part in parts]
    whole = rewriter.emit(aten.cat.default, moved, order.index(dim), like=like)
    return rewriter.emit(aten.permute.default, whole, [order.index(i) for i in range(value.dim())], like=like)


def _cut_dims(graph: fx.Graph, lead: Lead, axis: int) -> dict[fx.Node, int]:
    """Nodes of which each row depends on the same row of their operands only -> the dim of their result that is cut."""
    found: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if is_op(node) and isinstance(node.meta.get("val"), torch.Tensor) and not _stays(node):
            dim = _result_dim(node, found, lead, axis)
            if dim is not None and val(node).shape[dim] == lead[axis]:
                found[node] = dim
    for node in reversed(list(found)):
        if node.target in MOVES and not any(user in found for user in node.users):
            del found[node]  # what only lays out results anew can be done to the whole
    return found


def _stays(node: fx.Node) -> bool:
    """Slices of attention, what was left on the host, and what draws random numbers."""
    random = torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]
    return "slice" in node.meta or node.meta.get("engine") is Engine.HOST or random


def _result_dim(node: fx.Node, found: dict[fx.Node, int], lead: Lead, axis: int) -> int | None:
    """The dim of a node's result that can be cut; None if it cannot."""
    first, *others = node.all_input_nodes or [node]
    before = found.get(first)
    if node.target in _BY_ROW:
        whole = node.target is aten.layer_norm.default and len(node.args[1]) != 1  # type: ignore[arg-type]
        rows = first is node.args[0] and (_has_rows(first, lead) or before == axis) and val(first).dim() == 3
        return axis if rows and not whole and not any(_has_rows(other, lead) for other in others) else None
    if node.target in MOVES:
        return None if before is None else MOVES[node.target](node, before, found)
    if torch.Tag.pointwise in node.target.tags or node.target in _ALSO_ELEMENTWISE:  # type: ignore[union-attr]
        known = {found[arg] + val(node).dim() - val(arg).dim() for arg in (first, *others) if arg in found}
        if any(_has_rows(arg, lead) for arg in (first, *others)) and first is not node and _has_rows(node, lead):
            known.add(axis)
        return known.pop() if len(known) == 1 else None
    return None


def _operand_dim(arg: fx.Node, reader: fx.Node, dim: int, whole: int) -> int | None:
    """The dim of an operand that is cut where its reader's result is cut in `dim`; None if all parts read all of it."""
    if reader.target in _BY_ROW:
        return dim if arg is reader.args[0] else None
    if reader.target is aten.transpose.int:
        return transposed_dim(reader, dim, {})
    if reader.target not in MOVES:
        dim -= val(reader).dim() - val(arg).dim()  # elementwise operands are aligned at their last dims
    return dim if dim >= 0 and val(arg).shape[dim] == whole else None


def _has_rows(node: fx.Node, lead: Lead) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() == 3 and tuple(value.shape[:2]) == lead


def _timed(module: fx.GraphModule, chip: Chip) -> tuple[float, float]:
    """(Seconds of what the graph computes itself, what its busiest engine works), under the vendor's policy.

    Of HBM alone if that takes longer: parts read the weights again, and the schedule knows no contention for HBM. Bodies that
    the graph calls are timed for themselves.
    """
    found = ProgramTasks(chip)
    found.nodes(module, [node for node in module.graph.nodes if node.target not in CALLS], {})
    run, memory = vendor_schedule(found.tasks, limits_of(chip)), found.hbm_bytes / chip.memory.stream
    return max(run.makespan, memory), max(memory, *(run.busy(engine) for engine in {t.engine for t in found.tasks}))


def _note(lead: Lead, chosen: _Way, seconds: dict[_Way, float], chip: Chip) -> str:
    what = "left whole" if chosen == _WHOLE else f"in {chosen}"
    times = ", ".join(f"{'whole' if way == _WHOLE else way} {one * 1e6:,.1f} us" for way, one in seconds.items())
    return f"{lead[0]} x {lead[1]} rows {what}: {times}, modelled on {chip.name}"
