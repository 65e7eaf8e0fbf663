"""Functions that index, mask, sort and write as strangers do, through the whole pipeline, against eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.rules.cases import Cases

case = Cases()
floats, integers = case.floats, case.integers


@case(floats(4, 8))
def neg_flip(x: Tensor) -> Any:
    return (x.flip(-1)[:, ::2], x[:, -3:], x[..., None, 1:-1:3])


@case(floats(3, 4, 5))
def mixed_adv(x: Tensor) -> Any:
    return (x[torch.tensor([0, 2]), :, torch.tensor([1, -1])], x[:, [0, -1]], x[..., [1, 1, 0]], x[[0, 1], None])


@case(floats(4, 8))
def masked_assign(x: Tensor) -> Any:
    y = x.clone()
    y[y < 0] = 0
    y[:, 1:3] *= 2
    y[0] = -1
    y[y > 1] += 5
    return y


@case(floats(5, 5))
def triu_idx(x: Tensor) -> Any:
    i = torch.triu_indices(5, 5, 1)
    y = torch.zeros(5, 5)
    y[i[0], i[1]] = x[i[0], i[1]]
    y[torch.arange(5), torch.arange(5)] = 1.5
    return (y, x[i[0], i[1]].sum())


@case(integers(0, 7, 3, 4))
def one_hot(ids: Tensor) -> Any:
    return (functional.one_hot(ids, 7), functional.one_hot(ids, 7).sum(1), functional.one_hot(ids, 9).float().mean())


@case(integers(0, 2, 2, 6))
def pos_ids(mask: Tensor) -> Any:
    p = mask.cumsum(-1) - 1
    p.masked_fill_(mask == 0, 1)
    return (p, (mask.cumsum(-1) * mask).long())


@case(floats(3, 50))
def top_p(logits: Tensor) -> Any:
    s, i = torch.sort(logits, descending=True)
    cp = torch.cumsum(torch.softmax(s, -1), -1)
    rm = cp > 0.8
    rm[..., 1:] = rm[..., :-1].clone()
    rm[..., 0] = 0
    out = rm.scatter(1, i, rm)
    return logits.masked_fill(out, -float("inf"))


@case(floats(3, 50))
def top_k(logits: Tensor) -> Any:
    v = torch.topk(logits, 5)[0][..., -1, None]
    return torch.where(logits < v, torch.full_like(logits, float("-inf")), logits).softmax(-1)


@case(floats(40))
def hist(x: Tensor) -> Any:
    return (torch.histc(x, 8, -2, 2), torch.bincount((x.abs() * 3).long().clamp(max=9), minlength=10))


@case(floats(6, 4))
def views_inplace(x: Tensor) -> Any:
    y = x.clone()
    v = y.view(2, 3, 4)
    v[0] += 1
    v[:, 1] = v[:, 1] * 3
    y.t()[0].mul_(2)
    return (y, v.sum())


@case(floats(0, 4))
def zero_rows(x: Tensor) -> Any:
    return (x.sum(0), x.softmax(-1), torch.cat([x, torch.ones(2, 4)]), x.mean(-1), x @ torch.ones(4, 3))


@case(floats(1, 1))
def size_one(x: Tensor) -> Any:
    return (x.squeeze(), x.softmax(-1), x.std(unbiased=False), x.cumsum(0), x.expand(3, 4), x.argmax(), x.max(0))


@case(integers(0, 100, 2, 6))
def shift_labels(ids: Tensor) -> Any:
    s = ids.new_full(ids.shape, -100)
    s[:, 1:] = ids[:, :-1].clone()
    s[:, 0] = 2
    s.masked_fill_(s == -100, 1)
    return (s, torch.roll(ids, 1, 1), ids[:, ::2])


@case(floats(2, 5, 8))
def pool_last(h: Tensor) -> Any:
    m = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    n = m.sum(1) - 1
    return (h[torch.arange(2), n], (h * m.unsqueeze(-1)).sum(1) / m.sum(1, keepdim=True).clamp(min=1e-09))


@case(floats(2, 8, 16))
def blocks(x: Tensor) -> Any:
    return (
        x.unfold(1, 4, 2),
        x.reshape(2, 4, 2, 16).transpose(1, 2).flatten(1, 2),
        x.chunk(3, -1)[2],
        torch.tensor_split(x, 3, 1)[0],
        x.movedim(0, -1),
    )


@case(floats(10), integers(0, 10, 10))
def scatters(x: Tensor, i: Tensor) -> Any:
    return (
        torch.zeros(10).scatter_add_(0, i, x),
        torch.zeros(10).index_add_(0, i, x),
        torch.zeros(10).scatter_reduce(0, i, x, "amax", include_self=False),
        torch.zeros(10, dtype=torch.long).scatter_add_(0, i, torch.ones(10, dtype=torch.long)),
    )


@case(floats(3, 7))
def sorts(x: Tensor) -> Any:
    return (
        x.sort(1, descending=True),
        x.argsort(0),
        x.topk(3, 1, largest=False),
        x.kthvalue(2, 1),
        x.median(1),
        x.mode(1),
        x.cummax(1),
    )


@case(integers(-9, 9, 3, 7))
def int_sorts(x: Tensor) -> Any:
    return (x.sort(1), x.topk(3, 1).values, x.cummax(1).values, x.max(1), x.amin(0), x.prod(1), x.argmax(1))


@case(integers(0, 50, 2, 8))
def ngram(ids: Tensor) -> Any:
    return (
        ids[:, :-1] * 50 + ids[:, 1:],
        ids.bitwise_xor(3),
        ids << 2 | 1,
        ids.float().log1p(),
        torch.bucketize(ids, torch.tensor([5, 10, 20])),
        torch.searchsorted(torch.tensor([1, 4, 9]), ids),
        ids.gt(3).cumsum(1),
    )


@case(floats(2, 4, 8), floats(2, 6, 8))
def cross_mask(q: Tensor, k: Tensor) -> Any:
    L = torch.arange(4)[:, None] >= torch.arange(6)[None] - 2
    w = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(~L, torch.finfo(q.dtype).min)
    return w.softmax(-1) @ k


@case(floats(2, 6))
def lists(x: Tensor) -> Any:
    return (
        [x[i].sum() for i in range(2)],
        {"a": x.unbind(1)[3], "b": (x.split([1, 2, 3], 1)[2],)},
        torch.stack(list(x)),
        torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij"),
    )


@case(torch.tensor(3), floats(4, 8))
def scalar_idx(n: Tensor, x: Tensor) -> Any:
    return (
        x[n],
        x[:, n],
        x[n] + n,
        x.index_select(0, n[None]),
        torch.arange(8) < n,
        x.narrow(1, 2, 3),
        x.take_along_dim(torch.tensor([[1], [2], [0], [3]]), 1),
        torch.take(x, torch.tensor([0, -1, 5])),
    )


@case(floats(3, 6))
def assign_views(x: Tensor) -> Any:
    y = torch.zeros(3, 6)
    y[:, ::2] = x[:, 1::2]
    y[1, [0, 5]] = torch.tensor([7.0, 8.0])
    y[..., -1] += 1
    z = y.clone()
    z.diagonal().fill_(9)
    z[1:, 2].zero_()
    z.index_fill_(1, torch.tensor([3]), -2.0)
    return (y, z)


@case(integers(0, 9, 3, 5), integers(0, 2, 3, 5).bool())
def bool_ops(i: Tensor, m: Tensor) -> Any:
    return (
        m.sum(1),
        m.any(1),
        m.all(),
        m.float().argmax(1),
        m.int().argmax(1),
        m.cumsum(1),
        m.logical_not(),
        m & (i > 3),
        m.sum() > 3,
        i.masked_fill(m, -1),
        torch.masked_fill(i.float(), m, 2),
        m.long() * i,
        m.to(torch.float32).mean(),
        i.eq(3).nonzero(),
        i[m],
        m.max(1),
    )


@pytest.mark.parametrize("name", case.functions)
def test_as_in_eager(name: str, agrees: Callable[..., None]) -> None:
    function, inputs = case.functions[name]
    agrees(function, *inputs)
