"""Products of integer matrices: bitwise, also where they wrap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

aten = torch.ops.aten
OPS = {
    aten.mm.default: ((2, 3), (3, 4)), aten.bmm.default: ((2, 3, 4), (2, 4, 1)), aten.mv.default: ((2, 3), (3,)),
    aten.dot.default: ((5,), (5,)),
}  # fmt: skip
RANKS = (((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((4, 1, 2, 3), (2, 3, 2)), ((0, 3), (3, 2)), ((2, 0), (0, 2)))


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """All over the range: the products wrap."""
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max, shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@given(
    call=st.sampled_from([*OPS.items(), *((aten.matmul.default, shapes) for shapes in RANKS)]),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 99),
)
def test_products(call: Any, dtype: torch.dtype, seed: int, same: Callable[..., None]) -> None:
    op, (a, b) = call
    same(op, numbers(a, dtype, seed), numbers(b, dtype, seed + 1))


@given(seed=st.integers(0, 99), alpha=st.integers(-128, 127), number=st.integers(-128, 127))
def test_sums_of_int8(seed: int, alpha: int, number: int, same: Callable[..., None]) -> None:
    x, y = (numbers((3, 4), torch.int8, seed + i) for i in (0, 1))
    for op in (aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor):
        same(op, x, y, alpha=alpha)
        same(op, x, y[:, :1])
    for op in (aten.sub.Scalar, aten.rsub.Scalar):
        same(op, x, number, alpha)


def test_four_bits_are_unpacked(legally: Callable[..., Any]) -> None:
    def unpacked(packed: torch.Tensor) -> torch.Tensor:
        return torch.stack([(packed & 15).to(torch.int8) - 8, (packed >> 4).to(torch.int8) - 8], -1)

    packed = torch.arange(256).to(torch.uint8)
    (found,) = legally(unpacked, packed)
    assert torch.equal(found, unpacked(packed))


@pytest.mark.parametrize("function", [lambda a, b: a @ b, lambda a, b: torch.addmm(a, a, b)], ids=["matmul", "addmm"])
def test_through_the_whole_legalisation(function: Any, legally: Callable[..., Any]) -> None:
    a, b = (
        torch.randint(-128, 128, (4, 4), dtype=torch.int32, generator=torch.Generator().manual_seed(i)) for i in (0, 1)
    )
    (found,) = legally(function, a, b)
    assert torch.equal(found, function(a, b))
