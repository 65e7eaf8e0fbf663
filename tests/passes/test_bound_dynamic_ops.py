"""Tensors of unknown length on their largest length, against eager, through the whole pipeline with its legality checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.export import Dim
from torch.nn import functional

import gaudicc
from gaudicc.errors import UnsupportedOpError
from gaudicc.rules import compaction

NAN, INF = float("nan"), float("inf")
VECTORS = [
    torch.tensor(values)
    for values in (
        [1.0, 2.0, 3.0, -4.0], [-1.0, -2.0, -3.0, -4.0], [0.0, 0.0, 0.0, 0.0], [2.0, -1.0, 0.5, 3.0], [-2.0, 3.0, 1.0, 1.0],
        [NAN, 1.0, 2.0, 0.0], [3.0, -5.0, 1.0, 9.0], [0.0, 1.0, -1.0, 2.0], [-0.0, 2.0, 2.0, 2.0], [INF, 1.0, 1.0, 1.0],
    )
]  # fmt: skip
Body = Callable[[Tensor], Any]
CASES: dict[str, Body] = {}


def case(body: Body) -> Body:
    CASES[body.__name__] = body
    return body


@case
def sel(x: Tensor) -> Any:
    return x[x > 0]


@case
def sel_sum(x: Tensor) -> Any:
    return x[x > 0].sum()


@case
def sel_mean(x: Tensor) -> Any:
    return x[x > 0].mean()


@case
def sel_max(x: Tensor) -> Any:
    return x[x > 0].max() if (x > 0).any() else x.sum()


@case
def nz(x: Tensor) -> Any:
    return torch.nonzero(x > 0)


@case
def nz2(x: Tensor) -> Any:
    return torch.nonzero(x.reshape(2, 2))


@case
def nz_gather(x: Tensor) -> Any:
    return x[torch.nonzero(x > 0)[:, 0]] * 2 + 1


@case
def where1(x: Tensor) -> Any:
    i, j = torch.where(x.reshape(2, 2) > 0)
    return i * 2 + j, x.reshape(2, 2)[i, j]


@case
def mselect(x: Tensor) -> Any:
    return torch.masked_select(x, x > 1).exp()


@case
def write(x: Tensor) -> Any:
    y = x.clone()
    y[y > 0] = y[y > 0] * 2
    return y


@case
def write_scalar(x: Tensor) -> Any:
    y = x.clone()
    y[y > 0] = 7.0
    return y


@case
def iadd(x: Tensor) -> Any:
    i = torch.nonzero(x > 0)[:, 0]
    return torch.zeros(4).index_add(0, i, x[i])


@case
def iput(x: Tensor) -> Any:
    i = torch.nonzero(x > 0).squeeze(1)
    y = torch.zeros(4)
    y[i] = x[i] * 3
    return y


@case
def linear(x: Tensor) -> Any:
    w = torch.arange(12.0).reshape(3, 4)
    rows = torch.stack([x, x * 2, x * 3])[x[:3] > 0]
    return functional.linear(rows, w)


@case
def sl(x: Tensor) -> Any:
    return x[: int((x > 0).sum())]


@case
def sl_sum(x: Tensor) -> Any:
    n = int((x > 0).sum())
    return x[:n].sum() + x[n:].sum() * 2


@case
def sl_neg(x: Tensor) -> Any:
    n = int((x > 0).sum())
    return x[n - 4 :]


@case
def cat(x: Tensor) -> Any:
    return torch.cat([x[x > 0], x[x <= 0] * 2])


@case
def cat_static(x: Tensor) -> Any:
    return torch.cat([x[x > 0], x])


@case
def cumsum(x: Tensor) -> Any:
    return x[x > 0].cumsum(0)


@case
def two(x: Tensor) -> Any:
    y = x[x > 0]
    return y[y > 1]


@case
def item_value(x: Tensor) -> Any:
    return x * x[0].item()


@case
def item_add(x: Tensor) -> Any:
    return x + int((x > 0).sum())


@case
def view2(x: Tensor) -> Any:
    return x[x > 0].view(-1, 1) * 2


@case
def expand2(x: Tensor) -> Any:
    return x[x > 0][:, None].expand(-1, 3) + 1


@case
def sm(x: Tensor) -> Any:
    return torch.stack([x, x + 1])[:, x > 0].softmax(0)


@case
def sizeval(x: Tensor) -> Any:
    y = x[x > 0]
    return x + y.shape[0]


@case
def uniq(x: Tensor) -> Any:
    return torch.unique(x.nan_to_num(posinf=9.0))


@case
def emb(x: Tensor) -> Any:
    i = torch.nonzero(x > 0)[:, 0]
    return functional.embedding(i, torch.arange(8.0).reshape(4, 2))


@case
def rep(x: Tensor) -> Any:
    return torch.repeat_interleave(x, (x > 0).long() + 1)


@case
def rep_rows(x: Tensor) -> Any:
    times = x.nan_to_num().round().clamp(0, 2).reshape(2, 2).long()
    return tuple(torch.repeat_interleave(row, n) for row, n in zip(x.reshape(2, 2), times, strict=True))


@case
def arange_n(x: Tensor) -> Any:
    return torch.arange(int((x > 0).sum())) * 2


@case
def select_item(x: Tensor) -> Any:
    return x[int((x > 0).sum()) - 1]


@case
def moved_back(x: Tensor) -> Any:
    count = int((x > 0).sum())
    return x * -count, torch.arange(4) - -count


@case
def compared_with_numbers(x: Tensor) -> Any:
    kinds = torch.tensor([2, -1, 0, 2])
    first, count = x[0].item(), int((x > 0).sum())
    return x == first, x < count, kinds == count, kinds >= first, (x > 0) == count, x.double() > first


@case
def one_group_at_a_time(x: Tensor) -> Any:
    out = torch.zeros_like(x)
    for kind in x.sign().long().unique().tolist():
        chosen = x.sign().long() == kind
        out[chosen] = x[chosen] * (kind + 2)
    return out


@case
def ring(x: Tensor) -> Any:
    held = torch.arange(8.0).reshape(4, 2)
    held[(x > 0).sum() % 4] = x[:2]
    held = held.clone()
    held[int((x > 0).sum()) % 3 - 3] = x[2:]
    return held


@case
def branch_dyn(x: Tensor) -> Any:
    y = x[x > 0]
    if y.shape[0] > 1:
        return y.sum() * x
    return x


@pytest.mark.parametrize("name", CASES)
def test_equal_to_eager(name: str) -> None:
    body = CASES[name]
    compiled = gaudicc.compile(body, (VECTORS[0],), target="gaudi3")
    for x in VECTORS:
        wanted, got = body(x.clone()), compiled(x.clone())
        for a, b in zip(as_tuple(wanted), as_tuple(got), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_a_slice_that_data_selects_is_read_through_views() -> None:
    """As LongCat's experts read their mask: a selection by data is laid out otherwise than a view would be."""

    def body(chosen: Tensor, x: Tensor) -> Tensor:
        table = functional.one_hot(chosen, 3).permute(2, 1, 0)
        out = torch.zeros_like(x)
        for i in (table.sum((1, 2)) > 0).nonzero():
            at, row = torch.where(table[int(i)].squeeze(0))
            out.index_add_(0, row, x[row] * (at[:, None] + 1))
        return out

    rows = Dim("rows", min=2, max=8)
    example = (torch.tensor([[0, 1], [2, 0], [1, 1]]), torch.randn(3, 4))
    compiled = gaudicc.compile(
        body, example, dynamic_shapes={"chosen": {0: rows}, "x": {0: rows}}, buckets=[{"rows": 8}]
    )
    for count in (2, 5, 8):
        given = torch.randint(0, 3, (count, 2)), torch.randn(count, 4)
        torch.testing.assert_close(compiled(*given), body(*given))


