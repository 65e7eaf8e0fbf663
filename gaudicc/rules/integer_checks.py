"""Forms of int64 ops that tell whether the device wrapped their values, without any 64-bit arithmetic.

Each returns the result and a flag, bool `[]`. The op is computed a second time on floats: an int32 that wrapped is off by a
multiple of 2**32, and no rounding is. Where a device keeps 64 bits nothing wraps, and no flag is set.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from gaudicc.nodes import val
from gaudicc.rules.interval_calls import CASTS

aten = torch.ops.aten
LOW = torch.iinfo(torch.int32).min
LIMIT = 2.0**31
MOST_ENTRIES = 2**17
"""Of one sum: so many float additions round by less than 1/128 of the sum of magnitudes, whatever their order."""
_MOST_ALPHA = 2**15  # beyond it the rounding of one product could hide that the sum wrapped
_CANCELLED = 2.0**37  # a sum of magnitudes in whose rounding 2**32 is lost

Checked = Callable[..., tuple[Tensor, Tensor]]

_TERMS = frozenset(
    (
        aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Tensor, aten.rsub.Scalar,
    )
)  # fmt: skip
_FACTORS = frozenset(
    (
        aten.mul.Tensor, aten.mul.Scalar, aten.neg.default, aten.abs.default, aten.prod.default, aten.prod.dim_int,
        aten.cumprod.default, aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar, aten.square.default,
    )
)  # fmt: skip
# The places of what is added up; the other arguments are indices and dims.
_SUMS = {
    aten.nansum.default: (0,), aten.put.default: (0, 2),
    aten.sum.default: (0,), aten.sum.dim_IntList: (0,), aten.cumsum.default: (0,), aten.index_add.default: (0, 3),
    aten.scatter_add.default: (0, 3), aten.index_put.default: (0, 2), aten._unsafe_index_put.default: (0, 2),
}  # fmt: skip
_QUOTIENTS = frozenset(
    (aten.floor_divide.default, aten.floor_divide.Scalar, aten.div.Tensor_mode, aten.div.Scalar_mode)
)  # fmt: skip
_SHIFTS = frozenset(
    (
        aten.bitwise_left_shift.Tensor, aten.bitwise_left_shift.Tensor_Scalar, aten.__lshift__.Scalar,
        aten.__lshift__.Tensor,
    )
)  # fmt: skip


def checked_form(node: fx.Node, entries: float) -> Checked | None:
    """The checked form of a node with an int64 result, or None where there is none.

    Args:
        node: the op.
        entries: the most entries that are added up.
    """
    op: Any = node.target
    if op in _TERMS:
        alpha: Any = node.kwargs.get("alpha", 1)
        return partial(_terms, op) if abs(alpha) <= _MOST_ALPHA else None
    if op in _FACTORS:
        return partial(_factors, op)
    if op in _SUMS:
        return partial(_sums, op) if entries <= MOST_ENTRIES else None
    if op in _QUOTIENTS:
        return partial(_quotient, op)
    if op in _SHIFTS:
        return partial(_shift, op)
    if op in (aten.gcd.default, aten.lcm.default):
        return _divisor if op is aten.gcd.default else _multiple
    if op in CASTS and val(node.args[0]).is_floating_point():  # type: ignore[arg-type]
        return partial(_cast, op)
    return None


def _terms(op: Any, a: Any, b: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    result = op(a, b, **kwargs)
    estimate = op(_as_float(a), _as_float(b), **kwargs)
    alpha = abs(kwargs.get("alpha", 1))
    sizes = [
        alpha * size if isinstance(size, (int, float)) else aten.mul.Scalar(size, alpha) for size in map(_size, (a, b))
    ]
    first, second = sizes if isinstance(sizes[0], Tensor) else reversed(sizes)
    scale = (aten.add.Tensor if isinstance(second, Tensor) else aten.add.Scalar)(first, second)
    return result, aten.any.default(_apart(estimate, result, scale, 2.0**-16))


def _factors(op: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    result = op(*args, **kwargs)
    given = {key: value for key, value in kwargs.items() if key != "dtype"}
    estimate = op(*pytree.tree_map(_as_float, args), **given)
    return result, aten.any.default(_apart(estimate, result, aten.abs.default(estimate), 2.0**-6))


def _sums(op: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Where the magnitudes are so large that rounding hides 2**32, a small result is taken for one that wrapped."""
    result = op(*args, **kwargs)
    given = {key: value for key, value in kwargs.items() if key != "dtype"}
    estimate = op(*(_as_float(arg) if i in _SUMS[op] else arg for i, arg in enumerate(args)), **given)
    scale = op(*(_size(arg) if i in _SUMS[op] else arg for i, arg in enumerate(args)), **given)
    small = aten.le.Scalar(aten.abs.default(_as_float(result)), LIMIT)
    hidden = aten.logical_and.default(aten.ge.Scalar(scale, _CANCELLED), small)
    return result, aten.any.default(aten.logical_or.default(_apart(estimate, result, scale, 2.0**-6), hidden))


