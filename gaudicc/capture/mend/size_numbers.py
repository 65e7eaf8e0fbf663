"""Capture, mending: plain numbers that Python makes of sizes, as `int(x.shape[1])` and `math.log(n)`, stay symbolic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gaudicc.capture.mend.context import active
from gaudicc.capture.mend.internals import is_data_dependent, is_fixed
from gaudicc.whole_sizes import becomes_whole


def is_real(value: Any) -> bool:
    """Whether a value is a number that only sizes decide, and differs from size to size."""
    return isinstance(value, (torch.SymInt, torch.SymFloat)) and not is_data_dependent(value) and not is_fixed(value)


def int_of(value: torch.SymInt | torch.SymFloat) -> Any:
    """`int` of a number that sizes decide; a plain one, which fixes them, of a real number that whole ones do not round as."""
    if isinstance(value, torch.SymInt):
        return value
    return torch.sym_int(value) if becomes_whole(value.node.expr) else int(value)


def float_of(value: torch.SymInt | torch.SymFloat) -> Any:
    """`float` of a number that sizes decide."""
    return torch.sym_float(value)


def sqrt_of(value: torch.SymInt | torch.SymFloat) -> Any:
    """`math.sqrt` of a number that sizes decide."""
    return torch.sym_sqrt(torch.sym_float(value))


def of_sizes(plain: Callable[..., Any], traced: Callable[..., torch.Tensor] | None = None) -> Callable[..., Any]:
    """A function of `math` whose tensor form is used where an argument is a number that sizes decide.

    Its last bit in float64 may be another than that of Python's.

    Args:
        plain: the function.
        traced: its tensor form; torch's function of the same name by default.
    """
    form = traced or getattr(torch, plain.__name__)

    def apply(*args: Any) -> Any:
        context = active()
        if context is None or not any(map(is_real, args)):
            return plain(*args)
        return context.numbers.read(form(*(context.numbers.tensor(arg).to(torch.float64) for arg in args)))

    return apply


def log(value: torch.Tensor, base: torch.Tensor | None = None) -> torch.Tensor:
    """The tensor form of `math.log`, which takes a base besides."""
    return value.log() if base is None else value.log() / base.log()