def as_tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def nothing_bounds(x: Tensor) -> Tensor:
    return torch.ones(int(x.sum().nan_to_num())).sum() + x  # refused


def every_second(x: Tensor) -> Tensor:
    return x[x > 0][::2]  # refused


def contracted(x: Tensor) -> Tensor:
    return torch.cat([x, x])[torch.cat([x, x]) > 0] @ x[x > 0]  # refused


def median_of_rows(x: Tensor) -> Tensor:
    return x[x > 0].median()  # refused


@pytest.mark.parametrize(
    ("body", "op", "why"),
    [
        (nothing_bounds, "aten.ones", "nothing bounds the size"),
        (every_second, "aten.slice.Tensor", "every so many rows"),
        (contracted, "aten.matmul", "summed over"),
        (median_of_rows, "aten.median", "no form on tensors of unknown length"),
    ],
)
def test_refusals_name_the_op_the_line_and_what_to_do(body: Body, op: str, why: str) -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        gaudicc.compile(body, (VECTORS[0],))
    assert why in caught.value.what
    assert caught.value.where.op == op
    assert caught.value.where.source == f"passes/test_bound_dynamic_ops.py:{body.__code__.co_firstlineno + 1}"
    assert "mask instead of selecting" in caught.value.todo


def test_what_no_data_decides_is_left_alone() -> None:
    record = gaudicc.compile(lambda x: x.relu(), (VECTORS[0],)).trace["bound-dynamic-ops"]
    assert not record.modified


masks = st.lists(st.booleans(), min_size=1, max_size=12).map(torch.tensor)


@given(mask=masks)
def test_rows_are_moved_to_the_front_in_order(mask: Tensor) -> None:
    position, number = compaction.places(mask)
    kept = torch.nonzero(mask)[:, 0]
    assert int(number) == len(kept)
    assert torch.equal(position[: len(kept)], kept)
    assert not position[len(kept) :].any()


@given(mask=masks)
def test_a_write_is_the_inverse_of_a_selection(mask: Tensor) -> None:
    x = torch.arange(len(mask) * 2.0).reshape(-1, 2)
    rows, _ = compaction.selected(x, mask)
    assert torch.equal(compaction.written(x, mask, rows), x)


@given(x=st.lists(st.integers(-3, 3), min_size=1, max_size=9).map(torch.tensor))
def test_unique_with_inverse_and_counts(x: Tensor) -> None:
    values, inverse, counts, number = compaction.unique(x)
    wanted = torch.unique(x, return_inverse=True, return_counts=True)
    assert torch.equal(values[:number], wanted[0])
    assert torch.equal(inverse, wanted[1])
    assert torch.equal(counts[:number], wanted[2])


@given(repeats=st.lists(st.integers(0, 3), min_size=1, max_size=6).map(torch.tensor))
def test_repeated_indices(repeats: Tensor) -> None:
    index, number = compaction.repeated(repeats, 3 * len(repeats))
    assert torch.equal(index[:number], torch.repeat_interleave(repeats))
