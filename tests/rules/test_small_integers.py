"""Ops on int8, uint8 and int16: bitwise those of PyTorch in any layout, what wraps included; and that each rule is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.passes.legalize_ops import ALL_RULES
from gaudicc.rules import small_integers
from gaudicc.rules.rule import always
from gaudicc.targets import Support, load_target
from gaudicc.targets.calls import OpCall, judge_call

aten = torch.ops.aten
Arguments = Callable[[torch.Tensor], tuple[Any, ...]]
Tensors = Callable[..., st.SearchStrategy[torch.Tensor]]
AT, ROW = torch.tensor([1, 0]), torch.tensor([1])


def two(x: torch.Tensor) -> tuple[Any, ...]:
    return x, x.flip(1)


def divided(x: torch.Tensor) -> tuple[Any, ...]:
    return x, x.flip(1) | 1


def number(x: torch.Tensor) -> tuple[Any, ...]:
    return x, 3


def alone(x: torch.Tensor) -> tuple[Any, ...]:
    return (x,)


def along(x: torch.Tensor) -> tuple[Any, ...]:
    return x, 1


def placed(x: torch.Tensor) -> tuple[Any, ...]:
    return x, 0, (x.long() & 1)[:2], x[:2] - 2


PAIRS = {
    op: number if op._overloadname == "Scalar" else two
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "bitwise_and", "bitwise_or", "bitwise_xor")
    for op in (getattr(aten, name).Tensor, getattr(aten, name).Scalar)
}
COMPARED = {op: two for op in (aten.maximum.default, aten.minimum.default, aten.fmax.default, aten.fmin.default)}
QUOTIENTS = {
    aten.remainder.Tensor: divided, aten.remainder.Scalar: number, aten.fmod.Tensor: divided, aten.fmod.Scalar: number,
}  # fmt: skip
REDUCED: dict[Any, Arguments] = {
    aten.amax.default: lambda x: (x, [-1], True), aten.amin.default: lambda x: (x, [0]), aten.max.default: alone,
    aten.max.dim: along, aten.min.default: alone, aten.min.dim: along, aten.argmax.default: along,
    aten.argmin.default: along, aten.cummax.default: along, aten.cummin.default: along, aten.median.default: alone,
    aten.median.dim: along, aten.kthvalue.default: lambda x: (x, 2, 1),
}  # fmt: skip
SINGLE = {op: alone for op in (aten.signbit.default, aten.sign.default, aten.neg.default, aten.abs.default)}
BY_INDEX: dict[Any, Arguments] = {
    aten.scatter.src: placed, aten.scatter.value: lambda x: (*placed(x)[:3], 9), aten.scatter_add.default: placed,
    aten.index_add.default: lambda x: (x, 0, AT, x[:2]),
    aten.searchsorted.Tensor: lambda x: (x.sort(1).values, x.contiguous()),
}  # fmt: skip
PRODUCTS: dict[Any, Arguments] = {
    aten.mm.default: lambda x: (x, x.t()), aten.matmul.default: lambda x: (x, x.t()), aten.mv.default: lambda x: (x, x[0]),
    aten.dot.default: lambda x: (x[0], x[1]), aten.bmm.default: lambda x: (x[None], x.t()[None]),
}  # fmt: skip
WIDENED = {**PAIRS, **COMPARED, **QUOTIENTS, aten.div.Tensor_mode: two, **REDUCED, **SINGLE, **BY_INDEX, **PRODUCTS}
OF_BYTES: dict[Any, Arguments] = {
    aten.any.default: alone, aten.any.dim: along, aten.any.dims: lambda x: (x, [0, 1]),
    aten.cat.default: lambda x: ([x, x],), aten.clone.default: alone, aten.flip.default: lambda x: (x, [0]),
    aten.gather.default: lambda x: placed(x)[:3], aten.index_select.default: lambda x: (x, 0, AT),
    aten.index.Tensor: lambda x: (x, [AT]), aten.index_put.default: lambda x: (x, [AT], x[:2]),
    aten.index_copy.default: lambda x: (x, 0, AT, x[:2]),
    aten.masked_scatter.default: lambda x: (x, x > 9, x.flip(1)),
    aten.full_like.default: lambda x: (x, 200),
}  # fmt: skip
MADE = {aten.scalar_tensor.default: (200,), aten.full.default: ([2], 255), aten.arange.start_step: (3, 12, 4)}
SHORTS = torch.tensor([[-32768, 32767, 255], [256, -1, 0]], dtype=torch.int16)
BYTES = torch.tensor([[200, 7, 0], [255, 3, 129]], dtype=torch.uint8)
NAMED = {"rounding_mode": "trunc"}


def keywords(op: Any) -> dict[str, Any]:
    return NAMED if op is aten.div.Tensor_mode else {}


def far(x: torch.Tensor) -> torch.Tensor:
    """The small numbers of `tensors` spread over the dtype."""
    return x * (8000 if x.dtype is torch.int16 else 31)


@pytest.mark.parametrize("op", WIDENED, ids=str)
@given(data=st.data())
def test_in_int32(op: Any, data: st.DataObject, same: Callable[..., None], tensors: Tensors) -> None:
    x = far(data.draw(tensors(tuple(small_integers.SMALL), rank=(2, 2), sizes=(2, 4))))
    arguments = divided(x) if op is aten.div.Tensor_mode else WIDENED[op](x)
    same(op, *arguments, **keywords(op))


@given(data=st.data(), op=st.sampled_from([*PAIRS, *SINGLE]))
def test_no_entries_and_no_dims(data: st.DataObject, op: Any, same: Callable[..., None], tensors: Tensors) -> None:
    x = data.draw(tensors((torch.int16, torch.uint8), rank=(0, 3), sizes=(0, 1)))
    same(op, x, *((3 if op._overloadname == "Scalar" else x,) if op in PAIRS else ()))


@pytest.mark.parametrize("op", OF_BYTES, ids=str)
@given(data=st.data())
def test_bytes(op: Any, data: st.DataObject, same: Callable[..., None], tensors: Tensors) -> None:
    x = far(data.draw(tensors((torch.uint8,), rank=(2, 2), sizes=(2, 4))))
    same(op, *OF_BYTES[op](x))


@pytest.mark.parametrize("op", MADE, ids=str)
def test_bytes_that_are_made(op: Any, same: Callable[..., None]) -> None:
    same(op, *MADE[op], dtype=torch.uint8)


@given(data=st.data())
def test_casts(data: st.DataObject, same: Callable[..., None], tensors: Tensors) -> None:
    x = far(data.draw(tensors((torch.int16,), rank=(0, 3), sizes=(0, 4))))
    for dtype in (torch.float32, torch.int32, torch.int64, torch.float16, torch.bool):
        same(aten._to_copy.default, x, dtype=dtype)
        if dtype is not torch.int32:
            same(aten._to_copy.default, x.to(torch.uint8), dtype=dtype)


@given(x=st.integers(0, 255), fraction=st.sampled_from([-0.5, 0.5, 199.5, 200.0, float("inf"), float("nan")]))
def test_beside_a_fraction_and_a_wide_integer(x: int, fraction: float, same: Callable[..., None]) -> None:
    small = torch.tensor([x, 200], dtype=torch.uint8)
    for op in (aten.eq.Scalar, aten.lt.Scalar, aten.ge.Scalar, aten.remainder.Scalar):
        same(op, small, fraction)
    for op in (aten.eq.Tensor, aten.maximum.default):
        same(op, small, torch.tensor([200, -(2**40)]))


def test_each_rule_has_its_op_and_its_condition() -> None:
    cast = aten._to_copy.default
    tried = {*WIDENED, *OF_BYTES, *MADE, cast}
    assert {op for rule in small_integers.RULES for op in rule.ops} == tried
    assert {rule for rule in ALL_RULES if rule.rewrite.__module__ == small_integers.__name__} <= set(
        small_integers.RULES
    )
    for rule in small_integers.RULES:
        (op,) = rule.ops
        assert rule in ALL_RULES
        assert rule.check is not always
        table = {**WIDENED, **OF_BYTES}
        if op is cast:
            assert rule.check(BYTES, dtype=torch.int32)
            assert rule.check(SHORTS, dtype=torch.int8)
        elif op in MADE:
            assert rule.check(*MADE[op], dtype=torch.int32)
            assert rule.check(-1, 300, dtype=torch.uint8)
        else:
            assert rule.check(*table[op](SHORTS.int()), **keywords(op)), rule.name


def test_a_number_that_eager_takes_for_another_one_is_not_compared() -> None:
    (rule,) = [rule for rule in small_integers.RULES if rule.ops[0] is aten.lt.Scalar]
    assert torch.equal(aten.lt.Scalar(BYTES, -1), aten.lt.Scalar(BYTES, 255))
    assert rule.check(BYTES, -1) == "eager takes the number -1 for another one, which uint8 holds"


@pytest.mark.parametrize("op", [*WIDENED, *OF_BYTES], ids=str)
def test_the_device_takes_no_bytes(op: Any) -> None:
    verdict = judge_call(load_target("gaudi3"), OpCall(op, {**WIDENED, **OF_BYTES}[op](BYTES), keywords(op)))
    assert verdict.support is not Support.EVIDENCED, verdict.reason


def test_through_the_whole_legalisation(legally: Callable[..., Any]) -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        results = [op(*make(x), **keywords(op)) for op, make in WIDENED.items() if op is not aten.div.Tensor_mode]
        results += [op(*make(x)) for op, make in OF_BYTES.items()]
        results += [y.float(), y // 2, y == 3, y.amax(0), y & 255, y.bool(), x.half()]
        values = [each for result in results for each in (result if isinstance(result, tuple) else (result,))]
        return [*values, torch.arange(0, 3, dtype=torch.uint8) + x]

    inputs = (BYTES, SHORTS)
    ours, theirs = legally(function, *inputs), function(*inputs)
    assert len(ours) == len(theirs)
    assert all(torch.equal(left, right) for left, right in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16])
def test_an_identity_matrix_as_a_mask(dtype: torch.dtype, legally: Callable[..., Any]) -> None:
    def diagonal_out(x: torch.Tensor) -> torch.Tensor:
        mask = torch.eye(x.shape[1], dtype=dtype, device=x.device)
        return x.masked_fill(mask > 0.5, 0)

    x = torch.ones(2, 200, 200)  # larger than what is folded to a constant
    (found,) = legally(diagonal_out, x)
    assert torch.equal(found, diagonal_out(x))
