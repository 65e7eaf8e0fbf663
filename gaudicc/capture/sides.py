"""Capture: a model that decides on sizes is exported once for every side of its decisions.

An export stands for the sizes on the side of its example. Sizes that are left over are exported again with an example of
theirs: if that gives the same graph, as with attention that asks for one query only when it has no mask, the decision is
none; otherwise it is a side of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

from gaudicc.capture.decisions import (
    Decision,
    Ranges,
    columns_of,
    decisions_of,
    forget_decisions,
    refuse_decision,
    uncovered,
)
from gaudicc.capture.mend import MendedExport
from gaudicc.capture.repeats import every_layer_traced
from gaudicc.capture.same_graph import same_graph
from gaudicc.capture.settled_sizes import settle_sizes
from gaudicc.capture.shapes import names_of, ranges_of, resized, sizes_of, without
from gaudicc.capture.size_trials import Columns, Words
from gaudicc.errors import UnsupportedInputError, Where

_EXPORTS = 16
"""Exports of one model at most."""

Export = Callable[..., MendedExport]
"""Exports the model inside `exact_sizes`, given args, kwargs and the declared sizes by argument name (`shapes`)."""


@dataclass(frozen=True, slots=True)
class Side:
    """One graph of a model, and the sizes that it stands for.

    Attributes:
        mended: the export.
        args: the example it was made with.
        kwargs: likewise.
        shapes: the declared sizes by argument name; those that this side fixes are left out.
        names: symbol -> name of the size.
        when: the sizes: all decisions of any one entry hold.
    """

    mended: MendedExport
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: Mapping[str, Any] | None
    names: Mapping[str, str]
    when: list[tuple[Decision, ...]]


def export_every_side(
    export: Export,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    positional: Sequence[str],
    shapes: Mapping[str, Any] | None,
) -> tuple[list[Side], Ranges]:
    """Exports a model as often as it takes for graphs that together stand for every size that is declared.

    Args:
        export: exports the model.
        args: the example.
        kwargs: the example.
        positional: names of `args`.
        shapes: the declared sizes by argument name.

    Returns:
        The sides, the example's first, and the range of every size.

    Raises:
        UnsupportedInputError: there are too many sides, or equal sizes are not equal.
    """

    def side_of(args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Mapping[str, Any] | None) -> Side:
        mended = export(args, kwargs, shapes=shapes)
        names = names_of(mended.exported, shapes, args, kwargs, positional)
        _refuse_unequal(names)
        return Side(mended, args, kwargs, shapes, names, [decisions_of(mended.exported, names)])

    first = side_of(args, kwargs, shapes)
    example = sizes_of(args, kwargs, positional, shapes)
    ranges = ranges_of(first.mended.exported, first.names)
    if uncovered(first.when, ranges, example) is None:
        return [first], ranges
    export = every_layer_traced(export)
    sides = [side_of(args, kwargs, shapes)]
    exports = 1
    while (sizes := uncovered([when for side in sides for when in side.when], ranges, example)) is not None:
        if (exports := exports + 1) > _EXPORTS:
            refuse_decision(sides[0].when[0][0])
        other = side_of(*resized(args, kwargs, positional, shapes, sizes), shapes)
        if _joins(other, sides, sizes, ranges):
            continue
        fixed = {name for name in sizes if _is_one_size(name, other, sizes, ranges)}
        if fixed:  # torch wrote the size as a number here and there: let it do so everywhere
            other = replace(side_of(other.args, other.kwargs, without(shapes, fixed)), when=other.when)
        sides = _with(other, sides, ranges)
    for side in sides:
        _settle(side, ranges)
    return sides, ranges


def _settle(side: Side, ranges: Ranges) -> None:
    """Leaves of what an export decided what holds for all sizes of its side."""
    columns = columns_of(side.when, ranges, {})
    if columns is not None:
        settle_sizes(side.mended.exported, _by_symbol(side, columns))
        ranges = {name: (int(column.min()), int(column.max())) for name, column in columns.items()}
    if len(side.when) > 1:
        forget_decisions(side.mended.exported, side.names, ranges)


def _refuse_unequal(names: Mapping[str, str]) -> None:
    twice = [name for name in names.values() if list(names.values()).count(name) > 1]
    if twice:
        raise UnsupportedInputError(
            f"the sizes that were declared equal as {twice[0]!r} are different ones in the model",
            where=Where(stage="capture"),
            hint="give each a Dim of its own name",
        )


def _joins(other: Side, sides: Sequence[Side], sizes: Mapping[str, int], ranges: Ranges) -> bool:
    """Lets a side that has the same graph stand for the sizes of another, with as few of them fixed as will do."""
    for count in range(len(sizes) + 1):
        for fixed, side in product(combinations(sizes, count), sides):
            exact = {name: sizes[name] for name in fixed}
            if _are_same((side, other), other.when, ranges, exact):
                rest = tuple(decision for decision in other.when[0] if not exact.keys() >= set(decision.sizes))
                side.when.append(rest + tuple(_exactly(*entry) for entry in exact.items()))
                return True
    return False


def _with(other: Side, sides: Sequence[Side], ranges: Ranges) -> list[Side]:
    """The sides with another one, which stands for those sizes as well for which it has the same graph.

    A model that cuts off what it filled up only if it did has the same graph as one that cuts off nothing.
    """
    same = [side for side in sides if _are_same((side, other), side.when, ranges, {})]
    whole = replace(other, when=[*(entry for side in same for entry in side.when), *other.when])
    rest = [side for side in sides if side not in same]
    return [whole, *rest] if sides[0] in same else [*rest, whole]


def _are_same(
    pair: tuple[Side, Side], when: Sequence[Sequence[Decision]], ranges: Ranges, exact: Mapping[str, int]
) -> bool:
    """Whether two sides have the same graph for some sizes: those of `when` of which some are fixed."""
    columns, known = columns_of(when, ranges, exact) or {}, dict[bytes, str]()
    words = [Words(_by_symbol(side, columns), known) for side in pair]
    return same_graph(pair[0].mended.exported, pair[1].mended.exported, (words[0], words[1]))


def _by_symbol(side: Side, columns: Columns) -> Columns:
    return {symbol: columns[name] for symbol, name in side.names.items() if name in columns}


def _is_one_size(name: str, side: Side, sizes: Mapping[str, int], ranges: Ranges) -> bool:
    """Whether the decisions of a side leave one size of a name."""
    mine = [decision for decision in side.when[0] if decision.sizes == (name,)]
    low, high = ranges[name]
    return [n for n in range(low, high + 1) if all(d.test(n) for d in mine)] == [sizes[name]]


def _exactly(name: str, size: int) -> Decision:
    return Decision(f"{name} == {size}", (name,), lambda given: given == size, None)
