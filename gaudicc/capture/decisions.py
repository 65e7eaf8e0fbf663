"""Capture: decisions of the model's Python on sizes, as `if x.shape[1] > 512:`. An export follows the side of its example."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from traceback import FrameSummary
from typing import Any, NoReturn

import numpy as np
import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.printers import PythonPrinter
from torch.utils._sympy.value_ranges import ValueRanges

from gaudicc.capture.size_trials import Columns, every
from gaudicc.capture.source_lines import place
from gaudicc.errors import UnsupportedInputError, Where

Ranges = Mapping[str, tuple[int, int]]
"""Name of a size -> smallest and largest, inclusive."""

_POINTS = 2**20
"""Combinations of sizes that decisions are tried on at most."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One condition on sizes under which an export holds.

    Attributes:
        text: Python over the names in `sizes`, in which `.` and brackets are spelled `_`.
        sizes: the names of the sizes that it reads, in the order of the arguments of `test`.
        test: the condition as a function.
        source: the user's `file:line`, or None.
    """

    text: str
    sizes: tuple[str, ...]
    test: Callable[..., bool]
    source: str | None

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether it holds for these sizes."""
        return bool(self.test(*(sizes[name] for name in self.sizes)))


def decisions_of(exported: ExportedProgram, names: Mapping[str, str]) -> tuple[Decision, ...]:
    """The decisions that an export took.

    Args:
        exported: made inside `exact_sizes`.
        names: symbol -> name of the size.
    """
    env = _sizes_of(exported)
    if env is None:
        return ()
    found: dict[str, Decision] = {}
    for guard in env.guards:
        expr = guard.expr.xreplace(env.replacements)
        symbols = sorted(expr.free_symbols, key=str)
        if symbols and all(str(symbol) in names for symbol in symbols):
            sizes = tuple(names[str(symbol)] for symbol in symbols)
            words = [re.sub(r"\W", "_", name) for name in sizes]
            text = PythonPrinter().doprint(expr.xreplace(dict(zip(symbols, map(sympy.Symbol, words), strict=True))))
            test = eval(f"lambda {', '.join(words)}: {text}", {"math": math, "torch": torch})  # as torch prints it
            frame = guard.sloc.framework_loc
            source = place(frame.filename, frame.lineno or 0) if isinstance(frame, FrameSummary) else None
            found.setdefault(text, Decision(text, sizes, _or_not(test), source))
    return tuple(found.values())


def _or_not(test: Callable[..., bool]) -> Callable[..., bool]:
    """A condition that does not hold where it divides by 0: sizes for which the model asked something else before."""

    def holds(*sizes: int) -> bool:
        try:
            return bool(test(*sizes))
        except ZeroDivisionError:
            return False

    return holds


def _sizes_of(exported: ExportedProgram) -> ShapeEnv | None:
    values = (node.meta.get("val") for node in exported.graph.nodes)
    return next((value.fake_mode.shape_env for value in values if isinstance(value, FakeTensor)), None)


def forget_decisions(exported: ExportedProgram, names: Mapping[str, str], ranges: Ranges) -> None:
    """Lets no later pass take for granted what was decided, since the export stands for other sizes as well.

    Args:
        exported: made inside `exact_sizes`.
        names: symbol -> name of the size.
        ranges: of every name, for all of these sizes.
    """
    if (env := _sizes_of(exported)) is None:
        return
    env.axioms = {known: value for known, value in env.axioms.items() if not _of_sizes(known, names)}
    env.divisible = {known for known in env.divisible if not _of_sizes(known, names)}
    for symbol in [symbol for symbol in env.var_to_range if str(symbol) in names]:
        env.var_to_range[symbol] = ValueRanges(*ranges[names[str(symbol)]])
    env._update_version_counter()


def _of_sizes(expr: sympy.Basic, names: Mapping[str, str]) -> bool:
    return all(str(symbol) in names for symbol in expr.free_symbols)


def asking_nothing(exported: ExportedProgram) -> AbstractContextManager[Any]:
    """Inside, the graph is traced again with no further decision: torch looks at sizes to say how tensors are laid out.

    Of a batch of 2, of which all but one row are compared, it would learn that it is 2.
    """
    env = _sizes_of(exported)
    return nullcontext() if env is None else env.suppress_guards()


