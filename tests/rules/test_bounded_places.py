"""Reading and writing by several index tensors of unknown length: against eager, through the whole pipeline."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gaudicc
from gaudicc.errors import UnsupportedOpError

Body = Callable[[Tensor, Tensor], Any]
ROWS, COLUMNS = 3, 4


def pairs(x: Tensor, mask: Tensor) -> Tensor:
    """Negative places count from the end."""
    i, j = torch.where(mask)
    return x.index_put((i, j - COLUMNS), x[i, j].cos())


def added(x: Tensor, mask: Tensor) -> Tensor:
    """Several values add up in one place."""
    i, j = torch.where(mask)
    return x.index_put((i, torch.zeros_like(j)), x[i, j], accumulate=True)


def apart(x: Tensor, mask: Tensor) -> Tensor:
    """Indices with a whole dim between them: their dim is the first of the result."""
    i, j = torch.where(mask)
    cube = x[:, None, :].repeat(1, 2, 1)
    cube[i, :, j] = cube[i, :, j] * 2 + 1
    return cube


def scalar(x: Tensor, mask: Tensor) -> Tensor:
    i, j = torch.where(mask)
    cube = x[..., None].repeat(1, 1, 2)
    cube[i, j, :] = float("-inf")
    return cube


def into_fewer_columns(x: Tensor, mask: Tensor) -> Tensor:
    """The places that longformer gives to its global tokens: what is written to has an unknown length too."""
    counts = mask.sum(1)
    most = int(counts.max())
    there = torch.arange(most) < counts[:, None]
    packed = x.new_zeros(ROWS, most)
    packed[torch.where(there)] = x[torch.where(mask)]
    i, j = torch.where(there == 0)
    packed[i, j] = 0.5
    return packed.sum(1) + torch.einsum("ab,cb->a", packed, packed)


def read_from_fewer_columns(x: Tensor, mask: Tensor) -> Tensor:
    counts = mask.sum(1)
    most = int(counts.max())
    packed = x[:, :most]
    i, j = torch.where(torch.arange(most) < counts[:, None])
    return torch.zeros_like(x).index_put((i, j), packed[i, j - most].cos())


def mask_and_number(x: Tensor, mask: Tensor) -> Any:
    return x[mask[:, 0], 1], x[:, None].repeat(1, 2, 1)[mask[:, 2], :, 3]


def inner_masks(x: Tensor, mask: Tensor) -> Any:
    cube = torch.stack([x, -x])
    return cube[:, mask], cube[:, mask[:, 1]].sum(1), cube[:, :, mask[0]] * 2


def written_by_masks(x: Tensor, mask: Tensor) -> Tensor:
    cube = torch.stack([x, -x])
    cube[:, mask] = cube[:, mask].cos()
    cube[:, :, mask[0]] = 7.0
    cube[0, mask[:, 1]] = x[mask[:, 1]] + 1
    cube[:, mask[:, 2], 1] += 4
    return cube


def one_mask_twice(x: Tensor, mask: Tensor) -> Any:
    own = mask[:, 0]
    square = x[:, :ROWS].clone()
    square[own, own] = 9.0
    return square, square[own, own]


def added_by_mask(x: Tensor, mask: Tensor) -> Tensor:
    return x.index_put((mask,), torch.tensor(2.0), accumulate=True)


BODIES: tuple[Body, ...] = (
    pairs, added, apart, scalar, into_fewer_columns, read_from_fewer_columns, mask_and_number, inner_masks, written_by_masks,
    one_mask_twice, added_by_mask,
)  # fmt: skip
cells = st.lists(st.booleans(), min_size=ROWS * COLUMNS, max_size=ROWS * COLUMNS)


@cache
def compiled_of(body: Body) -> Any:
    return gaudicc.compile(body, (torch.randn(ROWS, COLUMNS), torch.eye(ROWS, COLUMNS).bool()))


@pytest.mark.parametrize("body", BODIES)
@settings(deadline=None, max_examples=20)
@given(chosen=cells, odd=st.sampled_from([0.0, float("nan"), float("inf")]))
def test_as_in_eager(body: Body, chosen: list[bool], odd: float) -> None:
    x = torch.linspace(-1, 1, ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    x[1, 2] = odd
    mask = torch.tensor(chosen).reshape(ROWS, COLUMNS)
    torch.testing.assert_close(compiled_of(body)(x, mask), body(x, mask), rtol=1e-6, atol=1e-6, equal_nan=True)


def behind_the_last(x: Tensor, mask: Tensor) -> Tensor:
    rows = x[mask[:, 0]]
    i, j = torch.where(mask)
    return rows[i, j].sum()


def test_a_place_behind_the_valid_rows_is_raised_by_the_host() -> None:
    x, mask = torch.randn(ROWS, COLUMNS), torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
    mask[0, :2] = True
    compiled = gaudicc.compile(behind_the_last, (x, mask))
    torch.testing.assert_close(compiled(x, mask), behind_the_last(x, mask))
    mask[2, 1] = True
    with pytest.raises(IndexError):
        behind_the_last(x, mask)
    with pytest.raises(IndexError):
        compiled(x, mask)


def of_two_lengths(x: Tensor, mask: Tensor) -> Tensor:
    i, j = torch.where(mask)
    k = torch.where(x > 0)[0]
    return x.index_put((i, j), x[k, k])


def test_as_many_values_as_places_or_the_host_raises() -> None:
    x = torch.zeros(ROWS, COLUMNS)
    x[0, 1] = x[1, 1] = 1.0
    mask = x > 0
    compiled = gaudicc.compile(of_two_lengths, (x, mask))
    assert torch.equal(compiled(x, mask), of_two_lengths(x, mask))
    mask[2, 2] = True
    with pytest.raises((RuntimeError, IndexError)):
        of_two_lengths(x, mask)
    with pytest.raises(RuntimeError, match="differ in length"):
        compiled(x, mask)


def in_different_dims(x: Tensor, mask: Tensor) -> Tensor:
    i = torch.where(mask[:, 0])[0]
    return x.index_put((i[:, None], i[None]), torch.ones(())).sum()


def test_unknown_lengths_in_different_dims_are_refused() -> None:
    x = torch.randn(ROWS, COLUMNS)
    with pytest.raises(UnsupportedOpError, match="index_put") as refusal:
        gaudicc.compile(in_different_dims, (x, x > 0))
    assert "test_bounded_places.py" in str(refusal.value)
