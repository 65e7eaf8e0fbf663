"""Rules for int8, uint8 and int16: what the device's kernels do not take as these, they take as int32; bytes move as int8.

Casts of int16, which no table lists, are put together of its two bytes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gaudicc.rules.rule import Rule

aten = torch.ops.aten
SMALL = frozenset({torch.int8, torch.uint8, torch.int16})
# Their results are flags, places, or numbers that the operands' dtype holds.
_PAIRS = (
    aten.eq.Tensor, aten.eq.Scalar, aten.ne.Tensor, aten.ne.Scalar, aten.lt.Tensor, aten.lt.Scalar, aten.le.Tensor,
    aten.le.Scalar, aten.gt.Tensor, aten.gt.Scalar, aten.ge.Tensor, aten.ge.Scalar, aten.maximum.default,
    aten.minimum.default, aten.fmax.default, aten.fmin.default, aten.remainder.Tensor,
    aten.remainder.Scalar, aten.fmod.Tensor, aten.fmod.Scalar, aten.div.Tensor_mode, aten.bitwise_and.Tensor,
    aten.bitwise_and.Scalar, aten.bitwise_or.Tensor, aten.bitwise_or.Scalar, aten.bitwise_xor.Tensor, aten.bitwise_xor.Scalar,
)  # fmt: skip
_WITHIN = (
    aten.amax.default, aten.amin.default, aten.max.default, aten.max.dim, aten.min.default, aten.min.dim,
    aten.argmax.default, aten.argmin.default, aten.cummax.default, aten.cummin.default, aten.signbit.default,
    aten.sign.default, aten.scatter.src, aten.scatter.value, aten.searchsorted.Tensor, aten.kthvalue.default,
    aten.median.default, aten.median.dim,
)  # fmt: skip
# Their results wrap: the low bits of those in int32.
_WRAPPING = (
    aten.neg.default, aten.abs.default, aten.scatter_add.default, aten.index_add.default, aten.mm.default, aten.bmm.default,
    aten.matmul.default, aten.mv.default, aten.dot.default,
)  # fmt: skip
_ANY = (aten.any.default, aten.any.dim, aten.any.dims)
_MOVES = (
    aten.cat.default, aten.clone.default, aten.flip.default, aten.gather.default, aten.index_select.default,
    aten.index.Tensor, aten.scatter.src, aten.index_put.default, aten.index_copy.default,
    aten.masked_scatter.default,
)  # fmt: skip
_FACTORIES = (aten.scalar_tensor.default, aten.full.default, aten.full_like.default, aten.arange.start_step)


def in_int32(op: Any, wraps: bool, *args: Any, **kwargs: Any) -> Any:
    """The op on int32, beside a fraction on float32; what it gives in int32 is small again."""
    (dtype,) = _kinds(args, kwargs)
    wide = torch.float32 if any(isinstance(arg, float) for arg in args) else torch.int32
    args, kwargs = pytree.tree_map_only(Tensor, partial(_as_number, dtype, wide), (args, kwargs))
    return pytree.tree_map_only(Tensor, partial(_small_again, dtype, wraps), op(*args, **kwargs))


def any_byte(op: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`any` of bytes is a byte, 0 or 1."""
    flags = op(aten.ne.Scalar(aten._to_copy(x, dtype=torch.int32), 0), *args, **kwargs)
    result: Tensor = aten._to_copy(flags, dtype=torch.uint8)
    return result


def _kinds(*values: Any) -> set[torch.dtype]:
    return {leaf.dtype for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor) and leaf.dtype in SMALL}


def _as_number(dtype: torch.dtype, wide: torch.dtype, x: Tensor) -> Tensor:
    number: Tensor = aten._to_copy(x, dtype=wide) if x.dtype is dtype else x
    return number


def _small_again(dtype: torch.dtype, wraps: bool, number: Tensor) -> Tensor:
    if number.dtype is not torch.int32:
        return number
    if wraps:  # a cast that saturates would not keep the low bits
        info = torch.iinfo(dtype)
        above = aten.bitwise_and.Scalar(aten.sub.Tensor(number, info.min), info.max - info.min)
        number = aten.add.Tensor(above, info.min)
    result: Tensor = aten._to_copy(number, dtype=dtype)
    return result


