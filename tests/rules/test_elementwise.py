"""Single entries: integer arithmetic at its ends, casts that wrap, and the leftovers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.rules.elementwise import cauchy, gcd

aten = torch.ops.aten
SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)


@pytest.mark.parametrize("dtype", SIGNED)
@pytest.mark.parametrize("op", [aten.neg.default, aten.abs.default, aten.sign.default])
def test_signs_wrap_at_the_lowest_number(op: Any, dtype: torch.dtype, same: Callable[..., None]) -> None:
    info = torch.iinfo(dtype)
    same(op, torch.tensor([info.min, info.max, 0, -1, 1], dtype=dtype))


NUMBERS = st.integers(-(2**31) + 1, 2**31 - 1)
FIBONACCI = (1836311903, 1134903170)  # the pair below 2^31 that takes most steps


@given(a=st.lists(NUMBERS, min_size=1, max_size=4), b=NUMBERS)
def test_greatest_divisors_and_least_multiples(a: list[int], b: int, same: Callable[..., None]) -> None:
    x, y = torch.tensor(a, dtype=torch.int32), torch.tensor([b], dtype=torch.int32)
    same(aten.gcd.default, x, y)
    same(aten.lcm.default, x % 1000, y % 1000)


def test_the_longest_run_of_euclids_algorithm() -> None:
    a, b = (torch.tensor([value], dtype=torch.int32) for value in FIBONACCI)
    assert gcd(a, b).item() == gcd(b, a).item() == 1


@pytest.mark.parametrize("wanted", [torch.int16, torch.int8, torch.uint8])
@given(data=st.data())
def test_narrow_casts(wanted: torch.dtype, data: st.DataObject, same: Callable[..., None], tensors: Any) -> None:
    kinds = (torch.float32, torch.bfloat16, torch.int32, torch.int64, torch.int8)
    x = data.draw(tensors(kinds, rank=(0, 3), wild=False))
    x = x * (9999 if wanted is torch.int16 and x.dtype in (torch.int32, torch.int64) else 20)
    same(aten._to_copy.default, x.abs() if wanted is torch.uint8 else x, dtype=wanted)


@given(data=st.data())
def test_hardswish(data: st.DataObject, same: Callable[..., None], tensors: Callable[..., Any]) -> None:
    same(aten.hardswish.default, data.draw(tensors((torch.float32,))))


@given(data=st.data())
def test_angle(data: st.DataObject, same: Callable[..., None], tensors: Callable[..., Any]) -> None:
    same(aten.angle.default, data.draw(tensors((torch.float32, torch.bfloat16))))


@given(data=st.data(), reduce=st.sampled_from(["prod", "mean", "amin", "amax"]), include=st.booleans())
def test_index_reduce(
    data: st.DataObject, reduce: str, include: bool, same: Callable[..., None], tensors: Callable[..., Any]
) -> None:
    x = data.draw(tensors(sizes=(1, 4), wild=False)).contiguous()
    dim = data.draw(st.integers(-x.dim(), x.dim() - 1))
    index = torch.randint(0, x.shape[dim], (3,), generator=torch.Generator().manual_seed(0))
    same(aten.index_reduce.default, x, dim, index, x.index_select(dim, index) + 1, reduce, include_self=include)


def test_a_draw_from_the_cauchy_distribution_runs_on_evidence(legally: Callable[..., Any]) -> None:
    (drawn,) = legally(lambda x: torch.ops.aten.cauchy(x, 1.0, 2.0), torch.empty(4))
    assert drawn.shape == (4,)


def test_quartiles_of_the_cauchy_distribution() -> None:
    torch.manual_seed(0)
    found = cauchy(torch.empty(20_000), 1.0, 2.0).quantile(torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(found, torch.tensor([-1.0, 1.0, 3.0]), rtol=0, atol=0.15)
