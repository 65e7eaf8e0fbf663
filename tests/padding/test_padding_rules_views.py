"""Rules of views, factories and ops that count positions, against brute force (see conftest.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gaudicc.padding.rules import factories, pixels, positions, strides, views

ops = torch.ops.aten

CASES: dict[str, tuple[Any, ...]] = {
    "flip": (lambda x: x.flip(0, 1), "b s 2 f"),
    "flip-static": (lambda x: x.flip(1, 2), "b s 2 f"),
    "roll": (lambda x: x.roll(2, 1), "b s f"),
    "roll-back": (lambda x: x.roll((-1, 1), (1, 2)), "b s 3 f"),
    "cat": (lambda x, y: torch.cat([x, y], 1), "b s f", "b t f"),
    "cat-three": (lambda x, y: torch.cat([x, y, x.neg(), y.new_ones(y.shape[0], 2)], 1), "b s f", "b t f"),
    "cat-cls": (lambda x, y: torch.cat([y, x], 1), "b s f", "b 2 f"),
    "cat-sum": (lambda x, y: torch.cat([x + 1, y + 1], 1).sum(1), "b s f", "b t f"),
    "cat-split-view": (lambda x: torch.cat([x, x + 1], 1).view(x.shape[0], 2, -1), "b s f"),
    "stack": (lambda x, y: torch.stack([x, y], 1), "b s f", "b s f"),
    "last": (lambda x: x[:, -1], "b s f"),
    "strided-cut-short": (lambda x: x[:, 1:-1:3].sum(1), "b s f"),
    "strided-up-to": (lambda x: x[:, :3:2].sum(1), "b s f"),
    "last-six": (lambda x: x[:, -6:] + 1, "b s f"),
    "last-six-of-more": (lambda x: torch.cat([x.exp(), x[:, :1]], 1)[:, -3:].sum(1), "b s:2 f"),
    "last-two": (lambda x: x[:, -2:], "b s:4 f"),
    "not-last": (lambda x: x[:, :-1], "b s:4 f"),
    "shift-mean": (lambda x: (x[:, 1:] - x[:, :-1]).sum(1), "b s:4 f"),
    "strided": (lambda x: x[:, ::2].sum(1), "b s:4 f"),
    "strided-from-one": (lambda x: x[:, 1::2], "b s:4 f"),
    "select-size": (lambda x: x[:, x.shape[1] - 1], "b s f"),
    "select-first": (lambda x: x[:, 0] + 1, "b s f"),
    "slice-to-other": (lambda x, y: (x[:, : y.shape[1]] + y).sum(1), "b 70 f", "b s f"),
    "slice-from-other": (lambda x, y: (x[:, -y.shape[1] :] + y).cos().sum(1), "b 70 f", "b s f"),
    "slice-first": (lambda x: x[:, :2].sum(1), "b s:4 f"),
    "diff": (lambda x: x.diff(dim=1), "b s:4 f"),
    "windows": (lambda x: x.unfold(1, 3, 2).sum(-1), "b s:5 f"),
    "windows-sum": (lambda x: x.unfold(1, 2, 1).sum(1), "b s:4 f"),
    "pad-right": (lambda x: F.pad(x + 1, (0, 2), value=7.0), "b s f"),
    "pad-both-sum": (lambda x: F.pad(x + 1, (1, 1)).sum(1), "b s f"),
    "pad-where-two-are-pad": (lambda x: F.pad(x.tril(), (0, 2)).sum(0), "b s f"),
    "pad-where-two-are-pad-by-size": (lambda x: F.pad(x.tril(), (0, 8 - x.shape[1] % 8)).sum(0), "b s f"),
    "pad-by-sizes": (lambda x: F.pad(x, (x.shape[1], 1)), "b s f"),
    "pad-reflect": (lambda x: F.pad(x.cos(), (1, 2), mode="reflect").sum(2), "2 b s:3 f"),
    "pad-reflect-2d": (lambda x: F.pad(x.cos(), (1, 0, 0, 2), mode="reflect"), "2 b:3 s:3 f"),
    "pad-reflect-others": (lambda x: F.pad(x.cos(), (1, 2), mode="reflect").sum(0), "b 2 4 f"),
    "pad-replicate": (lambda x: F.pad(x.cos(), (2, 3), mode="replicate").sum(2), "2 b s f"),
    "pad-left": (lambda x: F.pad(x + 1, (2, 0)), "b s f"),
    "pad-to-multiple": (lambda x: F.pad(x + 1, (0, -x.shape[1] % 4), value=3.0).sum(1), "b s f"),
    "pad-into-blocks": (
        lambda x: F.pad(x + 1, (0, (4 - x.shape[1] % 4) % 4)).view(x.shape[0], -1, 4).exp().sum(1),
        "b s f",
    ),
    "pad-or-cut": (lambda x: F.pad(x + 1, (0, 2 - x.shape[1] % 4)).cos().sum(1), "b s f"),
    "pad-up-to": (lambda x: F.pad(x + 1, (9 - x.shape[1], 0), value=2.0).cos(), "b s f"),
    "pad-up-to-or-cut": (lambda x: F.pad(x + 1, (2 - x.shape[1], 0)).cos(), "b s f"),
    "pad-before-by-size": (lambda x, y: F.pad(x + 1, (y.shape[0], 1), value=3.0).cos().sum(1), "b 3 f", "s f"),
    "pad-before-and-cut": (lambda x, y: F.pad(x + 1, (y.shape[0], -1, 1, 0)).cos().sum(1), "b s f", "s f"),
    "pad-by-size": (lambda x, y: F.pad(x + 1, (1, y.shape[0])).cos().sum(1), "b 3 f", "s f"),
    "merge-linear-split": (
        lambda x, w: F.linear(x.reshape(-1, 4), w).view(x.shape[0], -1, 3).sum(1),
        "b s 4 f",
        "3 4 f",
    ),
    "merge-add-arange": (lambda x: x.reshape(-1) + torch.arange(x.numel()), "b s f"),
    "merge-argmax": (lambda x: x.reshape(-1).argmax(0), "b s f"),
    "swap-view": (lambda x: x.reshape(x.shape[1], x.shape[0]), "b s f"),
    "repeat": (lambda x: x.repeat(1, 2), "b s f"),
    "repeat-interleave": (lambda x: x.repeat_interleave(3, 1).sum(1), "b s f"),
    "expand": (lambda x, y: x[:, None].expand(-1, y.shape[0], -1).sum(1), "b 3 f", "s f"),
    "tril": (lambda x, y: (x[:, None] * y[None]).tril().sum(1), "s f", "t f"),
    "triu": (lambda x: (x[:, :, None] + x[:, None, :]).triu(1), "b s f"),
    "arange-from-size": (lambda x, y: torch.arange(x.shape[0], x.shape[0] + y.shape[0]) * 2, "s f", "t f"),
    "arange-down-from-size": (lambda x: torch.arange(x.shape[0], -x.shape[0], -1) * 2, "s f"),
    "full-of-size": (lambda x: torch.full((x.shape[0], 2), x.shape[1], dtype=torch.float32), "b s f"),
    "full-like-of-size": (lambda x, y: (torch.full_like(x, y.shape[0]) * x).sum(1), "b s f", "t f"),
    "fill-with-size": (lambda x: (ops.fill.Scalar(x.exp(), x.shape[1]) * x).sum(1), "b s f"),
    "eye": (lambda x: (torch.eye(x.shape[1]) + x[:, None]).sum(1), "b s f"),
    "eye-wide": (lambda x: (torch.eye(x.shape[1], 3) * x[..., None]).sum(1), "b s f"),
    "eye-half": (lambda x: torch.eye(3, x.shape[0]).sum(1), "s f"),
    "eye-rows": (lambda x: torch.eye(x.shape[0]).sum(1), "s f"),
    "fill": (lambda x: (ops.fill.Scalar(x.exp(), 2.0) * x).sum(1), "b s f"),
    "fill-tensor": (lambda x, y: ops.fill.Tensor(x.exp(), y).sum(1), "b s f", "f"),
    "factories": (lambda x: x + torch.zeros(x.shape[1]) + torch.ones(x.shape[0], 1) + x.new_zeros(x.shape), "b s f"),
    "factories-like": (lambda x: (x + ops.ones_like(x) + ops.full_like(x, 2.0) + ops.zeros_like(x)).sum(1), "b s f"),
    "new-full": (lambda x: (x + x.new_full((x.shape[0], x.shape[1]), 3.0)).sum(1), "b s f"),
    "empty": (lambda x: torch.where(x == x, x, ops.empty_like(x) + torch.empty(x.shape[0], 1)), "b s f"),
    "new-empty": (lambda x: torch.where(x == x, x, x.new_empty(x.shape)).sum(1), "b s f"),
    "arange-step": (lambda x: torch.arange(0, 2 * x.shape[0], 2), "b s f"),
    "split": (lambda x: x.split(2, 2)[1].sum(1), "b s 4 f"),
    "split-sizes": (lambda x: x.split([1, 3], 2)[1].sum(1), "b s 4 f"),
    "unsafe-split": (lambda x: torch.unsafe_split(x, 2, 2)[1].sum(1), "b s 4 f"),
    "unsafe-split-sizes": (lambda x: torch.unsafe_split_with_sizes(x, [1, 3], 2)[1].sum(1), "b s 4 f"),
    "chunk": (lambda x: ops.chunk(x, 2, 2)[1].sum(1), "b s 4 f"),
    "split-padded": (lambda x: torch.cat([x + 1, x + 2, x + 3], 1).chunk(3, 1)[1], "b s f"),
    "split-padded-sum": (
        lambda x, y: torch.cat([x, y], 1).split([x.shape[1], y.shape[1]], 1)[1].sum(1),
        "b s f",
        "b t f",
    ),
    "unbind": (lambda x: x.unbind(2)[1].sum(1), "b s 3 f"),
    "complex": (lambda x: torch.view_as_real(torch.view_as_complex(x) * torch.view_as_complex(x)).sum(1), "b s 2 f"),
    "squeeze-all": (lambda x: ops.squeeze(x[:, :, None] + 1).sum(1), "3 s:2 f"),
    "squeeze-dims": (lambda x: ops.squeeze.dims(x[:, None, :, None] + 1, [1, 3]).sum(1), "b s f"),
    "transpose": (lambda x: ops.transpose.int(x + 1, 1, 2).sum(2), "b s 3 f"),
    "unsafe-view": (lambda x: ops._unsafe_view(x, [x.shape[0], x.shape[1] * 2]).sum(1), "b s 2 f"),
    "same-strides": (lambda x: F.adaptive_avg_pool1d(x.mT, 1) + 1, "b s 3 f"),
    "diagonal": (lambda x, y: torch.diagonal(x.exp()[:, :, None] + y.exp(), dim1=1, dim2=2).sum(1), "b s f", "b 1 s f"),
    "diagonal-unpadded": (lambda x: torch.diagonal(x.exp(), 1, 1, 2).sum(0), "s 4 3 f"),
    "pixel-shuffle": (lambda x: (F.pixel_shuffle(x + 1, 2) * 2).cos().sum(-1), "b 4 s t f"),
    "pixel-shuffle-view": (lambda x: F.pixel_shuffle(x, 3).sum((1, 2)), "s 9 t 2 f"),
    "pixel-unshuffle": (lambda x: F.pixel_unshuffle(F.pixel_shuffle(x + 1, 2), 2).cos().sum(-1), "b 4 s t f"),
    "pixel-unshuffle-padded": (
        lambda x: F.pixel_unshuffle(F.pad(x + 1, (0, 0, 0, x.shape[2] % 2)), 2).cos().sum(2),
        "2 3 s 4 f",
    ),
    "channel-shuffle": (lambda x: (F.channel_shuffle(x.exp(), 2) * 2).sum(2), "b 4 s f"),
    "scalar-of-size": (lambda x: x + ops.scalar_tensor(x.shape[1]), "b s f"),
}
# The op reaches its rule whole, as on a target that registers it.
WHOLE: dict[str, tuple[Any, ...]] = {
    "reshape": (lambda x: ops.reshape(x, [x.shape[0], -1]).sum(1), "b s 3 f"),
    "reshape-copy": (lambda x: ops._reshape_copy(x, [x.shape[0], x.shape[1] * 3]).sum(1), "b s 3 f"),
    "t": (lambda x: ops.t(x.exp()).sum(0), "b s f"),
    "mT": (lambda x: ops.mT(x.exp()).sum(1), "b s 3 f"),
    "numpy-T": (lambda x: ops.numpy_T(x.exp()).sum(0), "b s f"),
    "swapaxes": (lambda x: ops.swapaxes(x.exp(), 0, 1).sum(0), "b s f"),
}


@pytest.mark.parametrize("name", [*CASES, *WHOLE])
def test_every_split_of_valid_and_pad(name: str, brute_force: Callable[..., set[Any]]) -> None:
    brute_force(*(CASES.get(name) or WHOLE[name]), composites=name in WHOLE)


@pytest.mark.sweep
def test_every_rule_has_a_case(brute_force: Callable[..., set[Any]]) -> None:
    met = set().union(*(brute_force(*case, composites=name in WHOLE) for name, case in {**CASES, **WHOLE}.items()))
    table = (
        *views.RULES,
        *factories.RULES,
        *pixels.RULES,
        *strides.RULES,
        *positions.RULES,
    )
    assert sorted(str(op) for rule in table for op in rule.ops if op not in met) == []