def columns_of(when: Sequence[Sequence[Decision]], ranges: Ranges, exact: Mapping[str, int]) -> Columns | None:
    """The sizes for which decisions hold, by name.

    Args:
        when: all decisions of any one entry hold.
        ranges: of every name.
        exact: names that have one size.

    Returns:
        None if there are too many.
    """
    spans = ((name, exact.get(name, low), exact.get(name, high)) for name, (low, high) in sorted(ranges.items()))
    columns = every(tuple(spans))
    if columns is None:
        return None
    held = np.zeros(len(next(iter(columns.values()), ())), bool)
    for entry in when:
        held |= np.logical_and.reduce([_holding(decision, columns) for decision in entry], axis=0)
    return {name: column[held] for name, column in columns.items()}


def _holding(decision: Decision, columns: Columns) -> np.ndarray[Any, Any]:
    points = zip(*(columns[name].tolist() for name in decision.sizes), strict=True)
    known: dict[Any, bool] = {}
    return np.array([known[p] if p in known else known.setdefault(p, bool(decision.test(*p))) for p in points], bool)


def uncovered(sides: Sequence[Sequence[Decision]], ranges: Ranges, example: Mapping[str, int]) -> dict[str, int] | None:
    """Sizes in the ranges for which no side holds; None if there are none.

    Args:
        sides: the decisions of each export.
        ranges: of every name.
        example: sizes of the first export.

    Returns:
        Only the sizes that cannot be those of the example, and of these sizes near its: they are special in no other way.

    Raises:
        UnsupportedInputError: the decisions join so many sizes that not all can be tried.
    """
    decisions = [decision for side in sides for decision in side]
    names = sorted({name for decision in decisions for name in decision.sizes})
    values = [_told_apart(name, ranges[name], decisions, example[name]) for name in names]
    if math.prod(map(len, values)) > _POINTS:
        raise UnsupportedInputError(
            f"the model decides on {', '.join(names)} together, too many sizes to try",
            where=Where(source=decisions[0].source, stage="capture"),
            hint="narrow the Dims",
        )

    def covered(sizes: Mapping[str, int]) -> bool:
        return any(all(decision.holds(sizes) for decision in side) for side in sides)

    points = (dict(zip(names, point, strict=True)) for point in product(*values))
    found = next((sizes for sizes in points if not covered(sizes)), None)
    if found is None:
        return None
    for name in names:
        nearer = {**found, name: example[name]}
        found = found if covered(nearer) else nearer
    return {name: size for name, size in found.items() if size != example[name]}


def _told_apart(name: str, bounds: tuple[int, int], decisions: Sequence[Decision], example: int) -> Sequence[int]:
    """The sizes of one name that decisions tell apart, nearest to the example's first.

    They are one of each kind, or all where a decision joins the name with another.
    """
    nearest = sorted(range(bounds[0], bounds[1] + 1), key=lambda size: abs(size - example))
    mine = [decision for decision in decisions if name in decision.sizes]
    if any(len(decision.sizes) > 1 for decision in mine):
        return nearest
    kinds: dict[tuple[bool, ...], int] = {}
    for size in nearest:
        kinds.setdefault(tuple(decision.test(size) for decision in mine), size)
    return list(kinds.values())


def span(name: str, when: Sequence[Sequence[Decision]], bounds: tuple[int, int]) -> tuple[int, int]:
    """The smallest and the largest size of a name that decisions on it alone admit.

    Args:
        name: of the size.
        when: all decisions of any one entry hold.
        bounds: the declared range.
    """
    alone = [[decision.test for decision in entry if decision.sizes == (name,)] for entry in when]
    admitted = [n for n in range(bounds[0], bounds[1] + 1) if any(all(test(n) for test in tests) for tests in alone)]
    return admitted[0], admitted[-1]


def refuse_decision(decision: Decision) -> NoReturn:
    """Refuses a model for the sizes on the other side of a decision.

    Raises:
        UnsupportedInputError: names the decision, its line, and the way out.
    """
    raise UnsupportedInputError(
        f"the model computes something else where not {decision.text}",
        where=Where(source=decision.source, stage="capture"),
        hint="narrow the Dims to one side of this decision, and compile the other side by itself",
    )
