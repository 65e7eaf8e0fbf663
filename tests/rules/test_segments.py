"""Segment reductions: every reduction, lengths and offsets, empty segments, rows left over, batches, NaN and infinities."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaudicc.rules.segments import segment_reduce

aten = torch.ops.aten
Tensors = Callable[..., st.SearchStrategy[torch.Tensor]]
REDUCTIONS = st.sampled_from(["sum", "mean", "prod", "max", "min"])


@given(data=st.data(), reduce=REDUCTIONS, initial=st.sampled_from([None, 0.0, 2.0, -1.0]), as_offsets=st.booleans())
def test_one_division_of_rows(
    data: st.DataObject,
    reduce: str,
    initial: float | None,
    as_offsets: bool,
    same: Callable[..., None],
    tensors: Tensors,
) -> None:
    x = data.draw(tensors(rank=(1, 3), sizes=(1, 5)))
    ends = torch.tensor(sorted(data.draw(st.lists(st.integers(0, x.shape[0]), min_size=1, max_size=4))))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
    division = {"offsets": offsets} if as_offsets else {"lengths": offsets.diff()}
    same(aten.segment_reduce.default, x, reduce, axis=0, unsafe=True, initial=initial, **division)


@given(data=st.data(), reduce=REDUCTIONS)
def test_each_row_of_a_batch_has_its_own(
    data: st.DataObject, reduce: str, same: Callable[..., None], tensors: Tensors
) -> None:
    x = data.draw(tensors(rank=(2, 3), sizes=(1, 4))).contiguous()
    cuts = st.lists(st.integers(0, x.shape[1]), min_size=2, max_size=2)
    lengths = torch.stack([torch.tensor([min(pair), max(pair) - min(pair)]) for pair in (data.draw(cuts) for _ in x)])
    same(aten.segment_reduce.default, x, reduce, lengths=lengths, axis=1, unsafe=True, initial=1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [torch.tensor([0, 3, 0, 2]), torch.tensor([1, 1], dtype=torch.int32)])
def test_sums_are_made_in_float32(dtype: torch.dtype, lengths: torch.Tensor) -> None:
    x = torch.linspace(-3, 5, 15).reshape(5, 3).to(dtype)
    wanted = aten.segment_reduce(x.float(), "sum", lengths=lengths.long(), unsafe=True).to(dtype)
    assert torch.equal(segment_reduce(x, "sum", lengths=lengths, unsafe=True), wanted)
