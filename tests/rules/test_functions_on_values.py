"""Functions that compute, promote and cast as strangers do, through the whole pipeline, against eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from gaudicc.errors import UnsupportedOpError
from tests.rules.cases import Cases

case = Cases()
floats, integers = case.floats, case.integers


@case(floats(2, 6, 2, 8))
def complex_rope(x: Tensor) -> Any:
    f = 1.0 / 10000.0 ** (torch.arange(0, 8, 2)[:4].float() / 8)
    t = torch.arange(6).float()
    fr = torch.outer(t, f)
    c = torch.polar(torch.ones_like(fr), fr)
    xc = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(xc * c[None, :, None, :]).flatten(3).type_as(x)


@case(integers(-5, 5, 4, 3), floats(4, 3), integers(0, 2, 4, 3).bool())
def promo(i: Tensor, f: Tensor, b: Tensor) -> Any:
    return (
        i + f,
        i * b,
        b + 1,
        f * b,
        i / 2,
        i // 2,
        i % 3,
        -i,
        i**2,
        2 ** i.clamp(min=0),
        b.float() - i,
        ~b,
        i & 3,
        b ^ b,
        i > f,
        i == b,
        1 - i,
        1 - f,
    )


@case(floats(4, 4))
def f64(x: Tensor) -> Any:
    d = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    return (x * d.float(), x * 0.1, (x.double() * d).float())


@case(floats(2, 3, 4))
def alibi(x: Tensor) -> Any:
    s = torch.tensor([2 ** (-8 * (i + 1) / 4) for i in range(3)])
    b = s[:, None, None] * -(torch.arange(4)[None] - torch.arange(4)[:, None]).abs()
    return x[:, :, None] + b.tril()


@case(floats(4, 6), integers(0, 6, 4))
def gather_loss(scores: Tensor, t: Tensor) -> Any:
    return (
        -scores.log_softmax(-1).gather(1, t[:, None]).squeeze(1),
        functional.cross_entropy(scores, t),
        functional.nll_loss(scores.log_softmax(-1), t, ignore_index=2),
    )


@case(floats(8, 16))
def int8_quant(x: Tensor) -> Any:
    s = x.abs().amax(-1, keepdim=True) / 127
    q = torch.clamp(torch.round(x / s), -128, 127).to(torch.int8)
    return (q, q.float() * s, q.to(torch.int32).sum(), q.int() @ q.int().t())


@case(integers(0, 256, 4, 8).to(torch.uint8))
def int4_unpack(p: Tensor) -> Any:
    return torch.stack([(p & 15).to(torch.int8) - 8, (p >> 4).to(torch.int8) - 8], -1).reshape(4, 16)


@case(floats(4, 6))
def einsums(x: Tensor) -> Any:
    return (
        torch.einsum("ij,kj->ik", x, x),
        torch.einsum("ij,ij->i", x, x),
        torch.einsum("i...->...", x),
        torch.tensordot(x, x, dims=([0], [0])),
    )


@case(floats(3, 4))
def nan_inf(x: Tensor) -> Any:
    y = x / 0
    z = torch.where(y.isinf(), torch.nan, y)
    return (
        y,
        z.nan_to_num(1.0),
        torch.isnan(z).any(),
        z.nansum(),
        (x * float("inf")).clamp(-1, 1),
        torch.fmax(z, x),
        torch.maximum(z, x),
    )


@case(floats(2, 3, 8, 8))
def image(x: Tensor) -> Any:
    return (
        functional.interpolate(x, scale_factor=2),
        functional.interpolate(x, size=(5, 7), mode="bilinear", align_corners=False),
        functional.pixel_shuffle(x.repeat(1, 4, 1, 1), 2),
        functional.pad(x, (1, 2, 3, 0), mode="reflect"),
        functional.unfold(x, 3, padding=1),
        functional.adaptive_avg_pool2d(x, 3),
    )


@case(floats(3, 5))
def dtypes_out(x: Tensor) -> Any:
    return (
        x.half(),
        x.bfloat16(),
        x.int(),
        x.bool(),
        x.to(torch.int16),
        x.abs().to(torch.uint8),
        x.sign().long(),
        torch.finfo(x.dtype).min + x,
    )


@case(floats(3, 5).half())
def halves(x: Tensor) -> Any:
    return (
        x + 1,
        x.softmax(-1),
        x.sum(),
        x.mean(-1),
        x * torch.tensor(2.0),
        x.float().half(),
        torch.where(x > 0, x, torch.finfo(torch.float16).min),
    )


@case(floats(3, 5).bfloat16())
def bhalves(x: Tensor) -> Any:
    return (
        x + 1,
        x.softmax(-1),
        x.sum(),
        x * torch.tensor(2.0),
        x + torch.ones(5),
        x.float() @ x.float().t(),
        functional.gelu(x),
        functional.layer_norm(x, (5,)),
        x * torch.ones(5, dtype=torch.float64),
    )


@case(floats(4, 4))
def linalg(x: Tensor) -> Any:
    a = x @ x.t() + 4 * torch.eye(4)
    return (
        torch.linalg.cholesky(a),
        torch.linalg.inv(a),
        torch.linalg.solve(a, x),
        torch.det(a),
        torch.trace(a),
        a.diagonal(),
        torch.diag_embed(x),
        torch.block_diag(x, a),
        torch.linalg.norm(x),
    )


@case(floats(5, 3))
def dists(x: Tensor) -> Any:
    return (
        torch.cdist(x, x),
        functional.cosine_similarity(x[None], x[:, None], -1),
        functional.normalize(x, dim=-1),
        x.var(0),
        x.std(1),
        torch.quantile(x, 0.25, 0),
        x.logsumexp(0),
    )


@case(floats(3, 3), floats(3, 3))
def strange(x: Tensor, y: Tensor) -> Any:
    return (
        torch.where(x > 0),
        x.lerp(y, 0.3),
        torch.addcmul(x, x, y, value=2),
        x.copysign(y),
        torch.hypot(x, y),
        torch.atan2(x, y),
        x.fmod(0.7),
        x.remainder(-0.7),
        torch.floor_divide(x, y),
        x.frac(),
        torch.logaddexp(x, y),
        x.erf(),
        torch.special.expit(x),
        x.round(decimals=1),
    )


@case(floats(2, 3), integers(0, 3, 2, 3))
def ints_float_mix(x: Tensor, i: Tensor) -> Any:
    return (
        x[i[:, 0].clamp(max=1)],
        torch.cat([x, i], 0),
        torch.stack([x, i]),
        torch.where(i > 1, i, 0.5),
        torch.where(i > 1, i, 2),
        i.sum(),
        i.float().mean(),
        i.sum(dtype=torch.float32),
        torch.full((2,), i.shape[0]),
        i.clamp(0.5, 1.5),
        x.clamp(min=i),
    )


@case(floats(2, 3, 4))
def norms(x: Tensor) -> Any:
    v = x.pow(2).mean(-1, keepdim=True)
    return (
        x * torch.rsqrt(v + 1e-06),
        functional.group_norm(x, 3),
        functional.rms_norm(x, (4,)),
        functional.silu(x[..., :2]) * x[..., 2:],
        functional.softplus(x),
        functional.hardswish(x),
        functional.mish(x),
        x.norm(dim=1),
        functional.glu(x),
    )


@pytest.mark.parametrize("name", case.functions)
def test_as_in_eager(name: str, agrees: Callable[..., None]) -> None:
    function, inputs = case.functions[name]
    agrees(function, *inputs)


def values_and_vectors(x: Tensor) -> Any:
    return torch.linalg.svd(x)


def spectrum(x: Tensor) -> Any:
    return torch.fft.fft(x)


def incomplete(x: Tensor) -> Any:
    return torch.special.gammainc(x.abs(), x.abs() + 1)


def distinct_rows(x: Tensor) -> Any:
    return x.round().unique(dim=0)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (values_and_vectors, "aten::_linalg_svd"),
        (spectrum, "a result of the model is complex"),
        (incomplete, "aten::igamma"),
        (distinct_rows, "aten.unique_dim"),
    ],
)
def test_refused_by_name(function: Callable[..., Any], reason: str, agrees: Callable[..., None]) -> None:
    with pytest.raises(UnsupportedOpError) as refusal:
        agrees(function, torch.ones(3, 3))
    assert reason in refusal.value.what
    assert "test_functions_on_values.py" in str(refusal.value.where)
    assert refusal.value.hint