def _one_kind(*args: Any, **kwargs: Any) -> str | None:
    kinds = _kinds(args, kwargs)
    dtypes = {leaf.dtype for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
    if len(kinds) != 1 or dtypes - kinds - {torch.int64, torch.bool}:  # these two are indices and masks, or decide
        return "its operands are not of one small integer dtype"
    return None


def _pair(x: Any, y: Any, **kwargs: Any) -> str | None:
    if reason := _one_kind(x, y):
        return reason
    info = torch.iinfo(next(iter(_kinds(x, y))))
    fits = not isinstance(y, int) or info.min <= y <= info.max
    return None if fits else f"eager takes the number {y} for another one, which {info.dtype} holds"


def _byte(x: Tensor, *args: Any) -> str | None:
    return None if x.dtype is torch.uint8 else "it is no op on bytes"


def as_int8(op: Any, *args: Any, **kwargs: Any) -> Tensor:
    """A move of bytes: the same bits under another name."""
    args, kwargs = pytree.tree_map_only(Tensor, partial(_renamed, torch.uint8, torch.int8), (args, kwargs))
    return _renamed(torch.int8, torch.uint8, op(*args, **kwargs))


def _renamed(old: torch.dtype, new: torch.dtype, x: Tensor) -> Tensor:
    result: Tensor = aten.view.dtype(x, new) if x.dtype is old else x
    return result


def _moves_bytes(first: Any, *args: Any, **kwargs: Any) -> str | None:
    moved = pytree.tree_leaves(first)
    return None if all(each.dtype is torch.uint8 for each in moved) else "it moves no bytes"


def made_of_int32(op: Any, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
    """Bytes that are made of numbers."""
    result: Tensor = aten._to_copy(op(*args, dtype=torch.int32, **kwargs), dtype=torch.uint8)
    return result


def _makes_bytes(*args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> str | None:
    like = args[0].dtype if isinstance(args[0], Tensor) else None
    numbers = [arg for arg in args if isinstance(arg, (int, float))]
    if (dtype or like) is not torch.uint8:
        return "it makes no bytes"
    return None if all(0 <= number <= 256 for number in numbers) else "a number among its arguments is no byte"


def whole_cast(x: Tensor, *, dtype: torch.dtype, **options: Any) -> Tensor:
    """A cast of bytes or of int16, by way of int32."""
    layout = options.get("memory_format") or torch.preserve_format
    number = _of_two_bytes(x) if x.dtype is torch.int16 else aten._to_copy(x, dtype=torch.int32, memory_format=layout)
    return number if dtype is torch.int32 else aten._to_copy(number, dtype=dtype, memory_format=layout)


def _of_two_bytes(x: Tensor) -> Tensor:
    parts = aten.view.dtype(aten.unsqueeze(x, -1), torch.int8)
    low, high = (aten._to_copy(aten.select.int(parts, -1, i), dtype=torch.int32) for i in (0, 1))
    number: Tensor = aten.add.Tensor(aten.bitwise_and.Scalar(low, 255), aten.mul.Tensor(high, 256))
    return number


def _from_small(x: Tensor, *, dtype: torch.dtype | None = None, **options: Any) -> str | None:
    if x.dtype not in (torch.uint8, torch.int16) or dtype in (None, x.dtype) or dtype in SMALL:
        return "it is no cast of uint8 or int16 to a wider dtype"
    return "its way would lead back to itself" if (x.dtype, dtype) == (torch.uint8, torch.int32) else None


def _name(op: Any, what: str) -> str:
    kind = {"Scalar": "-a-number", "value": "-a-number", "dim": "-along-a-dim", "dims": "-along-dims"}.get(
        op._overloadname, ""
    )
    return f"{op._schema.name.removeprefix('aten::').strip('_').replace('_', '-')}{kind}-{what}"


RULES = (
    *(Rule(_name(op, "as-int8"), (op,), partial(as_int8, op), check=_moves_bytes, cost="nothing") for op in _MOVES),
    *(
        Rule(
            _name(op, "of-small-integers"), (op,), partial(in_int32, op, wraps), check=check,
            cost="a copy of each operand in int32",
        )
        for ops, wraps, check in ((_PAIRS, False, _pair), (_WITHIN, False, _one_kind), (_WRAPPING, True, _one_kind))
        for op in ops
    ),
    *(Rule(_name(op, "of-bytes"), (op,), partial(any_byte, op), check=_byte, cost="a copy in int32") for op in _ANY),
    *(
        Rule(_name(op, "by-way-of-int32"), (op,), partial(made_of_int32, op), check=_makes_bytes, cost="a copy in int32")
        for op in _FACTORIES
    ),
    Rule(
        "cast-by-way-of-int32", (aten._to_copy.default,), whole_cast, check=_from_small,
        cost="a copy in int32; of int16 two, and three elementwise ops",
    ),
)  # fmt: skip
