"""Numpy-style indexing: bitwise that of PyTorch, whatever is indexed where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

aten = torch.ops.aten
DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.bool)


def indices(data: st.DataObject, x: Tensor) -> list[Tensor | None]:
    """One to all dims of x indexed, by tensors that broadcast; negative places too."""
    chosen = data.draw(st.sets(st.integers(0, x.dim() - 1), min_size=1))
    shape = data.draw(st.sampled_from([(3,), (1,), (2, 2), (), (0,)]))
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    result: list[Tensor | None] = [None] * x.dim()
    for dim in chosen:
        part = data.draw(st.sampled_from([shape, tuple(1 for _ in shape)]))
        result[dim] = torch.randint(-x.shape[dim], x.shape[dim], part, generator=seed)
    return result[: max(chosen) + 1]


@given(data=st.data())
def test_reading(data: st.DataObject, same: Callable[..., None], tensors: Callable[..., Any]) -> None:
    x = data.draw(tensors(DTYPES, rank=(1, 4), sizes=(1, 4)))
    same(aten.index.Tensor, x, indices(data, x))


@given(data=st.data(), accumulate=st.booleans())
def test_writing(data: st.DataObject, accumulate: bool, same: Callable[..., None], tensors: Callable[..., Any]) -> None:
    x = data.draw(tensors((torch.float32, torch.int64), rank=(1, 4), sizes=(1, 4)))
    at = indices(data, x)
    place = aten.index.Tensor(x, at)
    values = data.draw(st.sampled_from([torch.arange(place.numel()).reshape(place.shape), torch.tensor(7)])).to(x.dtype)
    same(aten.index_put.default, x.contiguous(), at, values, accumulate)


@given(data=st.data(), accumulate=st.booleans())
def test_writing_by_mask(
    data: st.DataObject, accumulate: bool, same: Callable[..., None], tensors: Callable[..., Any]
) -> None:
    x = data.draw(tensors(DTYPES[:3], rank=(1, 3), sizes=(0, 4)))
    mask = torch.rand(x.shape[: data.draw(st.integers(1, x.dim()))], generator=torch.Generator().manual_seed(1)) < 0.5
    count = int(mask.sum())
    kind = data.draw(st.sampled_from(["scalar", "row", "list"] if count else ["scalar"]))
    rest = list(x.shape[mask.dim() :])
    values = torch.arange(
        {"scalar": 1, "row": 1, "list": count}[kind] * (torch.Size(rest).numel() if kind != "scalar" else 1)
    )
    values = values.to(x.dtype).reshape([] if kind == "scalar" else [count, *rest] if kind == "list" else rest)
    same(aten.index_put.default, x.contiguous(), [mask], values, accumulate)


@given(data=st.data(), size=st.integers(0, 12), fill=st.integers(-3, 3))
def test_coordinates_of_nonzero(
    data: st.DataObject, size: int, fill: int, same: Callable[..., None], tensors: Callable[..., Any]
) -> None:
    same(aten.nonzero_static.default, data.draw(tensors(DTYPES, rank=(0, 3))), size=size, fill_value=fill)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, i: x[i, :, 1:2],
        lambda x, i: x[:, i, None, i],
        lambda x, i: x.index_put((i,), x.sum() * 0 + 1),
        lambda x, i: x.masked_fill(x > 0, 2.0).take(i),
        lambda x, i: torch.cat([x[i], x.flip(0)[..., ::2].sum(-1, keepdim=True).expand(-1, -1, 3)[:3]]),
    ],
)
def test_models_index_legally(function: Callable[..., Tensor], legally: Callable[..., Any]) -> None:
    x, i = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, -1])
    i = i.clamp(min=0) if "take" in function.__code__.co_names else i
    (found,) = legally(function, x, i)
    assert torch.equal(found, function(x, i))
