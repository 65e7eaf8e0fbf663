"""Rules for integer arithmetic that the tables list for floats only: subtraction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gaudicc.rules.rule import Rule

aten = torch.ops.aten


def subtract(x: Tensor, y: Any, alpha: int = 1) -> Tensor:
    """X - alpha * y as x + (-alpha) * y: exact in two's complement, wrapping included."""
    scaled = _scaled(y, -alpha, torch.result_type(x, y)) if isinstance(y, Tensor) else -alpha * y
    result: Tensor = aten.add.Tensor(x, scaled)
    return result


def reversed_subtract(x: Tensor, y: Any, alpha: int = 1) -> Tensor:
    """Y - alpha * x, for `rsub`."""
    result: Tensor = aten.add.Tensor(_scaled(x, -alpha, torch.result_type(x, y)), y)
    return result


def _scaled(x: Tensor, factor: int, dtype: torch.dtype) -> Tensor:
    # In the dtype of the result: -(-128) is no int8, but may be what an int16 lacks.
    result: Tensor = aten.mul.Tensor(x if x.dtype == dtype else aten._to_copy(x, dtype=dtype), factor)
    return result


def _integers(x: Any, y: Any, *args: Any, **kwargs: Any) -> str | None:
    operands = [value for value in (x, y) if isinstance(value, Tensor)]
    if any(value.dtype.is_floating_point or value.dtype.is_complex for value in operands) or isinstance(y, float):
        return "it is no integer subtraction"
    return None


RULES = (
    Rule(
        "integer-subtract", (aten.sub.Tensor, aten.sub.Scalar), subtract, check=_integers,
        cost="one more elementwise op",
    ),
    Rule(
        "integer-rsub", (aten.rsub.Scalar, aten.rsub.Tensor), reversed_subtract, check=_integers,
        cost="one more elementwise op",
    ),
)  # fmt: skip
