"""Rules for bytes: what the device's kernels do not take as uint8, they take as int32, and the low eight bits are kept."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from gaudicc.rules.rule import Rule

aten = torch.ops.aten
_BITS = 8
_LEFT = (
    aten.bitwise_left_shift.Tensor, aten.bitwise_left_shift.Tensor_Scalar, aten.__lshift__.Tensor, aten.__lshift__.Scalar,
)  # fmt: skip
_RIGHT = (
    aten.bitwise_right_shift.Tensor, aten.bitwise_right_shift.Tensor_Scalar, aten.__rshift__.Tensor, aten.__rshift__.Scalar,
)  # fmt: skip
_WITHIN = (
    aten.bitwise_and.Tensor, aten.bitwise_and.Scalar, aten.bitwise_or.Tensor, aten.bitwise_or.Scalar,
    aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar,
)  # fmt: skip
_SUMS = (aten.add.Tensor, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Tensor, aten.rsub.Scalar)


def bitwise(op: Any, x: Tensor, y: Any) -> Tensor:
    """And, or, exclusive or: of bytes they give bytes."""
    return _as_byte(op(_as_number(x), _as_number(y)))


def invert(x: Tensor) -> Tensor:
    """The other eight bits."""
    return _as_byte(aten.bitwise_xor.Scalar(_as_number(x), 2**_BITS - 1))


def shift(op: Any, x: Tensor, y: Any) -> Tensor:
    """By eight bits or more nothing is left; int32 kernels need not agree on shifts by 32 bits."""
    by = aten.clamp(_as_number(y), max=_BITS) if isinstance(y, Tensor) else y if 0 <= y < _BITS else _BITS
    return _low(op(_as_number(x), by))


def arithmetic(op: Any, x: Tensor, y: Any, alpha: int = 1) -> Tensor:
    """The sum or difference in int32, of which the low bits are those of the byte's, wrapping included."""
    return _low(op(_as_number(x), _as_number(y), alpha=alpha))


def _low(number: Tensor) -> Tensor:
    # A cast that saturates would not keep the low bits.
    return _as_byte(aten.bitwise_and.Scalar(number, 2**_BITS - 1))


def _as_number(value: Any) -> Any:
    return aten._to_copy(value, dtype=torch.int32) if isinstance(value, Tensor) else value & 2**_BITS - 1


def _as_byte(number: Tensor) -> Tensor:
    result: Tensor = aten._to_copy(number, dtype=torch.uint8)
    return result


def _bytes(x: Any, y: Any = 0, *args: Any, **kwargs: Any) -> str | None:
    operands = [value for value in (x, y) if isinstance(value, Tensor)]
    if (
        not isinstance(x, Tensor)
        or isinstance(y, float)
        or any(v.dtype not in (torch.uint8, torch.bool) for v in operands)
    ):
        return "it is no op on bytes"
    return None if torch.result_type(x, y) is torch.uint8 else "it gives no bytes"


def _rule(op: Any, rewrite: Any, cost: str) -> Rule:
    kind = {"Scalar": "-a-number", "Tensor_Scalar": "-a-number"}.get(op._overloadname, "")
    name = op._schema.name.removeprefix("aten::").strip("_").replace("_", "-")
    return Rule(f"{name}{kind}-of-bytes", (op,), rewrite, check=_bytes, cost=f"a copy of each operand in int32{cost}")


RULES = (
    *(_rule(op, partial(bitwise, op), "") for op in _WITHIN),
    *(_rule(op, partial(shift, op), "; one more elementwise op") for op in (*_LEFT, *_RIGHT)),
    _rule(aten.bitwise_not.default, invert, ""),
    *(_rule(op, partial(arithmetic, op), "; one more elementwise op") for op in _SUMS),
)
