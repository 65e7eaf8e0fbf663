"""Rules of matrix products, attention, convolutions, pooling and norms, against brute force (see conftest.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gaudicc.kernels import grouped_linear, rms_norm
from gaudicc.padding.rules import contractions, convolutions, experts, norms, transforms

ops = torch.ops.aten

CASES: dict[str, tuple[Any, ...]] = {
    "distances": (lambda x, y: torch.cdist(x, y).amin(2), "b s 3 f", "b t 3 f"),
    "distances-features": (lambda x, y: torch.cdist(x.exp(), y.exp(), p=1.0), "2 3 s f", "4 s f"),
    "matmul": (lambda x, y: x.exp() @ y.exp(), "b s f", "s 3 f"),
    "matmul-zero-one-side": (lambda x, y: x @ y.exp(), "b s f", "s 3 f"),
    "matmul-batched": (lambda x, y: x.exp() @ y.transpose(1, 2), "b 2 s f", "b t s f"),
    "bmm": (lambda x, y: torch.bmm(x.rsqrt(), y.rsqrt()), "b 3 s f", "b s 2 f"),
    "linear": (lambda x, w: F.linear(x, w), "b s 4 f", "3 4 f"),
    "addmm": (lambda x, y, z: torch.addmm(z, x.exp(), y.exp()), "b s f", "s 3 f", "3 f"),
    "sdpa": (
        lambda q, k, v: F.scaled_dot_product_attention(q.cos(), k.exp(), v.exp()),
        "b 2 s 4 f",
        "b 2 t 4 f",
        "b 2 t 4 f",
    ),
    "layer-norm": (lambda x: F.layer_norm(x, (4,)), "b s 4 f"),
    "group-norm": (lambda x: F.group_norm(x, 2, eps=1e-3), "b 4 s:4 f"),
    "conv1d": (lambda x, w: F.conv1d(x.cos(), w, padding=1), "b 2 s f", "3 2 3 f"),
    "conv1d-stride": (lambda x, w: F.conv1d(F.conv1d(x, w, padding=1, stride=2), w, padding=1), "b 3 s:3 f", "3 3 3 f"),
    "conv1d-valid": (lambda x, w: F.conv1d(x.cos(), w), "b 2 s:4 f", "3 2 3 f"),
    "conv2d": (lambda x, w: F.conv2d(x.cos(), w, padding=1), "1 2 s t f", "3 2 3 3 f"),
    "conv-transpose": (lambda x, w: F.conv_transpose1d(x.cos(), w, stride=2), "b 2 s f", "2 3 3 f"),
    "max-pool2d": (lambda x: F.max_pool2d(x - 9, 2, 1, padding=1), "1 2 s:4 t f"),
    "avg-pool": (lambda x: F.avg_pool1d(x.cos(), 3, 2, padding=1), "b 2 s:4 f"),
    "avg-pool-ceil": (lambda x: F.avg_pool1d(x.cos(), 2, 2, ceil_mode=True), "b 2 s f"),
    "avg-pool-ceil-plane": (lambda x: F.avg_pool2d(x.cos(), (3, 1), (2, 1), (1, 0), ceil_mode=True), "1 2 s t f"),
    "avg-pool-uncounted": (lambda x: F.avg_pool2d(x.cos(), 3, 2, 1, count_include_pad=False), "1 2 s t f"),
    "avg-pool-valid": (lambda x: F.avg_pool2d(x.cos(), (2, 1), 1), "1 2 s:4 t f"),
    "windows": (lambda x: F.unfold(x.cos(), (3, 1), padding=(1, 0)), "b 2 s 1 f"),
    "windows-stride": (lambda x: F.unfold(x.cos(), (2, 2), padding=(0, 1), stride=(1, 2)).sum(2), "2 3 s:4 t f"),
    "fft": (lambda x: torch.fft.fftn(x.cos().to(torch.complex64), dim=(1, 2)).real, "b s 4 f"),
    "fft-static": (lambda x: torch.fft.fft(x.cos()).real.sum(1), "b s 4 f"),
    "fft-real": (lambda x: torch.fft.irfft(torch.fft.rfft(x.cos()), 4).sum(1), "b s 4 f"),
    "fft-back": (lambda x: torch.view_as_real(torch.fft.ifft(torch.complex(x, x.cos()), dim=1)), "b s 2 f"),
    "fft-ortho": (lambda x: torch.fft.fft2(torch.complex(x, x.cos()), norm="ortho").abs(), "s t f"),
    "sdpa-heads": (
        lambda q, k: F.scaled_dot_product_attention(q.cos(), k.exp(), k.exp()),
        "b s 3 4 f",
        "b s 5 4 f",
    ),
    "sdpa-heads-mask": (
        lambda q, k, m: F.scaled_dot_product_attention(q.cos(), k.exp(), k.exp(), m),
        "b s 3 4 f",
        "b s t 4 f",
        "b s 3 t m",
    ),
    "sdpa-merged-heads": (
        lambda q, k: F.scaled_dot_product_attention(
            q.flatten(1, 2).cos(), k.flatten(1, 2).exp(), k.flatten(1, 2).exp()
        ),
        "2 s t 3 4 f",
        "2 s t 5 4 f",
    ),
    "mm": (lambda x, y: x.exp().mm(y.exp()), "b s f", "s t f"),
    "mv": (lambda x, y: x.exp().mv(y.exp()), "b s f", "s f"),
    "dot": (lambda x, y: x.exp().dot(y.exp()), "s f", "s f"),
    "baddbmm": (lambda x, y, z: torch.baddbmm(z, x.exp(), y.exp()), "b 3 s f", "b s 2 f", "b 3 2 f"),
    "baddbmm-merged": (
        lambda x, y: torch.baddbmm(
            torch.arange(x.shape[0] * x.shape[1])[:, None, None].float(), x.flatten(0, 1).exp(), y.flatten(0, 1).exp()
        ),
        "b t 2 s f",
        "b t s 3 f",
    ),
    "experts": (lambda x, w, i: grouped_linear(x.exp(), w, 3 - i), "s 3 f", "4 5 3 f", "s i"),
    "experts-merged": (
        lambda x, w, i: grouped_linear(x.flatten(0, 1).exp(), w, 3 - i.flatten()).unflatten(0, i.shape).cos(),
        "b s 3 f",
        "4 5 3 f",
        "b s i",
    ),
    "experts-of-repeated-rows": (
        lambda x, w, i: (
            grouped_linear(x[:, None].expand(-1, 2, -1).reshape(-1, 3), w, (3 - i).flatten()).view(-1, 2, 5).sum(1)
        ),
        "s 3 f",
        "4 5 3 f",
        "s 2 i",
    ),
    "rms-norm": (lambda x, w: rms_norm(x, w, 1e-5, False), "b s 4 f", "4 f"),
    "batch-norm": (
        lambda x, w: ops._native_batch_norm_legit_no_training(x, w, w, w, w * w, 0.1, 1e-5)[0],
        "b 4 s f",
        "4 f",
    ),
}
# The op reaches its rule whole, as on a target that registers it.
WHOLE: dict[str, tuple[Any, ...]] = {
    "conv1d-whole": (lambda x, w: ops.conv1d(x.cos(), w, None, [2], [1]), "b 2 s:3 f", "3 2 3 f"),
    "conv2d-whole": (lambda x, w: ops.conv2d(x.cos(), w, None, [1, 1], [1, 1]), "1 2 s t f", "3 2 3 3 f"),
    "conv3d-whole": (lambda x, w: ops.conv3d(x.cos(), w, None, [1] * 3, [1] * 3), "1 2 s t 2 f", "3 2 3 3 3 f"),
    "max-pool2d-whole": (lambda x: ops.max_pool2d(x - 9, [2, 2], [1, 1], [1, 1]), "1 2 s:4 t f"),
    "avg-pool1d-whole": (lambda x: ops.avg_pool1d(x.cos(), [3], [2], [1]), "b 2 s:4 f"),
    "layer-norm-whole": (lambda x: ops.layer_norm(x, [4]), "b s 4 f"),
    "rms-norm-whole": (lambda x: ops.rms_norm(x, [4]), "b s 4 f"),
    "group-norm-whole": (lambda x, w: ops.group_norm(x, 2, w, w, 1e-3), "b 4 s:4 f", "4 f"),
    "batch-norm-whole": (lambda x, w: ops.batch_norm(x, w, w, w, w * w, False, 0.1, 1e-5, False), "b 4 s f", "4 f"),
}


@pytest.mark.parametrize("name", [*CASES, *WHOLE])
def test_every_split_of_valid_and_pad(name: str, brute_force: Callable[..., set[Any]]) -> None:
    brute_force(*(CASES.get(name) or WHOLE[name]), composites=name in WHOLE)


@pytest.mark.sweep
def test_every_rule_has_a_case(brute_force: Callable[..., set[Any]]) -> None:
    met = set().union(*(brute_force(*case, composites=name in WHOLE) for name, case in {**CASES, **WHOLE}.items()))
    table = (
        *contractions.RULES,
        *experts.RULES,
        *convolutions.RULES,
        *norms.RULES,
        *transforms.RULES,
    )
    assert sorted(str(op) for rule in table for op in rule.ops if op not in met) == []
