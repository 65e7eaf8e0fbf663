"""Mixtures of experts that no kernel knows: all that is done to the rows of each expert, in its blocks."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx

from gaudicc.kernels import grouped_linear
from gaudicc.kernels.grouped import OfBlocks, multiplied, plain_experts
from gaudicc.nodes import is_op, val, writes
from gaudicc.rewriter import Rewriter
from gaudicc.rules.match import RESHAPES, argument, aten, calls

_SPLITS = (aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default)
_COPIES = (aten._to_copy.default, aten.clone.default)


@dataclass(frozen=True)
class Mixture:
    """Products of the same rows by the same groups, and what is done between them.

    Attributes:
        rows: `[count, width]`, what the first product multiplies.
        group: of each row.
        groups: how many there are.
        members: nodes of which each row depends on the same row of the others only, in order.
        picked: nodes that look up one row a group, such as biases -> the table.
        end: the member that others read.
    """

    rows: fx.Node
    group: fx.Node
    groups: int
    members: tuple[fx.Node, ...]
    picked: dict[fx.Node, fx.Node]
    end: fx.Node


def lower_mixtures(rewriter: Rewriter) -> int:
    """Puts plain ATen in place of mixtures, rows moved to the blocks of their experts once and back once.

    Product by product they would be moved twice, and the vector work between two products would wait for all of the first.

    Returns:
        How many there were.
    """
    count = 0
    for first in calls(rewriter.graph, grouped_linear):
        mixture = _mixture(first) if first.users else None
        if mixture is not None:
            outside = list(_outside(mixture))
            rows = copied_rows(mixture.rows) or mixture.rows
            made = rewriter.inline(_plain(mixture, outside), rows, mixture.group, *outside, like=mixture.end)
            rewriter.replace(mixture.end, made)
            for node in reversed([*mixture.members, *mixture.picked]):
                if node is not mixture.end and not node.users:
                    rewriter.graph.erase_node(node)
            count += 1
    return count


def copied_rows(rows: Any) -> fx.Node | None:
    """The tokens of which each is copied so and so often: `x.unsqueeze(1).expand(-1, k, -1).reshape(-1, width)`."""
    node, targets = rows, (RESHAPES, (aten.clone.default,), (aten.expand.default,))
    for target in targets:
        if node.target in target:
            node = node.args[0]
        elif target is not targets[1]:
            return None
    if node.target is not aten.unsqueeze.default or argument(node, 1, "dim") != 1:
        return None
    x: fx.Node = node.args[0]
    kept = val(x).dim() == 2 and val(rows).dim() == 2 and val(rows).shape[1] == val(x).shape[1]
    return x if kept else None


def _mixture(first: fx.Node) -> Mixture | None:
    rows, weight, group = cast(tuple[fx.Node, ...], first.args)
    members, picked = {first: None}, dict[fx.Node, fx.Node]()
    node = first.next
    while node.op != "output":
        if (table := _table(node, group)) is not None:
            picked[node] = table
        elif _by_row(node, rows, group, members.keys(), picked.keys()):
            members[node] = None
        node = node.next
    ends = [node for node in members if any(user not in members for user in node.users)]
    products = sum(node.target is grouped_linear for node in members)
    if len(ends) != 1 or products < 2 or not val(rows).shape[0] or val(ends[0]).dim() != 2:
        return None
    used = {node: table for node, table in picked.items() if any(user in members for user in node.users)}
    return Mixture(rows, group, val(weight).shape[0], tuple(members), used, ends[0])


def _table(node: fx.Node, group: fx.Node) -> fx.Node | None:
    """What a node takes one row a group of."""
    plain = node.target is aten.index.Tensor and list(cast(Any, node.args[1])) == [group]
    selected = node.target is aten.index_select.default and node.args[1] == 0 and node.args[2] is group
    table = node.args[0] if plain or selected else None
    return table if isinstance(table, fx.Node) and val(table).dim() == 2 else None


def _by_row(node: fx.Node, rows: fx.Node, group: fx.Node, members: Any, picked: Any) -> bool:
    """Whether a row of a node's result depends on the same row of members, on its group, and on nothing else."""
    if node.target is grouped_linear:
        left, weight, other = node.args
        return other is group and (left in members or left is rows) and weight not in members and weight not in picked
    inputs = node.all_input_nodes
    if node.target is operator.getitem:
        return inputs[0] in members
    if not is_op(node) or writes(node) or not any(source in members for source in inputs):
        return False
    if node.target in _SPLITS:
        return argument(node, _dim_at(node), "dim", 0) in (1, -1)
    tags = node.target.tags  # type: ignore[union-attr]
    plain = torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags
    known = all(source in members or source in picked or _is_shared(source, group) for source in inputs)
    return (plain or node.target in _COPIES) and known and val(node).dim() == 2


def _is_shared(source: fx.Node, group: fx.Node) -> bool:
    """Whether an operand is the same for all rows."""
    return source is not group and isinstance(val(source), Tensor) and val(source).dim() < 2


def _dim_at(node: fx.Node) -> int:
    return 1 if node.target is aten.slice.Tensor else 2


def _outside(mixture: Mixture) -> Iterator[fx.Node]:
    """Weights, tables and numbers that members read."""
    inside = {*mixture.members, *mixture.picked, mixture.rows, mixture.group}
    sources = [source for node in (*mixture.members, *mixture.picked) for source in node.all_input_nodes]
    yield from dict.fromkeys(source for source in sources if source not in inside)


def _plain(mixture: Mixture, outside: list[fx.Node]) -> Any:
    """The function that computes a mixture from rows, groups and what else is read."""

    def build(rows: Tensor, group: Tensor, *others: Tensor) -> Tensor:
        known = dict(zip(outside, others, strict=True))
        return plain_experts(rows, group, mixture.groups, partial(_applied, mixture, known))

    return build


def _applied(mixture: Mixture, known: dict[fx.Node, Tensor], blocks: Tensor, of: OfBlocks) -> Iterator[Tensor]:
    """Members in order, on `[blocks, block, width]` instead of rows; a stop behind each product."""
    values: dict[fx.Node, Any] = {mixture.rows: blocks, **known}
    for node, table in mixture.picked.items():
        values[node] = aten.unsqueeze.default(of(known[table]), 1)
    for node in mixture.members:
        if node.target is grouped_linear:
            left, weight, _ = cast(tuple[fx.Node, ...], node.args)
            values[node] = multiplied(values[left], of(known[weight]))
            yield values[node]
            continue
        args = list(fx.map_arg(node.args, values.__getitem__))
        kwargs = dict(fx.map_arg(node.kwargs, values.__getitem__))
        if node.target in _SPLITS:
            kwargs.pop("dim", None)
            args = [*args[: _dim_at(node)], 2, *args[_dim_at(node) + 1 :]]
        values[node] = cast(Any, node.target)(*args, **kwargs)
    yield values[mixture.end]
