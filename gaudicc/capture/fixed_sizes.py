"""Capture: where the model's Python makes a plain number of a dynamic size, as `for t in range(x.shape[1])` does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import reduce, wraps
from types import FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
import sympy
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from gaudicc.capture.shapes import UNBOUNDED, bounds_of
from gaudicc.capture.size_trials import Spans, every, only_value, tried
from gaudicc.capture.source_lines import running_line
from gaudicc.whole_sizes import becomes_whole


def is_one_number(size: torch.SymInt | torch.SymFloat) -> bool:
    """Whether a size is the same number for all declared sizes: up to 64 tokens in chunks of 64 are one chunk.

    torch's bounds do not tell, so the sizes are tried. A number read from a tensor is none.
    """
    spans = spans_of(size.node.expr, size.node.shape_env)
    return spans is not None and only_value(size.node.expr, spans) is not None


def holds_here(condition: bool | torch.SymBool) -> bool:
    """Whether a condition on sizes holds for all that the decisions of the trace so far leave."""
    if isinstance(condition, bool):
        return condition
    expr, env = condition.node.expr, condition.node.shape_env
    spans = spans_of(expr, env)
    columns = None if spans is None else every(spans)
    values = None if columns is None else tried(expr, columns)
    if columns is None or values is None:
        return False
    decided = (tried(guard.expr, columns) for guard in env.guards if guard.expr.free_symbols <= expr.free_symbols)
    left = reduce(np.logical_and, (known for known in decided if known is not None), np.asarray(True))
    return bool((values | ~left).all())


def spans_of(expr: sympy.Basic, env: ShapeEnv) -> Spans | None:
    """The sizes of the symbols of an expression as far as a trace knows them; None if one has no bound."""
    symbols = sorted(expr.free_symbols, key=str)
    if not all(symbol in env.var_to_range for symbol in symbols):
        return None
    spans = tuple((str(symbol), *bounds_of(symbol, env.var_to_range[symbol], UNBOUNDED)) for symbol in symbols)
    return None if any(high >= UNBOUNDED for _, _, high in spans) else spans


@contextmanager
def noting_fixed_sizes() -> Iterator[list[str]]:
    """Notes the `file:line` of the user's code at which a dynamic size becomes a plain number, and is fixed by that.

    Some functions of torch, as `linspace`, take a number where a size is given: then the size is one number from there on.
    """
    places: list[str] = []
    learn = ShapeEnv._set_replacement

    def note(frame: FrameType) -> None:
        if line := running_line():
            places.append(line)

    @wraps(learn)
    def learned(env: ShapeEnv, symbol: sympy.Symbol, value: sympy.Expr, *args: Any) -> Any:
        if value.is_number and (line := running_line()):
            places.append(line)
        return learn(env, symbol, value, *args)

    with _watching(note), patch.object(ShapeEnv, "_set_replacement", learned):
        yield places


@contextmanager
def stopping_at_numbers(stop: Callable[[FrameType], None]) -> Iterator[None]:
    """Calls `stop` with the frame of the user's code that is about to make a plain number of a dynamic size.

    And with that which goes through the rows of a dynamic size, or splits a tensor into pieces whose lengths were read from
    another one.
    """
    with _watching(stop), _watching_pieces(stop), ExitStack() as watches:
        for kind, name in _LISTS:
            watches.enter_context(_watching_rows(kind, name, stop))
        yield


# Traced tensors have a `tolist` of their own.
_LISTS = (
    (Tensor, "__iter__"),
    (Tensor, "unbind"),
    (Tensor, "tolist"),
    (FakeTensor, "tolist"),
    (FunctionalTensor, "tolist"),
)


def _watching_rows(kind: type, name: str, found: Callable[[FrameType], None]) -> AbstractContextManager[Any]:
    """Watches a method of tensors that gives a tensor, or a number, for each row."""
    plain = getattr(kind, name)

    @wraps(plain)
    def rows(self: Any, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        dim = kwargs.get("dim", args[0] if args else 0)
        size = self.shape[dim] if self.dim() else 0
        if isinstance(size, torch.SymInt) and not is_one_number(size) and "/torch/" not in frame.f_code.co_filename:
            found(frame)
        return plain(self, *args, **kwargs)

    return patch.object(kind, name, rows)


def _watching_pieces(found: Callable[[FrameType], None]) -> AbstractContextManager[Any]:
    plain = Tensor.split

    @wraps(plain)
    def split(self: Any, split_size: Any, dim: int = 0) -> Any:
        if isinstance(split_size, (list, tuple)) and any(
            isinstance(size, torch.SymInt) and not size.node.has_hint() for size in split_size
        ):
            frame: FrameType | None = sys._getframe(1)
            while frame is not None and "/torch/" in frame.f_code.co_filename:
                frame = frame.f_back
            if frame is not None:
                found(frame)
        return plain(self, split_size, dim)

    return patch.object(Tensor, "split", split)


# The methods by which Python makes a plain number of a symbolic one: `float(x.shape[1])` and `math.sqrt` go by `__index__`.
_NUMBERS = (
    (torch.SymInt, "__index__", int),
    (torch.SymInt, "__int__", int),
    (torch.SymFloat, "__int__", int),
    (torch.SymFloat, "__float__", float),
)


@contextmanager
def _watching(found: Callable[[FrameType], None]) -> Iterator[None]:
    with ExitStack() as watches:
        for kind, name, number in _NUMBERS:
            watches.enter_context(_watching_numbers(kind, name, number, found))
        yield


def _has_form(value: Any, number: type) -> bool:
    """Whether a number that Python is about to make of a size need not be one: `int(0.7 * n)` rounds as no whole numbers do."""
    if isinstance(value, torch.SymFloat) and number is int and not becomes_whole(value.node.expr):
        return False
    return not is_one_number(value)


def _watching_numbers(
    kind: Any, name: str, number: type, found: Callable[[FrameType], None]
) -> AbstractContextManager[Any]:
    plain = getattr(kind, name)

    @wraps(plain)
    def made(self: Any) -> Any:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename == __file__:  # one watch around another
            frame = frame.f_back
        if frame is not None and "/torch/" not in frame.f_code.co_filename and _has_form(self, number):
            found(frame)
        return number(plain(self))

    return patch.object(kind, name, made)