def _quotient(op: Any, a: Any, b: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Only the smallest value over -1 leaves 32 bits, and becomes itself."""
    result = op(a, b, **kwargs)
    kept = aten.logical_and.default(aten.eq.Scalar(a, LOW), aten.eq.Scalar(result, LOW))
    if isinstance(b, Tensor):
        return result, aten.any.default(aten.logical_and.default(kept, aten.eq.Scalar(b, -1)))
    return result, aten.any.default(kept)


def _divisor(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Only the smallest value has a divisor that leaves 32 bits, itself without its sign."""
    result = aten.gcd.default(a, b)
    return result, aten.any.default(aten.eq.Scalar(result, LOW))


def _multiple(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A least common multiple is a product without the common divisor."""
    result = aten.lcm.default(a, b)
    common = aten.clamp.default(_size(aten.gcd.default(a, b)), 1.0)
    estimate = aten.mul.Tensor(aten.div.Tensor(_size(a), common), _size(b))
    return result, aten.any.default(_apart(estimate, result, estimate, 2.0**-6))


def _shift(op: Any, a: Tensor, b: Any) -> tuple[Tensor, Tensor]:
    """A shift is a product by a power of two."""
    result = op(a, b)
    power = aten.pow.Scalar(2.0, _as_float(b)) if isinstance(b, Tensor) else 2.0**b
    estimate = (aten.mul.Tensor if isinstance(power, Tensor) else aten.mul.Scalar)(_as_float(a), power)
    return result, aten.any.default(_apart(estimate, result, aten.abs.default(estimate), 2.0**-6))


def _cast(op: Any, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Whatever the device makes of a number beyond 32 bits is not near it; what is not finite is no integer anywhere."""
    result = op(x, *args, **kwargs)
    wide = x if x.dtype in (torch.float32, torch.float64) else aten._to_copy.default(x, dtype=torch.float32)
    size = aten.abs.default(wide)
    near = aten.add.Scalar(aten.mul.Scalar(size, 2.0**-16), 2.0)
    gap = aten.abs.default(aten.sub.Tensor(wide, aten._to_copy.default(result, dtype=wide.dtype)))
    finite = aten.lt.Scalar(size, float("inf"))
    return result, aten.any.default(aten.logical_and.default(aten.gt.Tensor(gap, near), finite))


def _apart(estimate: Tensor, result: Tensor, scale: Tensor, rounding: float) -> Tensor:
    """Where a result is further from its estimate than rounding can be."""
    gap = aten.abs.default(aten.sub.Tensor(estimate, _as_float(result)))
    most = aten.clamp.default(aten.mul.Scalar(scale, rounding), LIMIT)
    far: Tensor = aten.ge.Tensor(gap, most)
    return far


def _as_float(value: Any) -> Any:
    whole = isinstance(value, Tensor) and not value.is_floating_point()
    return aten._to_copy.default(value, dtype=torch.float32) if whole else value


def _size(value: Any) -> Any:
    return aten.abs.default(_as_float(value)) if isinstance(value, Tensor) else abs(value)
