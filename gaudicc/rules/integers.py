"""Rules for integer arithmetic that no engine takes.

Products of integer matrices: the matrix engine knows floats only. Sums and differences of int8: the tables list int16 and wider.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gaudicc.rules.rule import Rule

aten = torch.ops.aten
MOST = 1 << 26  # products side by side: 256 MiB in int32


def product(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b`: every product by itself, and their sums; exact, and wraps as eager does."""
    rows, columns = _matrices(a, b)
    terms = aten.mul.Tensor(aten.unsqueeze(rows, -1), aten.unsqueeze(columns, -3))
    result: Tensor = aten.sum.dim_IntList(terms, [-2], dtype=a.dtype)
    if b.dim() == 1:
        result = aten.squeeze.dim(result, -1)
    return aten.squeeze.dim(result, -2 if b.dim() > 1 else -1) if a.dim() == 1 else result


def _matrices(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors as one row, or one column."""
    return aten.unsqueeze(a, 0) if a.dim() == 1 else a, aten.unsqueeze(b, 1) if b.dim() == 1 else b


def _small_integers(a: Tensor, b: Tensor, *args: Any) -> str | None:
    if a.dtype not in (torch.int32, torch.int64):
        return "its operands are no int32 or int64"
    rows, columns = _matrices(a, b)
    batch = torch.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    entries = math.prod((*batch, *rows.shape[-2:], columns.shape[-1]))
    return f"it adds up {entries} products, more than {MOST}" if entries > MOST else None


def small_sum(op: Any, x: Tensor, y: Any, alpha: int = 1) -> Tensor:
    """The sum or difference in int32, of which the low eight bits are those of int8's; no cast is asked to drop the others."""
    number = op(_as_number(x), _as_number(y), alpha=alpha)
    low = aten.bitwise_and.Scalar(aten.add.Tensor(number, 128), 255)
    result: Tensor = aten._to_copy(aten.sub.Tensor(low, 128), dtype=torch.int8)
    return result


def _as_number(value: Any) -> Any:
    return aten._to_copy(value, dtype=torch.int32) if isinstance(value, Tensor) else int(value)


def _gives_int8(x: Tensor, y: Any, *args: Any, **kwargs: Any) -> str | None:
    return None if torch.result_type(x, y) is torch.int8 else "its result is no int8"


_SUMS = {
    "add": aten.add.Tensor, "sub": aten.sub.Tensor, "sub-a-number": aten.sub.Scalar, "rsub": aten.rsub.Tensor,
    "rsub-a-number": aten.rsub.Scalar,
}  # fmt: skip
RULES = (
    Rule(
        "integer-product", (aten.mm.default, aten.bmm.default, aten.matmul.default, aten.mv.default, aten.dot.default),
        product, check=_small_integers, cost="writes every product by itself before they are summed",
    ),
    *(
        Rule(
            f"{name}-of-int8", (op,), partial(small_sum, op), check=_gives_int8,
            cost="a copy of each operand in int32; three more elementwise ops",
        )
        for name, op in _SUMS.items()
    ),
)  # fmt: skip
