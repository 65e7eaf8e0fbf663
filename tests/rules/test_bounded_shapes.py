"""Rows of unknown length repeated, merged, attended to and written into, against eager, through the whole pipeline."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import gaudicc
from gaudicc.errors import UnsupportedOpError

MASKS = st.lists(st.booleans(), min_size=6, max_size=6)
WIDE = torch.arange(48.0).reshape(6, 8).sin()
Body = Callable[[Tensor, Tensor], Any]


def repeated(mask: Tensor, x: Tensor) -> Any:
    rows = x[mask]
    return (
        rows.repeat_interleave(2, 0),
        rows.repeat_interleave(3, 1),
        rows.repeat_interleave(2, 0).sum(0),
        rows[:, 0].repeat_interleave(2),
    )


def merged(mask: Tensor, x: Tensor) -> Any:
    rows = x[mask]
    halves = rows.reshape(rows.shape[0] * 2, 4)
    return (
        halves,
        halves.reshape(rows.shape[0], 8) + 1,
        halves.reshape(-1).cumsum(0),
        rows.view(-1, 2, 4).transpose(0, 1),
    )


def attended(mask: Tensor, x: Tensor) -> Any:
    rows = torch.cat([x[:1], x[mask]])
    count = rows.shape[0]
    heads = rows.view(1, count, 2, 4).transpose(1, 2)
    place = torch.arange(count)
    earlier = (place[None] <= place[:, None])[None, None]
    known = x[:4].view(1, 4, 2, 4).transpose(1, 2)
    attention = functional.scaled_dot_product_attention
    return (
        attention(heads, heads, heads, attn_mask=earlier),
        attention(heads, heads, heads, is_causal=True).transpose(1, 2).reshape(count, 8) @ x[0],
        attention(known, heads, heads),
        attention(heads, known, known),
    )


def attended_before_nan(mask: Tensor, x: Tensor) -> Any:
    """The seventh row is no number; there are never so many."""
    rows = torch.cat([x[1:2], x[mask & (torch.arange(6) > 0)]])
    rows = rows.masked_fill(torch.arange(rows.shape[0])[:, None] == 6, float("nan"))
    heads = rows.view(1, rows.shape[0], 2, 4).transpose(1, 2)
    return functional.scaled_dot_product_attention(heads, heads, heads / 2)


def written(mask: Tensor, x: Tensor) -> Any:
    rows = torch.cat([x[:2], x[mask]])
    at = torch.tensor([[0, 1], [1, 0]])
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    return (
        rows.scatter(0, at, values),
        rows.scatter(0, at, 2.0),
        rows.scatter_add(0, at, values),
        rows.scatter_reduce(0, at, values, "amax", include_self=False),
    )


def counted(mask: Tensor, x: Tensor) -> Any:
    count = int(mask.sum())
    return (
        torch.arange(0, count) * 2,
        torch.stack([torch.arange(3, count + 3), torch.arange(count)]),
        mask.nonzero(as_tuple=True),
    )


@cache
def compiled_of(body: Body) -> Any:
    return gaudicc.compile(body, (torch.tensor([True, False, True, True, False, True]), WIDE))


@pytest.mark.parametrize("body", [repeated, merged, attended, attended_before_nan, written, counted])
@settings(max_examples=8)
@given(chosen=MASKS)
def test_rows_as_in_eager(body: Body, chosen: list[bool]) -> None:
    mask = torch.tensor(chosen)
    torch.testing.assert_close(compiled_of(body)(mask, WIDE), body(mask, WIDE), rtol=1e-5, atol=1e-5, equal_nan=True)


def test_a_dim_behind_others_is_not_merged_with_them() -> None:
    """Valid rows would no longer be in front: this once gave zeros in their place."""
    with pytest.raises(UnsupportedOpError, match="merged with what stands before it"):
        gaudicc.compile(lambda x: x.nonzero().t().reshape(-1, 2), (torch.eye(2),))


def test_a_mask_of_two_unknown_dims_is_no_result() -> None:
    def outer(x: Tensor) -> Tensor:
        place = torch.arange(x[x > 0].shape[0])
        return place[None] <= place[:, None]

    with pytest.raises(UnsupportedOpError, match="two dims of unknown length"):
        gaudicc.compile(outer, (torch.tensor([1.0, 0.0, 2.0]),))


def test_two_unknown_lengths_do_not_meet_in_one_tensor() -> None:
    with pytest.raises(UnsupportedOpError, match="different unknown lengths"):
        gaudicc.compile(lambda x: (x[x > 0][:, None] * x[x < 0]).sum(), (torch.tensor([1.0, -1.0, 2.0]),))


def test_what_is_selected_has_to_be_as_long_as_the_program_goes_on_with() -> None:
    compiled = gaudicc.compile(lambda x: x[x > 0].reshape(2, 2) + 1, (torch.tensor([1.0, -1.0, 2.0, 3.0, 4.0]),))
    x = torch.tensor([-1.0, 5.0, 6.0, 7.0, 8.0])
    assert torch.equal(compiled(x), torch.tensor([[6.0, 7.0], [8.0, 9.0]]))
    for other in (x.abs(), -x.abs()):
        with pytest.raises(RuntimeError):
            compiled(other)


def test_repeats_that_add_up_to_a_given_size() -> None:
    def spread(x: Tensor, repeats: Tensor) -> Tensor:
        return x.repeat_interleave(repeats, 0, output_size=4)

    x = torch.tensor([[1.0], [2.0], [3.0]])
    compiled = gaudicc.compile(spread, (x, torch.tensor([1, 1, 2])))
    for repeats in ([1, 1, 2], [0, 4, 0], [2, 0, 2]):
        assert torch.equal(compiled(x, torch.tensor(repeats)), spread(x, torch.tensor(repeats)))
    for repeats in ([1, 1, 1], [3, 3, 3]):
        with pytest.raises(RuntimeError):
            compiled(x, torch.tensor(repeats))


def test_an_index_behind_the_valid_rows_is_raised_by_the_host() -> None:
    def write(x: Tensor, at: Tensor) -> Tensor:
        return x[x > 0].scatter_add(0, at, torch.ones(2))

    compiled = gaudicc.compile(write, (torch.tensor([1.0, -1.0, 2.0]), torch.tensor([0, 1])))
    assert compiled(torch.tensor([1.0, -1.0, 2.0]), torch.tensor([1, 1])).tolist() == [1.0, 4.0]
    with pytest.raises(RuntimeError, match="out of bounds"):
        compiled(torch.tensor([1.0, -1.0, -2.0]), torch.tensor([0, 1]))
