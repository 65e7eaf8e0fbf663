"""Rules for anti-aliased resizing: each output is a weighted sum of inputs, so each dim is one product with a matrix of weights.

The weights depend on sizes only; they are computed on the device in float32, `[output, input]` per dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, fx

from gaudicc.nodes import val
from gaudicc.pipeline import Numerics
from gaudicc.rules.rule import Rule

aten = torch.ops.aten
FIXED_POINT = "eager resizes bytes in fixed point, which rounds otherwise than its parts do"
CAST_FIRST = "cast to float32 before it, and round behind it"
_RESIZES = (
    aten.upsample_bilinear2d.default, aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.default,
    aten.upsample_bicubic2d.vec, aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec,
)  # fmt: skip


def in_fixed_point(node: fx.Node) -> bool:
    """Whether a call resizes bytes, for which eager has kernels that no parts in floats or integers agree with."""
    return node.target in _RESIZES and val(node).dtype == torch.uint8


def resample(
    kernel: Callable[[Tensor], Tensor],
    radius: int,
    x: Tensor,
    output_size: Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> Tensor:
    """Resizes the last two dims.

    Args:
        kernel: the weight of a distance.
        radius: of the kernel, in outputs when shrinking and in inputs when growing.
        x: `[batch, channels, height, width]`.
        output_size: height and width.
        align_corners: whether the centres of the corners coincide.
        scales_h: output over input height, if it is not that of the sizes.
        scales_w: the same of the width.
    """
    down = weights(kernel, radius, x.shape[-2], output_size[0], align_corners, scales_h, x)
    across = weights(kernel, radius, x.shape[-1], output_size[1], align_corners, scales_w, x)
    return torch.matmul(down, torch.matmul(x, aten.transpose.int(across, 0, 1)))


def weights(
    kernel: Callable[[Tensor], Tensor],
    radius: int,
    size: int,
    wanted: int,
    align_corners: bool,
    given: float | None,
    like: Tensor,
) -> Tensor:
    """The matrix `[wanted, size]`, in the dtype of `like`; each row sums to 1."""
    scale = _scale(size, wanted, align_corners, given)
    stretch = max(scale, 1.0)
    line = partial(aten.arange.start, 0, dtype=torch.float32, device=like.device)
    centre = aten.unsqueeze(aten.mul.Tensor(aten.add.Tensor(line(wanted), 0.5), scale), 1)
    first = aten.clamp(aten.trunc(aten.add.Tensor(centre, 0.5 - radius * stretch)), 0)
    last = aten.clamp(aten.trunc(aten.add.Tensor(centre, 0.5 + radius * stretch)), None, size)
    column = aten.unsqueeze(line(size), 0)
    inside = aten.logical_and(aten.ge.Tensor(column, first), aten.lt.Tensor(column, last))
    distance = aten.mul.Tensor(aten.sub.Tensor(aten.add.Tensor(column, 0.5), centre), 1 / stretch)
    weight = aten.where.self(inside, kernel(aten.abs(distance)), aten.full([], 0.0, device=like.device))
    weight = aten.div.Tensor(weight, aten.sum.dim_IntList(weight, [1], True))
    result: Tensor = aten._to_copy(weight, dtype=like.dtype)
    return result


def _scale(size: int, wanted: int, align_corners: bool, given: float | None) -> float:
    """Inputs per output."""
    if align_corners:
        return (size - 1) / (wanted - 1) if wanted > 1 else 0.0
    return 1 / given if given else size / wanted


def linear(distance: Tensor) -> Tensor:
    """`1 - d` up to 1."""
    result: Tensor = aten.clamp(aten.add.Tensor(aten.mul.Tensor(distance, -1), 1), 0)
    return result


def cubic(distance: Tensor) -> Tensor:
    """Keys' cubic with a = -0.5, as eager has it with anti-aliasing."""
    a = -0.5
    near = _horner(distance, (a + 2, -(a + 3), 0.0, 1.0))
    far = _horner(distance, (a, -5 * a, 8 * a, -4 * a))
    zero = aten.full([], 0.0, device=distance.device)
    result: Tensor = aten.where.self(
        aten.lt.Scalar(distance, 1), near, aten.where.self(aten.lt.Scalar(distance, 2), far, zero)
    )
    return result


def _horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    total = aten.mul.Tensor(x, coefficients[0])
    for coefficient in coefficients[1:-1]:
        total = aten.mul.Tensor(aten.add.Tensor(total, coefficient), x)
    result: Tensor = aten.add.Tensor(total, coefficients[-1])
    return result


def _wide_floats(x: Tensor, output_size: Sequence[int], *args: object) -> str | None:
    if not x.dtype.is_floating_point:
        return "its weights are no integers"
    if 1 in (x.shape[-1], output_size[1]):
        return "of images one column wide eager repeats the first row (torch 2.13), which is not followed here"
    return None if x.numel() and 0 not in output_size else "it is empty"


RULES = (
    Rule(
        "bilinear-anti-aliased", (aten._upsample_bilinear2d_aa.default,), partial(resample, linear, 1), check=_wide_floats,
        numerics=Numerics.ROUNDING, cost="two matrix products; two matrices of weights, output by input size",
    ),
    Rule(
        "bicubic-anti-aliased", (aten._upsample_bicubic2d_aa.default,), partial(resample, cubic, 2), check=_wide_floats,
        numerics=Numerics.ROUNDING, cost="two matrix products; two matrices of weights, output by input size",
    ),
)  # fmt: skip
