"""Capture: a model that decides on sizes is exported once for every side of its decisions.

An export stands for the sizes on the side of its example. Sizes that are left over are exported again with an example of
theirs: if that gives the same graph, as with attention that asks for one query only when it has no mask, the decision is
none; otherwise it is a side of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import combinations, product
from typing import Any

from torch._dynamo.exc import UserError

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
from gaudicc.capture.own_dims import joined_dims, with_own_dims
from gaudicc.capture.repeats import every_layer_traced
from gaudicc.capture.same_graph import same_graph
from gaudicc.capture.settled_sizes import settle_sizes
from gaudicc.capture.shapes import names_of, ranges_of, resized, sizes_of, without
from gaudicc.capture.size_trials import Columns, Words
from gaudicc.capture.zero_sizes import EagerError
from gaudicc.errors import DynamicControlFlowError, UnsupportedInputError, Where

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


@dataclass(frozen=True, slots=True)
class Raising:
    """Sizes for which the model itself raises.

    Attributes:
        when: the decision that it takes there.
        error: what it raised, in eager PyTorch, at one of them.
    """

    when: Decision
    error: Exception


def export_every_side(
    export: Export,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    positional: Sequence[str],
    shapes: Mapping[str, Any] | None,
    eager_error: EagerError,
) -> tuple[list[Side], list[Raising], Ranges]:
    """Exports a model as often as it takes for graphs that together stand for every size that is declared.

    Args:
        export: exports the model.
        args: the example.
        kwargs: the example.
        positional: names of `args`.
        shapes: the declared sizes by argument name.
        eager_error: what the model raises in eager PyTorch, if it does.

    Returns:
        The sides, the example's first; the sizes for which the model raises; and the range of every size.

    Raises:
        UnsupportedInputError: there are too many sides, or equal sizes are not equal.
    """
    shapes = with_own_dims(shapes, args, kwargs, positional)

    def side_of(args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Mapping[str, Any] | None) -> Side:
        mended = export(args, kwargs, shapes=shapes)
        names = names_of(mended.exported, shapes, args, kwargs, positional)
        _refuse_joined(names)
        return Side(mended, args, kwargs, shapes, names, [decisions_of(mended.exported, names)])

    first = side_of(args, kwargs, shapes)
    example = sizes_of(args, kwargs, positional, shapes)
    ranges = ranges_of(first.mended.exported, first.names)
    if uncovered(first.when, ranges, example) is None:
        return [first], [], ranges
    export = every_layer_traced(export)
    sides = [side_of(args, kwargs, shapes)]
    raising: list[Raising] = []
    exports = 1
    while (sizes := uncovered(_served(sides, raising), ranges, example)) is not None:
        if (exports := exports + 1) > _EXPORTS:
            refuse_decision(sides[0].when[0][0])
        given = resized(args, kwargs, positional, shapes, sizes)
        try:
            other = side_of(*given, shapes)
        except Exception as failure:
            if (error := eager_error(*given)) is not None:
                raising.append(Raising(_broken(sides[0], {**example, **sizes}), error))
                continue
            if not _may_be_of_dynamic_sizes(failure):
                raise
            other = side_of(*given, without(shapes, sizes.keys()))
            other = replace(other, when=[(*other.when[0], *(_exactly(*entry) for entry in sizes.items()))])
        joined = joined_dims(other.mended.exported, shapes, *given, positional, other.names)
        equal = [_equal(*pair) for pair in dict.fromkeys(joined) if ranges.keys() >= set(pair)]
        numbers = [_exactly(*entry) for entry in _numbers(other, ranges).items()]
        other = replace(other, when=[(*other.when[0], *equal, *numbers)])
        if _joins(other, sides, sizes, ranges):
            continue
        fixed = {name for name in sizes if _is_one_size(name, other, sizes, ranges)}
        if fixed and other.shapes is shapes:  # torch wrote the size as a number here and there: let it do so everywhere
            other = replace(side_of(other.args, other.kwargs, without(shapes, fixed)), when=other.when)
        sides = _with(other, sides, ranges)
    for side in sides:
        _settle(side, ranges)
    return sides, raising, ranges


def _may_be_of_dynamic_sizes(failure: Exception) -> bool:
    """Whether an export that failed may get through where its sizes are numbers.

    Decisions may leave one size, which torch refuses to call dynamic (`UserError`), and a dynamic 1 it never broadcasts (a
    `RuntimeError`); a loop over a number is unrolled, and two numbers are never one size under two names.
    """
    return (
        isinstance(failure, (UserError, DynamicControlFlowError, UnsupportedInputError))
        or type(failure) is RuntimeError
    )


def _served(sides: Sequence[Side], raising: Sequence[Raising]) -> list[tuple[Decision, ...]]:
    return [when for side in sides for when in side.when] + [(entry.when,) for entry in raising]


def _broken(side: Side, sizes: Mapping[str, int]) -> Decision:
    """The first decision of a side that does not hold for sizes, the other way round."""
    broken = next(decision for decision in side.when[0] if not decision.holds(sizes))
    return replace(broken, text=f"not ({broken.text})", test=lambda *given: not broken.test(*given))


def _settle(side: Side, ranges: Ranges) -> None:
    """Leaves of what an export decided what holds for all sizes of its side."""
    columns = columns_of(side.when, ranges, {})
    settle_sizes(side.mended.exported, cache(partial(_columns_for, side, ranges, columns)))
    if columns is not None:
        ranges = {name: (int(column.min()), int(column.max())) for name, column in columns.items()}
    if len(side.when) > 1:
        forget_decisions(side.mended.exported, side.names, ranges)


def _columns_for(side: Side, ranges: Ranges, every: Columns | None, symbols: frozenset[str]) -> Columns | None:
    """The sizes of some symbols: on the side or, where all its sizes are too many, as what is decided on these alone has them."""
    if every is not None:
        return _by_symbol(side, every)
    names = {name for symbol, name in side.names.items() if symbol in symbols}
    alone = [[decision for decision in entry if set(decision.sizes) <= names] for entry in side.when]
    columns = columns_of(alone, {name: ranges[name] for name in names & ranges.keys()}, {})
    return None if columns is None else _by_symbol(side, columns)


def _refuse_joined(names: Mapping[str, str]) -> None:
    """Refuses sizes that were declared equal and are not, and one that can be written with another."""
    made = next((size for size in names if not size.isidentifier() and not size.isdigit()), None)
    if made is not None:
        parts = ", ".join(name for symbol, name in names.items() if symbol in re.findall(r"\w+", made))
        raise UnsupportedInputError(
            f"the size {names[made]} is {made} in the model, a sum or product with another one ({parts})",
            where=Where(stage="capture"),
            hint="give the model one of the two sizes, and let it make the other of it",
        )
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
    same = [side for side in sides if not _numbers(other, ranges) and _are_same((side, other), side.when, ranges, {})]
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
    columns = columns_of(side.when[:1], ranges, {})
    if columns is not None:
        return bool((columns[name] == sizes[name]).all())
    mine = [decision for decision in side.when[0] if decision.sizes == (name,)]
    low, high = ranges[name]
    return [n for n in range(low, high + 1) if all(d.test(n) for d in mine)] == [sizes[name]]


def _numbers(side: Side, ranges: Ranges) -> dict[str, int]:
    """Names that are one number in an export although they were declared dynamic: its decisions left nothing else."""
    return {name: int(size) for size, name in side.names.items() if size.isdigit() and name in ranges}


def _equal(name: str, other: str) -> Decision:
    return Decision(f"{name} == {other}", (name, other), lambda a, b: a == b, None)


def _exactly(name: str, size: int) -> Decision:
    return Decision(f"{name} == {size}", (name,), lambda given: given == size, None)
