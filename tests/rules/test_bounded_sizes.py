"""What data decides, beside sizes that are dynamic, and where eager raises: against eager, through the whole pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.export import Dim
from torch.nn import functional as F

import gaudicc

Body = Callable[[Tensor], Any]


def at_index(x: Tensor) -> Tensor:
    return x[int(x.sum())] + 1


def split_by(x: Tensor) -> Tensor:
    first, second = x.split([int((x > 0).sum()), int(x[-1])])
    return torch.cat([second * 2, first]).sum() + torch.zeros_like(x).index_add(
        0, x.argsort(), torch.cat([first, second])
    )


def test_an_index_out_of_range_is_raised_by_the_host() -> None:
    compiled = gaudicc.compile(at_index, (torch.tensor([1.0, 0.0, 0.0]),))
    for values in ([1.0, 1.0, 0.0], [-2.0, 0.0, 0.0], [0.0, -1.0, 0.0]):
        assert torch.equal(compiled(torch.tensor(values)), at_index(torch.tensor(values)))
    for values in ([3.0, 0.0, 0.0], [-2.0, -2.0, 0.0]):
        with pytest.raises(IndexError):
            at_index(torch.tensor(values))
        with pytest.raises(IndexError, match="out of range for size 3"):
            compiled(torch.tensor(values))


def test_pieces_whose_sizes_are_read() -> None:
    compiled = gaudicc.compile(split_by, (torch.tensor([-1.0, 2.0, 1.0, 2.0, 1.0]),))
    for values in ([-1.0, 2.0, 1.0, 2.0, 1.0], [3.0, 2.0, -1.0, -2.0, 2.0], [-1.0, -2.0, -3.0, -4.0, 4.0]):
        x = torch.tensor(values)
        if (x > 0).sum() + x[-1] == 5:
            torch.testing.assert_close(compiled(x), split_by(x))
    with pytest.raises(RuntimeError):
        compiled(torch.tensor([-1.0, 2.0, 1.0, 2.0, 3.0]))


def adapter(x: Tensor) -> Tensor:
    picked = x[:, 0] > 0
    result = torch.zeros_like(x)
    result[picked] = torch.softmax(x[picked], 1) + 1
    return result.sum(0)


def routed(x: Tensor) -> Tensor:
    rows, columns = torch.where(x > 0)
    return torch.zeros_like(x).index_add(0, rows, x[rows] * x[rows, columns][:, None])


def count_as_value(x: Tensor) -> Tensor:
    return x * int((x > 0).sum()) + x.shape[1]


def asserted(x: Tensor) -> Tensor:
    assert (x > 0).sum(1).max().item() <= x.shape[1]
    return x.cumsum(1)


def rows_at(x: Tensor) -> Tensor:
    at = (x[:, 0] > 0).nonzero()[:, 0]
    return x.index_put((at,), x[at].cos()) * x[at].shape[0]


def returned(x: Tensor) -> Tensor:
    return x[x[:, 0] > 0]


def places(x: Tensor) -> Tensor:
    return (x > 0).nonzero()


def columns(x: Tensor) -> Any:
    kept = x[:, x[0] > 0]
    return kept.softmax(0), kept.sum(1), (kept @ kept.mT).diagonal()


def compressed(x: Tensor) -> Tensor:
    return x.masked_select(x > 0.5) * 2


def filled(x: Tensor) -> Tensor:
    kept = F.pad(x[x[:, 0] > 0].cumsum(1), (1, 0), value=2.0)
    kept[:, 0] = 3.0
    return kept * kept.sum(1, keepdim=True)


def written_columns(x: Tensor) -> Tensor:
    y, mask = x.clone(), x[0] > 0
    y[:, mask] = y[:, mask].cos()
    y[:, ~mask] = 3.0
    return y


def both_sizes(high: int) -> dict[str, Any]:
    return {"x": {0: Dim("b", min=1, max=high), 1: Dim("s", min=1, max=high)}}


BESIDE = [
    adapter,
    routed,
    count_as_value,
    asserted,
    rows_at,
    returned,
    places,
    columns,
    compressed,
    filled,
    written_columns,
]


@pytest.mark.parametrize("body", BESIDE)
def test_beside_dynamic_sizes(body: Body) -> None:
    buckets = [{"b": 2, "s": 6}, {"b": 5, "s": 6}]
    compiled = gaudicc.compile(
        body, (torch.randn(3, 4),), dynamic_shapes=both_sizes(6), buckets=buckets, verify="poison"
    )
    generator = torch.Generator().manual_seed(0)
    for rows, columns in product((1, 2, 4), (1, 3, 6)):
        x = torch.randn(rows, columns, generator=generator)
        for sample in (x, x.abs(), -x.abs()):
            torch.testing.assert_close(compiled(sample), body(sample.clone()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("number", [2.0, 0.0])
def test_places_in_a_tensor_without_dims(number: float) -> None:
    x = torch.tensor(number)
    assert gaudicc.compile(lambda t: t.nonzero(), (torch.tensor(1.0),))(x).shape == x.nonzero().shape


def test_results_of_known_and_of_unknown_length() -> None:
    compiled = gaudicc.compile(lambda t: t.unique(return_inverse=True), (torch.tensor([3.0, 1.0, 3.0, 2.0]),))
    values, inverse = compiled(torch.tensor([5.0, 5.0, 1.0, 1.0]))
    assert (values.tolist(), inverse.tolist()) == ([1.0, 5.0], [1, 1, 0, 0])


@settings(max_examples=12, deadline=None)
@given(st.lists(st.booleans(), min_size=18, max_size=18), st.sampled_from([(3,), (2, 3), (1, 1), ()]))
def test_a_mask_that_is_larger_than_its_tensor_selects_as_often(chosen: list[bool], size: tuple[int, ...]) -> None:
    """torch takes the size of the tensor for the most that is selected, and asserts it."""
    x = torch.arange(float(math.prod(size))).reshape(size)
    compiled = _by_a_larger_mask(size)
    mask = torch.tensor(chosen).reshape(3, 2, 3)
    assert torch.equal(compiled(x, mask), torch.masked_select(x, mask) + 1)


@cache
def _by_a_larger_mask(size: tuple[int, ...]) -> Any:
    return gaudicc.compile(lambda x, m: torch.masked_select(x, m) + 1, (torch.zeros(size), torch.ones(3, 2, 3).bool()))


def patches(x: Tensor) -> Tensor:
    """Lengths of what begins at the first two columns and wherever entries are large, as byte models cut their text."""
    rows, length = x.shape
    large = x > 0.5
    places = torch.arange(length).expand(rows, -1)
    chosen = torch.cat([places, torch.full_like(places, length)], 1)[torch.cat([large, ~large], 1)]
    begun = chosen.reshape(rows, length)[:, : large.sum(1).max()]
    begun = torch.cat([torch.arange(2).expand(rows, -1), begun + 2], 1)
    ends = torch.cat([begun[:, 1:], torch.full_like(begun[:, :1], length + 2)], 1)
    return (ends - begun).sum(1) + (ends > begun).sum(1)


def half_of(x: Tensor) -> Tensor:
    return torch.cat([x, x], 1)[torch.cat([x > 0, x > 1], 1)].reshape(x.shape) * 2


@pytest.mark.parametrize("body", [patches, half_of])
def test_selected_rows_that_fill_dynamic_sizes(body: Body) -> None:
    sizes = {"x": {0: Dim("rows", min=1, max=4), 1: Dim("length", min=2, max=8)}}
    buckets = [{"rows": 4, "length": 8}]
    compiled = gaudicc.compile(body, (torch.rand(2, 3),), dynamic_shapes=sizes, buckets=buckets)
    torch.manual_seed(0)
    for shape in ((2, 3), (1, 2), (4, 8), (3, 5)):
        x = torch.rand(shape)
        x[0, -1] = 0.9  # some row begins somewhere
        assert torch.equal(compiled(x), body(x))
        if body is half_of:
            with pytest.raises(RuntimeError, match=r"has to be|is invalid"):
                compiled(x - 0.95)
