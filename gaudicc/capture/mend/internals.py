"""Capture, mending: the private parts of torch that mending touches, in one place."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx.experimental.symbolic_shapes import (
    GuardOnDataDependentSymNode,
    free_unbacked_symbols,
    statically_known_true,
)

Number = bool | int | float | torch.SymBool | torch.SymInt | torch.SymFloat
SYMBOLIC = (torch.SymBool, torch.SymInt, torch.SymFloat)


def is_data_dependent(value: object) -> bool:
    """Whether a symbolic number depends on values read from a tensor (not only on input shapes)."""
    return isinstance(value, SYMBOLIC) and bool(free_unbacked_symbols(value))


def known_true(condition: bool | torch.SymBool) -> bool:
    """Whether a condition on sizes holds for every run, without adding a guard."""
    return statically_known_true(condition)


def same_sizes(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors have equal shapes in every run."""
    return left.dim() == right.dim() and all(known_true(a == b) for a, b in zip(left.shape, right.shape, strict=True))


def is_constant(tensor: torch.Tensor) -> bool:
    """Whether the value of a traced tensor is a constant of the program, so that reading it freezes no input."""
    return getattr(tensor, "constant", None) is not None


def shares_storage(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether writing one tensor can change the other."""
    return bool(torch._C._is_alias_of(left, right))  # type: ignore[attr-defined]


def symbol_name(size: torch.SymInt) -> str:
    """The name of the expression behind a size, equal for equal sizes."""
    return str(size.node.expr)


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
