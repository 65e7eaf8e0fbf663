"""Sorting, counting, contracting what is of unknown length, and maxima that the user promises: against eager, end to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

import gaudicc
from gaudicc.capture.mend.oracle import same_bits
from gaudicc.errors import UnsupportedOpError


def one_hot(x: Tensor) -> Tensor:
    return functional.one_hot(x.abs().long().clamp(0, 9))


def one_hot_of_negatives(x: Tensor) -> Tensor:
    return functional.one_hot(x.long().clamp(-9, 9))


def promised_size(x: Tensor) -> Tensor:
    size = int(x.abs().sum())
    torch._check(size <= 16)
    torch._check(size >= 0)
    return torch.zeros(size) + x.sum()


Body = Callable[[Tensor], Any]
NAN, INF = float("nan"), float("inf")
VECTORS = [
    torch.tensor(values)
    for values in (
        [1.0, 2.0, 3.0, 4.0, -5.0], [0.0, 0.0, 0.0, 0.0, 0.0], [-1.0, -2.0, -3.0, 2.0, 2.0], [3.0, 3.0, -1.0, 3.0, 1.0],
        [5.0, -5.0, 5.0, -5.0, 7.0], [9.0, 8.0, 7.0, 6.0, 5.0], [1.0, 1.0, 1.0, 1.0, 1.0], [-0.0, 0.5, 1.5, 2.5, -0.5],
        [2.0, -1.0, 2.0, -1.0, 2.0], [4.25, 3.5, 2.25, 1.5, 0.5], [-1.0, -2.0, -3.0, -4.0, -5.0],
    )
]  # fmt: skip
CASES: dict[str, Body] = {
    "runs": lambda x: torch.unique_consecutive(x.round()),
    "runs_all": lambda x: torch.unique_consecutive(x.round(), return_inverse=True, return_counts=True),
    "runs_of_rows": lambda x: torch.unique_consecutive(x[x > 0].round(), return_inverse=True, return_counts=True),
    "unique_all": lambda x: torch.unique(x.round(), return_inverse=True, return_counts=True),
    "unique_of_rows": lambda x: torch.unique(x[x > 0].round(), return_inverse=True, return_counts=True),
    "bincount": lambda x: torch.bincount(x.abs().long().clamp(0, 9)),
    "bincount_at_least": lambda x: torch.bincount(x.abs().long().clamp(0, 9), minlength=4),
    "bincount_weighted": lambda x: torch.bincount(x.abs().long().clamp(0, 9), weights=x),
    "bincount_of_rows": lambda x: torch.bincount(x[x > 0].long().clamp(0, 9)),
    "bincount_of_negatives": lambda x: torch.bincount(x.long().clamp(-9, 9)),
    "argwhere": lambda x: torch.argwhere(x > 0),
    "nonzero_of_a_number": lambda x: torch.nonzero(x.sum()),
    "nonzero_of_no_rows": lambda x: torch.nonzero(x[:0]) + 1,
    "mask_of_no_rows": lambda x: x[:0][x[:0] > 0] * 2,
    "sort": lambda x: torch.sort(x[x > 0]),
    "sort_down": lambda x: torch.sort(x[x > -2], descending=True),
    "sort_integers": lambda x: torch.sort(x[x > 0].long() % 3, stable=True),
    "sort_inner": lambda x: torch.sort(torch.stack([x, -x, x * 2], 1)[x > 0], 1),
    "argsort": lambda x: torch.argsort(x[x > 0], stable=True),
    "cumsum": lambda x: torch.cumsum(x[x > 0], 0),
    "cumprod": lambda x: torch.cumprod(x[x > 0], 0),
    "flip": lambda x: x[x > 0].flip(0),
    "argmax": lambda x: x[x > 0].argmax(),
    "argmin": lambda x: torch.stack([x, -x], 1)[x > 0].argmin(0),
    "softmax": lambda x: torch.softmax(x[x > 0], 0),
    "two_masks_joined": lambda x: torch.cat([x[x > 0], x[x < 1]]),
    "three_joined_and_sorted": lambda x: torch.cat([x[x > 1], x, x[x < 0]]).sort().values,
    "joined_along_an_inner_dim": lambda x: torch.cat([x[None, :2], x[None, x > 0], x[None, :1] * 2], 1),
    "first_of_those_that_are_joined": lambda x: torch.cat([x[:2], x[x > 0]])[:1] * x,
    "a_row_for_each": lambda x: x[None].expand(x[x > 0].shape[0], 5) + 1,
    "one_hot": one_hot,
    "one_hot_of_negatives": one_hot_of_negatives,
    "promised_size": promised_size,
    "promised_repeats": lambda x: _as_long(torch.repeat_interleave(x, x.abs().long()), 16),
    "promised_values": lambda x: _as_long(torch.bincount(x.abs().long()), 7),
}
ROUNDED: dict[str, Body] = {
    "dot": lambda x: x[x > 0] @ (x * 2)[x > 0],
    "contracted": lambda x: torch.stack([x, x * 2], 1)[x > 0].t() @ torch.stack([x, x - 1, x], 1)[x > 0],
    "log_softmax": lambda x: torch.log_softmax(torch.stack([x, -x], 1)[x > 0], 0),
}


def _as_long(rows: Tensor, most: int) -> Tensor:
    torch._check(rows.shape[0] <= most)
    return rows


def observed(body: Any, x: Tensor) -> Any:
    try:
        return pytree.tree_leaves(body(x.clone()))
    except (RuntimeError, IndexError) as error:
        return type(error)


@pytest.mark.parametrize("name", CASES)
def test_bit_for_bit(name: str) -> None:
    compiled = gaudicc.compile(CASES[name], (VECTORS[3],))
    for x in VECTORS:
        wanted, given = observed(CASES[name], x), observed(compiled, x)
        if isinstance(wanted, type):
            assert given is wanted, x
        else:
            assert len(given) == len(wanted)
            assert all(map(same_bits, given, wanted)), (x, given, wanted)


@pytest.mark.parametrize("name", ROUNDED)
def test_within_rounding(name: str) -> None:
    compiled = gaudicc.compile(ROUNDED[name], (VECTORS[3],))
    for x in VECTORS:
        torch.testing.assert_close(compiled(x), ROUNDED[name](x), equal_nan=True)


def test_the_largest_of_rows_in_order() -> None:
    """Which of equal elements comes first PyTorch leaves open; here it is the first."""
    body = lambda x: torch.topk(x[x > -4], 2)  # noqa: E731
    compiled = gaudicc.compile(body, (VECTORS[3],))
    for x in VECTORS[:-1]:
        values, indices = compiled(x)
        assert torch.equal(values, body(x).values)
        assert torch.equal(x[x > -4][indices], values)
    with pytest.raises(RuntimeError, match=r"selected index k out of range|u0 >= 2"):
        compiled(torch.full((5,), -9.0))


@pytest.mark.parametrize("values", [[INF, -INF, 1.0, INF, 2.0], [NAN, 1.0, NAN, -INF, 3.0], [NAN, NAN, INF, NAN, INF]])
@pytest.mark.parametrize("descending", [False, True])
def test_what_sorts_like_a_pad(values: list[float], descending: bool) -> None:
    body = lambda x: torch.sort(x[x != 1], descending=descending, stable=True)  # noqa: E731
    compiled = gaudicc.compile(body, (VECTORS[3],))
    x = torch.tensor(values)
    assert all(map(same_bits, compiled(x), body(x)))


def test_more_than_promised_raises_and_is_never_cut() -> None:
    for name, x in (("promised_size", VECTORS[5]), ("promised_repeats", VECTORS[4]), ("promised_values", VECTORS[5])):
        with pytest.raises(RuntimeError):
            CASES[name](x)
        with pytest.raises(RuntimeError):
            gaudicc.compile(CASES[name], (VECTORS[3],))(x)


def unpromised(x: Tensor) -> Tensor:
    return torch.bincount(x.abs().long())  # refused


def as_many_as_read(x: Tensor) -> Any:
    return torch.topk(x[x > 0], int(x[0].clamp(0, 3)))[0]  # refused


@pytest.mark.parametrize(
    ("body", "op", "why"),
    [(unpromised, "aten.bincount", "clamp them"), (as_many_as_read, "aten.topk", "read from a tensor")],
)
def test_refusals_name_line_op_and_reason(body: Body, op: str, why: str) -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        gaudicc.compile(body, (VECTORS[3],))
    assert why in caught.value.what
    assert caught.value.where.op == op
    assert caught.value.where.source == f"rules/test_bounded_order.py:{body.__code__.co_firstlineno + 1}"
