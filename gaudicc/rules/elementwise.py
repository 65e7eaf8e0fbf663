"""Rules for single entries: integer `abs`, `neg`, `sign`, `gcd`, `lcm`, rounding; `angle` of reals; narrow casts; leftovers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gaudicc.pipeline import Numerics
from gaudicc.rules.rule import Rule

aten = torch.ops.aten
# Euclid's steps for numbers below 2^31 are at most 45 (consecutive Fibonacci numbers), below 2^63 at most 91.
_EUCLID = {torch.int8: 10, torch.uint8: 12, torch.int16: 22, torch.int32: 45, torch.int64: 91}
_WIDE = {torch.int16: 2, torch.int8: 4, torch.uint8: 4}


def negative(x: Tensor) -> Tensor:
    """Integers times -1, which wraps as negation does."""
    result: Tensor = aten.mul.Tensor(x, -1)
    return result


def absolute(x: Tensor) -> Tensor:
    """Integers: the negative ones times -1."""
    result: Tensor = aten.where.self(aten.lt.Scalar(x, 0), negative(x), x)
    return result


def sign(x: Tensor) -> Tensor:
    """Of integers: 1 where above zero, -1 where below."""
    above, below = (aten._to_copy(compare(x, 0), dtype=x.dtype) for compare in (aten.gt.Scalar, aten.lt.Scalar))
    result: Tensor = aten.add.Tensor(above, negative(below))
    return result


def _integers(x: Tensor, *args: Any) -> str | None:
    if x.dtype.is_floating_point or x.dtype in (torch.bool, torch.uint8):
        return "it is no signed integer"
    return None


def whole(x: Tensor) -> Tensor:
    """What rounding makes of an integer: itself."""
    result: Tensor = aten.clone(x)
    return result


def finite(x: Tensor) -> Tensor:
    """Every integer is finite."""
    result: Tensor = aten.full(list(x.shape), True, dtype=torch.bool, device=x.device)
    return result


def _whole_numbers(x: Tensor) -> str | None:
    return "it is no integer" if x.dtype.is_floating_point else None


def gcd(a: Tensor, b: Tensor) -> Tensor:
    """Euclid's algorithm, as many steps as the dtype can ask for."""
    a, b = torch.broadcast_tensors(a, b)
    a, b = absolute(a), absolute(b)
    zero = aten.full([], 0, dtype=a.dtype, device=a.device)
    for _ in range(_EUCLID[a.dtype]):
        done = aten.eq.Scalar(b, 0)
        rest = aten.remainder.Tensor(a, aten.where.self(done, aten.full_like(b, 1), b))
        a, b = aten.where.self(done, a, b), aten.where.self(done, zero, rest)
    return a


def lcm(a: Tensor, b: Tensor) -> Tensor:
    """`|a / gcd * b|`."""
    common = gcd(a, b)
    safe = aten.where.self(aten.eq.Scalar(common, 0), aten.full_like(common, 1), common)
    result: Tensor = absolute(aten.mul.Tensor(aten.div.Tensor_mode(a, safe, rounding_mode="trunc"), b))
    return result


def _two_integers(a: Tensor, b: Tensor) -> str | None:
    if a.dtype != b.dtype or a.dtype not in (torch.int8, torch.int32, torch.int64):
        return "Euclid's algorithm is spelled out for int8, int32 and int64 only"
    return None


def angle(x: Tensor) -> Tensor:
    """Of a real number: pi where it is negative, 0 elsewhere; NaN stays."""
    pi, zero = (aten.full([], value, dtype=x.dtype, device=x.device) for value in (math.pi, 0.0))
    result: Tensor = aten.where.self(aten.isnan(x), x, aten.where.self(aten.lt.Scalar(x, 0), pi, zero))
    return result


def _floats(x: Tensor) -> str | None:
    return None if x.dtype.is_floating_point else "the angle of an integer is a float"


def narrow_cast(x: Tensor, *, dtype: torch.dtype, **options: Any) -> Tensor:
    """A cast to a narrow integer: the low bytes of the int32 that the device can cast to, copied by a product."""
    layout = options.get("memory_format") or torch.preserve_format
    wide = aten._to_copy(x, dtype=torch.int32, memory_format=layout)
    parts = aten.view.dtype(aten.unsqueeze(wide, -1), dtype)
    result: Tensor = aten.mul.Tensor(aten.select.int(parts, -1, 0), 1)
    return result


def _narrow(x: Tensor, *, dtype: torch.dtype | None = None, **options: Any) -> str | None:
    if dtype not in _WIDE:
        return "the device casts to this dtype itself"
    return None


