"""Capture, mending: the private parts of torch that mending touches, in one place."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any
from unittest.mock import patch

import sympy
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.fx.experimental.symbolic_shapes import (
    GuardOnDataDependentSymNode,
    ShapeEnv,
    _constrain_range_for_size,
    free_unbacked_symbols,
    statically_known_true,
)
from torch.nn.modules import module
from torch.utils._sympy.value_ranges import bound_sympy

from gaudicc.capture.fixed_sizes import is_one_number

Number = bool | int | float | torch.SymBool | torch.SymInt | torch.SymFloat
SYMBOLIC = (torch.SymBool, torch.SymInt, torch.SymFloat)


def is_data_dependent(value: object) -> bool:
    """Whether a symbolic number depends on values read from a tensor (not only on input shapes)."""
    return isinstance(value, SYMBOLIC) and bool(free_unbacked_symbols(value))


def is_fixed(size: object) -> bool:
    """Whether a size is one number in every run."""
    return not isinstance(size, (torch.SymInt, torch.SymFloat)) or is_one_number(size)


def known_true(condition: bool | torch.SymBool) -> bool:
    """Whether a condition on sizes holds for every run, without adding a guard."""
    return statically_known_true(condition)


def same_sizes(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors have equal shapes in every run."""
    return same_sizes_as(left, right.shape)


def same_sizes_as(tensor: torch.Tensor, shape: Sequence[Any]) -> bool:
    """Whether a tensor has this shape in every run."""
    return tensor.dim() == len(shape) and all(known_true(a == b) for a, b in zip(tensor.shape, shape, strict=True))


def is_constant(tensor: torch.Tensor) -> bool:
    """Whether the value of a traced tensor is a constant of the program, so that reading it freezes no input."""
    return getattr(tensor, "constant", None) is not None


def number_read_from(tensor: torch.Tensor) -> Number | None:
    """The number that was read from a traced tensor of no dims, if it has not changed since."""
    return getattr(tensor, "item_memo", None)


def shares_storage(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether writing one tensor can change the other."""
    return bool(torch._C._is_alias_of(left, right))  # type: ignore[attr-defined]


def symbol_name(size: torch.SymInt) -> str:
    """The name of the expression behind a size, equal for equal sizes."""
    return str(size.node.expr)


def unbacked_symbols(value: Any) -> list[Any]:
    """The symbols of a symbolic number that stand for values read from tensors, in the order in which they were."""
    return sorted(free_unbacked_symbols(value), key=lambda symbol: (len(str(symbol)), str(symbol)))


def storage_of(tensor: torch.Tensor) -> int:
    """The identity of what a tensor and its views share."""
    return int(tensor.untyped_storage()._cdata)


def at_least_zero(number: Any, trips: Mapping[str, tuple[Any, int]]) -> bool:
    """Whether a number is proved to be 0 or more in every trip of the loops around it.

    Args:
        number: linear in the numbers of the trips, so that the first and the last trip decide.
        trips: symbol of the number of a trip -> how far the loop's range reaches, which is 1 at least where a trip asks,
            and its step: the number is at most `(reach - 1) / step`.
    """
    if not isinstance(number, torch.SymInt):
        return bool(number >= 0)
    env = number.node.shape_env
    fixed = {guard.expr.lhs: guard.expr.rhs for guard in env.guards if isinstance(guard.expr, sympy.Eq)}
    fixed = {size: value for size, value in fixed.items() if size.is_symbol and value.is_number}  # sizes of this side
    expr, ranges = sympy.expand(number.node.expr.xreplace(fixed)), env.var_to_range
    inner = {symbol: trips[str(symbol)] for symbol in unbacked_symbols(number) if str(symbol) in trips}
    if any(sympy.diff(expr, symbol).free_symbols & set(inner) for symbol in inner):
        return False
    reaches = [_expression(reach).xreplace(fixed) for reach, _ in inner.values()]
    if any(reach.is_number and reach < 1 for reach in reaches):
        return True  # on this side there is no trip
    at_least_one = dict(filter(None, map(_one_more, reaches)))
    ends = [(0, (reach - 1) / step) for reach, (_, step) in zip(reaches, inner.values(), strict=True)]
    for corner in product(*ends):
        at = sympy.expand(
            expr.xreplace(dict(zip(inner, map(sympy.sympify, corner), strict=True))).xreplace(at_least_one)
        )
        known = {symbol: ranges[symbol] for symbol in at.free_symbols if symbol in ranges}
        if not bound_sympy(at, known).lower >= 0:
            return False
    return True


def _expression(size: Any) -> sympy.Expr:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def _one_more(reach: sympy.Expr) -> tuple[sympy.Basic, sympy.Expr] | None:
    """What a reach is linear in, a size or what was computed of sizes, and that where the reach is 1 at least."""
    reach = sympy.expand(reach)
    more = sympy.Dummy("more", integer=True, nonnegative=True)
    for part in (*sorted(reach.free_symbols, key=str), *sorted(reach.atoms(sympy.Function), key=str)):
        count = reach.coeff(part)
        rest = reach - count * part
        if count.is_number and count != 0 and not rest.has(part):
            return part, (more + 1 - rest) / count
    return None


def same_expression(left: object, right: object) -> bool:
    """Whether two sizes are one and the same expression."""
    return left is right or (
        isinstance(left, torch.SymInt) and isinstance(right, torch.SymInt) and bool(left.node.expr == right.node.expr)
    )


def symbols_of(value: Any) -> set[Any]:
    """The symbols of a symbolic number."""
    return set(value.node.expr.free_symbols)


def between(size: torch.SymInt, least: int, most: int) -> torch.SymInt:
    """Tells torch the range of a number that was read from a tensor and is a size, without a node."""
    _constrain_range_for_size(size, min=least, max=most)
    return size


@contextlib.contextmanager
def untraced(sizes: ShapeEnv) -> Iterator[None]:
    """Lets operations run on fake values without becoming nodes; `sizes`: those of the trace."""
    hooks = patch.dict(module._global_buffer_registration_hooks, clear=True)  # export's own wants a node
    with disable_proxy_modes_tracing(), sizes.ignore_fresh_unbacked_symbols(), hooks:
        yield


def stops_at_data(error: BaseException) -> bool:
    """Whether capture failed because Python needs the value of a tensor."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (GuardOnDataDependentSymNode, DataDependentOutputException)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from logging and printing the graph of an attempt at export that fails: failing is part of mending."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level, shown, printed = logger.level, sys.stderr, io.StringIO()
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(printed), warnings.catch_warnings():
            # an attribute that forward sets before it reads it is no state, and is restored after the attempt
            warnings.filterwarnings("ignore", r"The tensor attributes? .* assigned during export", UserWarning)
            yield
        shown.write(printed.getvalue())
    finally:
        logger.setLevel(level)
