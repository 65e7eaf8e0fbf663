"""Rules for integers where a function of floats is asked for: eager computes it of them as floats."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from gaudicc.pipeline import Numerics
from gaudicc.rules import gammas, polynomials, special
from gaudicc.rules.rule import Rule

aten = torch.ops.aten
_FUNCTIONS = (
    aten.angle.default,
    *(op for rules in (special.RULES, gammas.RULES, polynomials.RULES) for rule in rules for op in rule.ops),
)


def of_floats(op: Any, *args: Any) -> Tensor:
    """The function of the default dtype."""
    dtype = torch.get_default_dtype()
    result: Tensor = op(*(aten._to_copy(arg, dtype=dtype) if _is_integer(arg) else arg for arg in args))
    return result


def softmax(x: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """The softmax of the dtype that is asked for."""
    result: Tensor = aten.softmax.int(aten._to_copy(x, dtype=dtype), dim)
    return result


def _is_integer(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.dtype.is_floating_point


def _integers(*args: Any) -> str | None:
    return None if any(map(_is_integer, args)) else "none of its operands is an integer"


def _softmax_of_integers(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> str | None:
    return None if _is_integer(x) and dtype is not None else "its operand is no integer"


RULES = (
    *(
        Rule(
            f"{op._schema.name.removeprefix('aten::').removeprefix('special_').replace('_', '-')}-of-integers",
            (op,), partial(of_floats, op), check=_integers, numerics=Numerics.ROUNDING, cost="a copy of each in float32",
        )
        for op in _FUNCTIONS
    ),
    Rule("softmax-of-integers", (aten.softmax.int,), softmax, check=_softmax_of_integers, cost="a copy in the dtype asked for"),
)  # fmt: skip