def trilinear(
    a: Tensor, b: Tensor, c: Tensor, expand1: Sequence[int], expand2: Sequence[int], expand3: Sequence[int],
    sumdim: Sequence[int], unroll_dim: int = 1,
) -> Tensor:  # fmt: skip
    """The sum over some dims of the product of three tensors, each of which lacks some dims."""
    for dim in sorted(expand1):
        a = aten.unsqueeze(a, dim)
    for dim in sorted(expand2):
        b = aten.unsqueeze(b, dim)
    for dim in sorted(expand3):
        c = aten.unsqueeze(c, dim)
    product = aten.mul.Tensor(aten.mul.Tensor(a, b), c)
    result: Tensor = aten.sum.dim_IntList(product, list(sumdim)) if sumdim else product
    return result


def _small_product(
    a: Tensor, b: Tensor, c: Tensor, expand1: Sequence[int], expand2: Sequence[int], expand3: Sequence[int], *args: Any
) -> str | None:
    if not a.dtype.is_floating_point:
        return "sums of integers are of another dtype"
    rank = a.dim() + len(expand1)
    sizes = [1] * rank
    for tensor, missing in ((a, expand1), (b, expand2), (c, expand3)):
        held = [dim for dim in range(rank) if dim not in missing]
        for dim, size in zip(held, tensor.shape, strict=True):
            sizes[dim] = max(sizes[dim], size)
    entries = math.prod(sizes)
    return f"the product has {entries} entries, more than {1 << 26}" if entries > 1 << 26 else None


def index_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """`scatter_reduce` with the index of a row written for every entry of it."""
    if not x.dim():
        flat = index_reduce(
            aten.reshape(x, [1]), 0, index, aten.reshape(source, [1]), reduce, include_self=include_self
        )
        scalar: Tensor = aten.reshape(flat, [])
        return scalar
    dim %= x.dim()
    spread = aten.reshape(index, [-1 if d == dim else 1 for d in range(x.dim())])
    wide = aten._to_copy(aten.expand(spread, list(source.shape)), dtype=torch.int64)
    result: Tensor = aten.scatter_reduce.two(x, dim, wide, source, reduce, include_self=include_self)
    return result


def cauchy(x: Tensor, median: float = 0, sigma: float = 1, *, generator: None = None) -> Tensor:
    """`median + sigma * tan(pi * (u - 1/2))` of a uniform u: the distribution, not eager's stream."""
    uniform = aten.uniform(x, 0.0, 1.0)
    result: Tensor = aten.add.Tensor(
        aten.mul.Tensor(aten.tan(aten.mul.Tensor(aten.add.Tensor(uniform, -0.5), math.pi)), sigma), median
    )
    return result


def hardswish(x: Tensor) -> Tensor:
    """`x * hardsigmoid(x)`: two ops, where PyTorch's own form takes five."""
    result: Tensor = aten.mul.Tensor(x, aten.hardsigmoid(x))
    return result


RULES = (
    Rule("integer-neg", (aten.neg.default,), negative, check=_integers, cost="nothing"),
    Rule("integer-abs", (aten.abs.default,), absolute, check=_integers, cost="two more elementwise ops"),
    Rule("integer-sign", (aten.sign.default,), sign, check=_integers, cost="five more elementwise ops"),
    Rule(
        "integer-rounding", (aten.round.default, aten.floor.default, aten.ceil.default, aten.trunc.default), whole,
        check=_whole_numbers, cost="nothing",
    ),
    Rule("integer-isfinite", (aten.isfinite.default,), finite, check=_whole_numbers, cost="nothing"),
    Rule("gcd", (aten.gcd.default,), gcd, check=_two_integers, cost="10 (int8), 45 (int32), 91 (int64) steps of four ops"),
    Rule("lcm", (aten.lcm.default,), lcm, check=_two_integers, cost="a gcd, a division and a product"),
    Rule("angle", (aten.angle.default,), angle, check=_floats, cost="two more elementwise ops"),
    Rule("narrow-cast", (aten._to_copy.default,), narrow_cast, check=_narrow, cost="a copy in int32 first"),
    Rule(
        "trilinear", (aten._trilinear.default,), trilinear, check=_small_product, numerics=Numerics.ROUNDING,
        cost="writes the whole product of the three before it is summed",
    ),
    Rule(
        "index-reduce", (aten.index_reduce.default,), index_reduce, numerics=Numerics.ROUNDING,
        cost="an index of the size of the source",
    ),
    Rule("hardswish", (aten.hardswish.default,), hardswish, numerics=Numerics.ROUNDING, cost="one more elementwise op"),
    Rule("cauchy", (aten.cauchy.default,), cauchy, numerics=Numerics.ROUNDING, cost="three more elementwise ops"),
)  # fmt: skip
