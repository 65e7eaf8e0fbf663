"""Capture: where the model's Python makes a plain number of a dynamic size, as `for t in range(x.shape[1])` does."""

from __future__ import annotations

import linecache
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, wraps
from itertools import product
from types import FrameType
from typing import Any
from unittest.mock import patch

import sympy
import torch

from gaudicc.capture.source_lines import running_line

_RANGE = re.compile(r"\brange\(")
_POINTS = 4096
"""Sizes that are tried at most."""


def is_one_number(size: torch.SymInt) -> bool:
    """Whether a size is the same number for all declared sizes: up to 64 tokens in chunks of 64 are one chunk.

    torch's bounds do not tell, so the sizes are tried. A number read from a tensor is none.
    """
    ranges = size.node.shape_env.var_to_range
    symbols = tuple(sorted(size.node.expr.free_symbols, key=str))
    return _one_number(size.node.expr, symbols, tuple((ranges[s].lower, ranges[s].upper) for s in symbols))


@lru_cache(maxsize=1024)
def _one_number(expr: sympy.Expr, symbols: tuple[sympy.Symbol, ...], ranges: tuple[tuple[Any, Any], ...]) -> bool:
    bounded = all(low.is_Integer and high.is_Integer for low, high in ranges)
    if not bounded or math.prod(int(high - low) + 1 for low, high in ranges) > _POINTS:
        return not symbols
    spans = (range(int(low), int(high) + 1) for low, high in ranges)
    values: set[sympy.Expr] = set()
    for point in product(*spans):
        values.add(expr.xreplace(dict(zip(symbols, map(sympy.Integer, point), strict=True))))
        if len(values) > 1:
            return False
    return True


@contextmanager
def noting_fixed_sizes() -> Iterator[list[str]]:
    """Notes the `file:line` of the user's code at which a dynamic size becomes a plain number, and is fixed by that."""
    places: list[str] = []

    def note(frame: FrameType) -> None:
        if line := running_line():
            places.append(line)

    with _watching(note):
        yield places


@contextmanager
def stopping_at_loops(stop: Callable[[FrameType], None]) -> Iterator[None]:
    """Calls `stop` with the frame of the user's code that is about to list a dynamic size: as a range, or row by row."""

    def look(frame: FrameType) -> None:
        if _RANGE.search(linecache.getline(frame.f_code.co_filename, frame.f_lineno)):
            stop(frame)

    with _watching(look), _watching_rows("__iter__", stop), _watching_rows("unbind", stop):
        yield


def _watching_rows(name: str, found: Callable[[FrameType], None]) -> AbstractContextManager[Any]:
    """Watches a method of tensors that gives a tensor for each row."""
    plain = getattr(torch.Tensor, name)

    @wraps(plain)
    def rows(self: Any, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        dim = kwargs.get("dim", args[0] if args else 0)
        size = self.shape[dim] if self.dim() else 0
        if isinstance(size, torch.SymInt) and not is_one_number(size) and "/torch/" not in frame.f_code.co_filename:
            found(frame)
        return plain(self, *args, **kwargs)

    return patch.object(torch.Tensor, name, rows)


@contextmanager
def _watching(found: Callable[[FrameType], None]) -> Iterator[None]:
    plain = torch.SymInt.__index__

    def index(self: Any) -> int:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename == __file__:  # one watch around another
            frame = frame.f_back
        if frame is not None and "/torch/" not in frame.f_code.co_filename and not is_one_number(self):
            found(frame)
        return int(plain(self))

    with patch.object(torch.SymInt, "__index__", index):
        yield
