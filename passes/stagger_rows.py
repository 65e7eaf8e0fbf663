"""stagger-rows: what is computed row by row -> halves of the rows, one's TPC work under the other's products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import fx

from gaudicc.graph_module import copy_graph
from gaudicc.invariants import ENGINE_ASSIGNED, LEGAL_OPS, STATIC, TYPED, Invariant, verdict_of
from gaudicc.kernels import rms_norm
from gaudicc.machine import CHIPS, Chip, load_chip, vendor_schedule
from gaudicc.machine.fx_program import ProgramTasks
from gaudicc.machine.split import LEAST_GAIN, limits_of
from gaudicc.nodes import CALLS, is_op, val
from gaudicc.pipeline import GraphPass, Numerics
from gaudicc.program import Program
from gaudicc.rewriter import Rewriter
from gaudicc.targets import Engine

aten = torch.ops.aten
# Numbers of parts that are tried.
_PARTS = (2, 4)
# Rows that a part has at least: with fewer, a product fills no tile of the MME.
_LEAST_ROWS = 256
# Ops besides the elementwise ones whose row of a result depends on the same row of their first operand only.
_BY_ROW = (aten.linear.default, rms_norm, aten.layer_norm.default)
_ALSO_ELEMENTWISE = (aten._to_copy.default, aten.clone.default)


@dataclass(frozen=True)
class StaggerRows(GraphPass):
    """Cuts projections, norms and activations into parts of the batch, or of the tokens, where that is modelled faster.

    A norm or an activation is one TPC node that waits for a whole product, and the next product waits for it, so the MME
    idles. In halves, Gaudi's graph compiler runs the TPC work of one half under the products of the other, from layer to
    layer. Attention keeps its own slices, and reads both halves. Halves of the batch are taken where there are any, else
    halves of the tokens.

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
        """Every number of parts is tried on a copy of the graph and timed."""
        lead = _lead(rewriter.module)
        if lead is None or program.target is None or program.target.name not in CHIPS:
            return
        if self.parts is not None:
            if self.parts > 1 and (dim := _dim(lead, self.parts, least=1)) is not None:
                _cut(rewriter, program, lead, dim, self.parts)
            return
        chip = load_chip(program.target.name)
        seconds = {1: _seconds(rewriter.module, chip)} if _dim(lead, _PARTS[0]) is not None else {}
        for parts in _PARTS:
            if (dim := _dim(lead, parts)) is not None:
                trial = Rewriter(copy_graph(rewriter.module))
                _cut(trial, program, lead, dim, parts)
                trial.finish()
                seconds[parts] = _seconds(trial.module, chip)
        if not seconds:
            return
        best = min(seconds, key=lambda parts: (seconds[parts], parts))
        chosen = best if seconds[best] <= seconds[1] * (1 - LEAST_GAIN) else 1
        yield _note(lead, chosen, seconds, chip)
        if chosen > 1 and (dim := _dim(lead, chosen)) is not None:
            _cut(rewriter, program, lead, dim, chosen)


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
            part = rewriter.emit(node.target, *args, like=node, **kwargs)
            part.meta["rows"] = index
            new.append(part)
        made[node, dim] = new
    for node, dim in reversed(cut.items()):
        if node.users:
            rewriter.replace(node, _joined(rewriter, made[node, dim], dim, node))
        else:
            rewriter.graph.erase_node(node)
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
        if node.target in _MOVES and not any(user in found for user in node.users):
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
    if node.target in _MOVES:
        return None if before is None else _MOVES[node.target](node, before, found)
    if torch.Tag.pointwise in node.target.tags or node.target in _ALSO_ELEMENTWISE:  # type: ignore[union-attr]
        known = {found[arg] + val(node).dim() - val(arg).dim() for arg in (first, *others) if arg in found}
        if any(_has_rows(arg, lead) for arg in (first, *others)) and first is not node and _has_rows(node, lead):
            known.add(axis)
        return known.pop() if len(known) == 1 else None
    return None


def _view_dim(node: fx.Node, dim: int, found: dict[fx.Node, int]) -> int | None:
    """Leading sizes, that of the cut among them, stay what they are."""
    old, new = val(node.args[0]).shape, val(node).shape  # type: ignore[arg-type]
    same: bool = old[: dim + 1] == new[: dim + 1]
    return dim if same else None


def _transposed_dim(node: fx.Node, dim: int, found: dict[fx.Node, int]) -> int | None:
    dims: list[int] = [int(each) % val(node).dim() for each in node.args[1:3]]  # type: ignore[arg-type]
    one, other = dims
    return {one: other, other: one}.get(dim, dim)


def _along_dim(node: fx.Node, dim: int, found: dict[fx.Node, int]) -> int | None:
    """What takes or joins along another dim; of several operands all are cut alike."""
    along = int(node.args[1] if len(node.args) > 1 else 0) % val(node).dim()  # type: ignore[arg-type]
    return dim if along != dim and {found.get(arg) for arg in node.all_input_nodes} == {dim} else None


_MOVES: dict[Any, Callable[[fx.Node, int, dict[fx.Node, int]], int | None]] = {
    aten.view.default: _view_dim, aten.transpose.int: _transposed_dim,
    aten.slice.Tensor: _along_dim, aten.cat.default: _along_dim,
}  # fmt: skip


def _operand_dim(arg: fx.Node, reader: fx.Node, dim: int, whole: int) -> int | None:
    """The dim of an operand that is cut where its reader's result is cut in `dim`; None if all parts read all of it."""
    if reader.target in _BY_ROW:
        return dim if arg is reader.args[0] else None
    if reader.target is aten.transpose.int:
        return _transposed_dim(reader, dim, {})
    if reader.target not in _MOVES:
        dim -= val(reader).dim() - val(arg).dim()  # elementwise operands are aligned at their last dims
    return dim if dim >= 0 and val(arg).shape[dim] == whole else None


def _has_rows(node: fx.Node, lead: Lead) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() == 3 and tuple(value.shape[:2]) == lead


def _seconds(module: fx.GraphModule, chip: Chip) -> float:
    """Of what the graph computes itself, under the vendor's policy, or by HBM alone if that takes longer.

    Parts read the weights again, and the schedule knows no contention for HBM. Bodies that it calls are timed for themselves.
    """
    found = ProgramTasks(chip)
    found.nodes(module, [node for node in module.graph.nodes if node.target not in CALLS], {})
    return max(vendor_schedule(found.tasks, limits_of(chip)).makespan, found.hbm_bytes / chip.memory.stream)


def _note(lead: Lead, chosen: int, seconds: dict[int, float], chip: Chip) -> str:
    what = f"in {chosen} parts" if chosen > 1 else "left whole"
    times = ", ".join(f"{parts} parts {one * 1e6:,.1f} us" for parts, one in seconds.items() if parts > 1)
    return f"{lead[0]} x {lead[1]} rows {what}: whole {seconds[1] * 1e6:,.1f} us, {times}, modelled on {chip.name}"
