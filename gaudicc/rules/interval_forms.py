"""What ATen ops make of the intervals of their operands; asked by `integer_ranges`.

An op that is not here gives anything its dtype holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch

from gaudicc.rules import intervals
from gaudicc.rules.intervals import ALL, Interval, exactly, hull

aten = torch.ops.aten


class Call(Protocol):
    """One call of an op, asked by argument name."""

    def literal(self, name: str) -> Any:
        """The argument as it stands in the graph."""
        ...

    def of(self, name: str) -> Interval:
        """The interval of a tensor, number or size, or the hull of a list of them."""
        ...

    def size(self, name: str, dim: int) -> Interval:
        """Of the size of one dim of a tensor."""
        ...

    def entries(self, name: str, dims: Any = None) -> Interval:
        """Of the number of entries along some dims of a tensor; of all by default."""
        ...


Form = Callable[[Call], Any]


def _overloads(*packets: Any) -> list[Any]:
    return [getattr(packet, name) for packet in packets for name in packet.overloads()]


def _same(call: Call) -> Interval:
    return call.of("self")


def _hull(*names: str) -> Form:
    return lambda call: hull(map(call.of, names))


def _fill(name: str) -> Form:
    return lambda call: call.of(name)


def _binary(form: Callable[[Interval, Interval], Interval]) -> Form:
    return lambda call: form(call.of("self"), call.of("other"))


def _unary(form: Callable[[Interval], Interval]) -> Form:
    return lambda call: form(call.of("self"))


def _alpha(call: Call) -> Interval:
    alpha = call.literal("alpha")
    return exactly(1 if alpha is None else alpha)


def _add(call: Call) -> Interval:
    return intervals.add(call.of("self"), intervals.multiply(_alpha(call), call.of("other")))


def _sub(call: Call) -> Interval:
    return intervals.add(call.of("self"), intervals.negative(intervals.multiply(_alpha(call), call.of("other"))))


def _rsub(call: Call) -> Interval:
    return intervals.add(call.of("other"), intervals.negative(intervals.multiply(_alpha(call), call.of("self"))))


def _clamp(call: Call) -> Interval:
    low, high = (call.literal(name) for name in ("min", "max"))
    kept = call.of("self")
    if low is not None:
        least = call.of("min")
        kept = Interval(max(kept.low, least.low), max(kept.high, least.high))
    if high is not None:
        most = call.of("max")
        kept = Interval(min(kept.low, most.low), min(kept.high, most.high))
    return kept


def _minimum(a: Interval, b: Interval) -> Interval:
    return Interval(min(a.low, b.low), min(a.high, b.high))


def _maximum(a: Interval, b: Interval) -> Interval:
    return Interval(max(a.low, b.low), max(a.high, b.high))


def _division(call: Call) -> Interval:
    whole = call.literal("rounding_mode") is not None
    return (intervals.divide_whole if whole else intervals.divide)(call.of("self"), call.of("other"))


def _sum(call: Call) -> Interval:
    return intervals.times(call.of("self"), call.entries("self", call.literal("dim")))


def _count(call: Call) -> Interval:
    return Interval(0, call.entries("self", call.literal("dim")).high)


def _place(call: Call) -> Interval:
    """Of the places along a dim, or among all entries."""
    dim = call.literal("dim")
    return Interval(0, max(call.entries("self", dim).high - 1, 0))


def _along(call: Call) -> tuple[Interval, Interval]:
    """Of an op that gives values and their places along a dim."""
    dim = call.literal("dim")
    return call.of("self"), Interval(0, max(call.size("self", -1 if dim is None else dim).high - 1, 0))


def _arange(call: Call) -> Interval:
    start = call.of("start") if call.literal("start") is not None else exactly(0)
    return hull((start, call.of("end")))


def _search(call: Call) -> Interval:
    return Interval(0, call.size("boundaries", -1).high)


def _sorted_search(call: Call) -> Interval:
    return Interval(0, call.size("sorted_sequence", -1).high)


def _randint(call: Call) -> Interval:
    low = call.of("low") if call.literal("low") is not None else exactly(0)
    return Interval(low.low, call.of("high").high - 1)


def _written(call: Call) -> Any:
    """Of an index_put: what was there or what is written; a sum has no bound here."""
    return ALL if call.literal("accumulate") else hull((call.of("self"), call.of("values")))


def _put(call: Call) -> Any:
    return ALL if call.literal("accumulate") else hull((call.of("self"), call.of("source")))


def _extreme(source: str) -> Form:
    """Of a reduction by index: a sum or a product has no bound here."""

    def form(call: Call) -> Interval:
        bounded = call.literal("reduce") in ("amax", "amin", "mean")
        return hull((call.of("self"), call.of(source))) if bounded else ALL

    return form


def _between(low: float, high: float) -> Form:
    return lambda call: Interval(low, high)


FORMS: dict[Any, Form] = {}


def _known(form: Form, *ops: Any) -> None:
    FORMS.update(dict.fromkeys(ops, form))


_known(
    _same,
    *_overloads(
        aten.view, aten._unsafe_view, aten.reshape, aten.expand, aten.permute, aten.transpose, aten.t, aten.squeeze,
        aten.unsqueeze, aten.select, aten.slice, aten.alias, aten.clone, aten.detach, aten.contiguous, aten.lift_fresh_copy,
        aten.flip, aten.roll, aten.unfold, aten.diagonal, aten.as_strided, aten.repeat, aten.index_select, aten.gather,
        aten.take, aten.index, aten._unsafe_index, aten.split, aten.split_with_sizes, aten.unbind, aten.chunk, aten.amax,
        aten.amin, aten.narrow, aten.view_as, aten.expand_as, aten.flatten, aten.take_along_dim, aten.masked_select,
        aten.movedim, aten.rot90, aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle, aten.unflatten,
        aten.broadcast_to, aten.positive, aten.dropout, aten.tile, aten.tensor_split, aten.view_copy, aten.diagonal_copy,
        aten.expand_copy, aten.unfold_copy, aten.permute_copy, aten.squeeze_copy, aten.unsqueeze_copy, aten.lift,
        aten.alias_copy, aten.detach_copy, aten.transpose_copy, aten.select_copy, aten.slice_copy, aten.t_copy,
        aten.unbind_copy, aten.split_copy, aten.split_with_sizes_copy, aten.as_strided_copy, aten.unsafe_split,
        aten.unsafe_split_with_sizes, aten._reshape_alias, aten.block_diag, aten.narrow_copy, aten.reflection_pad1d,
        aten.reflection_pad2d, aten.reflection_pad3d, aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d,
        aten.resize_as, aten.aminmax,
    ),
    aten.max.default, aten.min.default, aten.median.default, aten.nanmedian.default, aten.repeat_interleave.self_int,
)  # fmt: skip
_known(
    _unary(lambda a: Interval(a.low - 1, a.high + 1)), *_overloads(aten.floor, aten.ceil, aten.round, aten.trunc)
)  # fmt: skip
_known(_hull("self", "other"), *_overloads(aten.where))
_known(_hull("self", "value"), *_overloads(aten.masked_fill, aten.index_fill, aten.constant_pad_nd), aten.scatter.value)
_known(
    _hull("self", "src"),
    *_overloads(aten.slice_scatter, aten.select_scatter, aten.diagonal_scatter, aten.as_strided_scatter),
    aten.scatter.src,
)  # fmt: skip
_known(_hull("self", "source"), aten.index_copy.default, aten.masked_scatter.default)
_known(_written, *_overloads(aten.index_put, aten._unsafe_index_put))
_known(_fill("src"), aten.copy.default)
_known(_hull("self", "value"), aten.threshold.default)
_known(_hull("self", "fill"), aten._unsafe_masked_index.default)
_known(_hull("min_val", "max_val"), aten.hardtanh.default)
_known(lambda call: hull((call.of("values"), exactly(0), exactly(1))), aten.heaviside.default)
_known(_extreme("src"), aten.scatter_reduce.two)
_known(_extreme("source"), aten.index_reduce.default)
_known(_put, aten.put.default)
_known(lambda call: Interval(0, max(call.entries("repeats").high - 1, 0)), aten.repeat_interleave.Tensor)
_known(_fill("tensors"), aten._chunk_cat.default, aten.cat.default, aten.stack.default, aten.concatenate.default)
_known(_fill("fill_value"), *_overloads(aten.full, aten.full_like, aten.new_full))
_known(_fill("value"), *_overloads(aten.fill))
_known(_fill("s"), aten.scalar_tensor.default)
_known(_fill("weight"), aten.embedding.default)
_known(_between(0, 0), *_overloads(aten.zeros, aten.zeros_like, aten.new_zeros))
_known(_between(1, 1), *_overloads(aten.ones, aten.ones_like, aten.new_ones))
_known(
    lambda call: intervals.INT32,  # whatever lies there
    *_overloads(aten.empty, aten.empty_like, aten.new_empty, aten.new_empty_strided, aten.empty_strided, aten.empty_permuted),
)  # fmt: skip
_known(
    lambda call: hull((call.of("self"), exactly(0))),
    *_overloads(aten.tril, aten.triu, aten.diag_embed, aten.nan_to_num, aten.im2col, aten.relu),
)  # fmt: skip

MOVES = frozenset(FORMS).difference(
    _overloads(aten.index_put, aten._unsafe_index_put, aten.put, aten.scatter_reduce, aten.index_reduce)
)
"""Ops whose results are values that their operands hold, or numbers that stand in the program."""

_known(_add, *_overloads(aten.add))
_known(_sub, *_overloads(aten.sub))
_known(_rsub, *_overloads(aten.rsub))
_known(_binary(intervals.multiply), *_overloads(aten.mul))
_known(_unary(intervals.negative), *_overloads(aten.neg))
_known(_unary(intervals.absolute), *_overloads(aten.abs))
_known(_unary(lambda a: intervals.power(a, 2)), *_overloads(aten.square))
_known(lambda call: intervals.power(call.of("self"), call.literal("exponent")), aten.pow.Tensor_Scalar)
_known(_between(-1, 1), *_overloads(aten.sign, aten.sgn, aten.tanh, aten.sin, aten.cos, aten.erf))
_known(_clamp, *_overloads(aten.clamp, aten.clamp_min, aten.clamp_max))
_known(_binary(_minimum), *_overloads(aten.minimum, aten.fmin), aten.min.other)
_known(_binary(_maximum), *_overloads(aten.maximum, aten.fmax), aten.max.other)
_known(_division, *_overloads(aten.div))
_known(_binary(intervals.divide_whole), *_overloads(aten.floor_divide))
_known(_binary(intervals.remainder), *_overloads(aten.remainder))
_known(_binary(intervals.truncated), *_overloads(aten.fmod))
_known(_binary(intervals.shared_bits), *_overloads(aten.bitwise_and, aten.__and__))
_known(_binary(intervals.bits), *_overloads(aten.bitwise_or, aten.bitwise_xor, aten.__or__, aten.__xor__))
_known(_binary(intervals.divisor), aten.gcd.default)
_known(_unary(lambda a: Interval(-a.high - 1, -a.low - 1)), *_overloads(aten.bitwise_not))
_known(
    lambda call: hull((call.of("self"), exactly(0))),
    *_overloads(aten.bitwise_right_shift, aten.__rshift__),
)  # fmt: skip

_known(_unary(intervals.rising(intervals.logarithm, 0.0)), aten.log.default)
_known(_unary(intervals.rising(math.sqrt, 0.0)), aten.sqrt.default)
_known(_unary(intervals.rising(math.exp)), aten.exp.default)
_known(
    _between(0, 1), *_overloads(aten.sigmoid, aten._softmax, aten.softmax, aten.rand, aten.rand_like, aten.bernoulli)
)  # fmt: skip

_known(_sum, *_overloads(aten.sum, aten.nansum))
_known(
    lambda call: intervals.times(call.of("self"), call.entries("self", call.literal("dim"))), *_overloads(aten.cumsum)
)
_known(_count, *_overloads(aten.count_nonzero))
_known(_place, aten.argmax.default, aten.argmin.default, aten.multinomial.default, *_overloads(aten.argsort))
_known(
    _along,
    *_overloads(aten.sort, aten.topk, aten.cummax, aten.cummin, aten.kthvalue, aten.mode),
    aten.max.dim, aten.min.dim, aten.median.dim, aten.nanmedian.dim,
)  # fmt: skip
_known(
    lambda call: (call.of("self"), Interval(0, max(call.entries("self").high - 1, 0))),
    *_overloads(
        aten.max_pool2d_with_indices, aten.max_pool3d_with_indices, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d,
        aten.fractional_max_pool2d, aten.fractional_max_pool3d,
    ),
)  # fmt: skip
_known(_arange, *_overloads(aten.arange))
_known(_search, *_overloads(aten.bucketize))
_known(_sorted_search, *_overloads(aten.searchsorted))
_known(_randint, *_overloads(aten.randint, aten.randint_like))
_known(
    lambda call: Interval(0, intervals.add(intervals.add(call.of("row"), call.of("col")), exactly(0)).high),
    aten.tril_indices.default, aten.triu_indices.default,
)  # fmt: skip
_known(lambda call: Interval(0, max(call.of("n").high - 1, 0)), *_overloads(aten.randperm))
_known(_between(0, 1), *_overloads(aten.eye), *_overloads(aten.one_hot))
_known(
    lambda call: Interval(-1, max(call.entries("self").high - 1, 0)), *_overloads(aten.nonzero_static, aten.nonzero)
)  # fmt: skip
