"""Rules of gather and scatter, against brute force (see conftest.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gaudicc.padding.rules import indexing, writes

ops = torch.ops.aten


def index_put_rows(x: torch.Tensor, i: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.Tensor.index_put(x, (i,), v)


CASES: dict[str, tuple[Any, ...]] = {
    "gather": (lambda x, i: x.gather(1, i), "b 4 f", "b s i"),
    "gather-shift": (lambda x, i: x.gather(1, 3 - i), "b 4 f", "b s i"),
    "index-select": (lambda x, i: x.index_select(0, 3 - i), "4 b f", "s i"),
    "index-two": (lambda x, i, j: x[i, j], "4 4 f", "b 1 i", "s i"),
    "index-shift": (lambda x, i: x[:, 3 - i], "b 4 f", "s i"),
    "index-negative": (lambda x, i: x[:, -1 - (i % 2)], "b s:4 f", "t i"),
    "index-last": (lambda x, i: x[torch.arange(x.shape[0]), i % x.shape[1]], "b s f", "b i"),
    "last-token": (lambda x, m: x[torch.arange(x.shape[0]), m.sum(1) - m.sum(1)], "b s 2 f", "b s i"),
    "embedding-of-zeros": (
        lambda x, w: F.embedding(x.new_zeros((x.shape[0], x.shape[1], 2), dtype=torch.int64)[..., 0], w).sum(1),
        "b s f",
        "3 2 f",
    ),
    "one-hot": (lambda i: F.one_hot(3 - i, 4).sum(1), "b s i"),
    "grid-sampler": (lambda x, g: ops.grid_sampler_2d(x, g.tanh(), 0, 0, False), "b 2 4 3 f", "b s t 2 f"),
    "grid-sampler-border": (lambda x, g: ops.grid_sampler_2d(x, g.exp(), 1, 1, True), "2 2 4 3 f", "2 s t 2 f"),
    "one-hot-whole": (lambda i: ops.one_hot(3 - i, 5), "b s i"),
    "index-put-mask": (lambda x, m: ops.index_put(x.exp(), [m], x.new_zeros(())).sum(1), "b s f", "b s m"),
    "index-put-mask-rows": (lambda x, m, v: ops.index_put(x.exp(), [m], v).sum(1), "b s 2 f", "b s m", "2 f"),
    "index-put-mask-pads": (lambda x, m, v: ops.index_put(x, [m], v.exp()), "b s t f", "b m", "1 s t f"),
    "embedding": (lambda w, i: F.embedding(3 - i, w), "4 3 f", "b s i"),
    "scatter": (lambda x, i, v: x.scatter(1, 3 - i, v), "b 4 f", "b s i", "b s f"),
    "scatter-add": (lambda x, i, v: x.scatter_add(1, i, v + 1), "b 4 f", "b s i", "b s f"),
    "scatter-value": (lambda x, i: x.scatter(0, 3 - i, 5.0), "4 b f", "s b i"),
    "index-add": (lambda x, i, v: x.index_add(0, i, v + 1), "4 b f", "s i", "s b f"),
    "index-copy": (lambda x, v: x.index_copy(1, torch.arange(v.shape[1]) + 1, v.cos()), "b 9 f", "b s f"),
    "index-put": (index_put_rows, "4 b f", "s i", "s b f"),
    "index-put-add": (lambda x, i, v: ops.index_put(x, [3 - i], v + 1, True), "4 b f", "s i", "s b f"),
    "index-put-two": (
        lambda x, i, v: ops.index_put(x, [torch.arange(x.shape[0])[:, None], i], v),
        "b 4 f",
        "b s i",
        "b s f",
    ),
    "slice-scatter": (lambda x, v: ops.slice_scatter(x, v.exp(), 1, 1, 1 + v.shape[1]), "b 9 f", "b s f"),
    "slice-scatter-into-longer": (  # rows of the base behind the source are valid
        lambda v: ops.slice_scatter(torch.zeros(v.shape[0], v.shape[1] + 1), v, 1, 0, v.shape[1]),
        "b s f",
    ),
    "slice-scatter-from-the-end": (
        lambda x, v: (
            ops.slice_scatter(x, v.exp(), 1, -v.shape[1], 99) + ops.slice_scatter(x, v, 1, -2 * v.shape[1], -v.shape[1])
        ),
        "b 12 f",
        "b s f",
    ),
    "slice-scatter-from-the-end-padded": (
        lambda x: ops.slice_scatter(x, x[:, -x.shape[0] :].exp(), 1, -x.shape[0], 99),
        "b s:4 f",
    ),
    "slice-scatter-start": (
        lambda x, v, y: ops.slice_scatter(x, v.exp(), 1, y.shape[0], y.shape[0] + v.shape[1]),
        "b 12 f",
        "b s f",
        "t f",
    ),
    "slice-scatter-rows": (
        lambda x, v, y: ops.slice_scatter(x, v.exp(), 1, y.shape[0], y.shape[0] + v.shape[1]),
        "b 129 f",
        "b s f",
        "t f",
    ),
    "slice-scatter-last-two": (lambda x, v: ops.slice_scatter(x.cos(), v[:, : x.shape[1]], 1, -2), "b s f", "b 2 f"),
    "slice-scatter-last-row": (  # which pads would write
        lambda x, v, y: ops.slice_scatter(x, v.exp(), 1, y.shape[0], y.shape[0] + v.shape[1]),
        "b 128 f",
        "b s f",
        "t f",
    ),
    "slice-scatter-one-row": (
        lambda x, v, y: ops.slice_scatter(x, v.exp(), 1, y.shape[0], y.shape[0] + 1),
        "b 70 f",
        "b 1 f",
        "t f",
    ),
    "bucketize": (lambda x, v: torch.bucketize(v, x.cumsum(-1), right=True), "s i", "t i"),
    "searchsorted": (lambda x, v: torch.searchsorted(x.cumsum(-1), v, right=True), "s i", "t i"),
    "merge-index": (lambda x, i: x.reshape(-1, 3)[i % 2], "b s:4 3 f", "t i"),
    "select-scatter": (lambda x, y: ops.select_scatter(x, y.exp(), 2, -1).sum(1), "b s 3 f", "b s f"),
    "select-scatter-last": (lambda x, y: ops.select_scatter(x.cos(), y.exp(), 1, -1), "b s f", "b f"),
    "select-scatter-size": (lambda x, y, z: ops.select_scatter(x.cos(), y.exp(), 1, z.shape[0]), "b 6 f", "b f", "t f"),
    "select-scatter-padded": (lambda x, y: ops.select_scatter(x, y.exp(), 1, 0).sum(1), "b s f", "b f"),
    "unsafe-index": (lambda x, i: ops._unsafe_index(x, [None, 3 - i]), "b 4 f", "s i"),
    "scatter-reduce": (lambda x, i, v: x.scatter_reduce(1, i, v + 9, "amax"), "b 4 f", "b s i", "b s f"),
    "scatter-mean": (lambda x, i, v: x.scatter_reduce(1, i, v, "mean", include_self=False), "b 4 f", "b s i", "b s f"),
    "index-fill": (lambda x, i: x.index_fill(1, 3 - i, 2.0), "b 4 f", "s i"),
    # One operand has a merged dim, another a plain one of the same length.
    "scatter-merged": (lambda i: torch.zeros(i.numel(), 4).scatter(1, i.flatten()[:, None], 1.0).sum(0), "b s i"),
    "scatter-merged-source": (
        lambda i, v: torch.zeros(4, v.numel()).scatter(0, i[:, None].expand(4, v.numel()), v.flatten().expand(4, -1)),
        "4 i",
        "b s f",
    ),
    "scatter-merged-index": (
        lambda x: (
            x.flatten(0, 1).scatter(1, torch.ones(x.shape[0] * x.shape[1], 1, dtype=torch.int64), 7.0).exp().sum(0)
        ),
        "b s 3 f",
    ),
    "index-add-merged": (
        lambda v, i: torch.zeros(4, v.shape[1] * v.shape[2]).index_add(0, i, v.cos().flatten(1)).view(4, *v.shape[1:]),
        "t b s f",
        "t i",
    ),
    "index-add-merged-index": (
        lambda v, i: torch.zeros(4).index_add(0, i.flatten(), torch.ones(i.numel())),
        "2 f",
        "b s i",
    ),
    "index-put-merged": (
        lambda v: (
            torch.zeros(v[..., 0].numel(), 2)
            .index_put((torch.arange(v[..., 0].numel()),), v.flatten(0, 1))
            .view(v.shape)
        ),
        "b s 2 f",
    ),
    "index-put-merged-beside": (
        lambda v, i: torch.zeros(4, v[0].numel()).index_put((i,), v.flatten(1), accumulate=True).sum(1),
        "t b s f",
        "t i",
    ),
}
# The op reaches its rule whole, as on a target that registers it.
WHOLE: dict[str, tuple[Any, ...]] = {}


@pytest.mark.parametrize("name", [*CASES, *WHOLE])
def test_every_split_of_valid_and_pad(name: str, brute_force: Callable[..., set[Any]]) -> None:
    brute_force(*(CASES.get(name) or WHOLE[name]), composites=name in WHOLE)


@pytest.mark.sweep
def test_every_rule_has_a_case(brute_force: Callable[..., set[Any]]) -> None:
    met = set().union(*(brute_force(*case, composites=name in WHOLE) for name, case in {**CASES, **WHOLE}.items()))
    table = (
        *indexing.RULES,
        *writes.RULES,
    )
    assert sorted(str(op) for rule in table for op in rule.ops if op not in met) == []
