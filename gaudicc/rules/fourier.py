"""Fourier transforms of static size on pairs of reals: one product with a matrix of cosines and sines per dim.

Exact up to rounding: the angle of entry (j, k) is that of `j * k mod n`, computed in integers. A matrix has `n * n` entries, so a
long transform is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gaudicc.rules.complex_pairs import Pair, pair

aten = torch.ops.aten
LONGEST = 4096


def _waves(rows: int, columns: int, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[rows, columns]` of `2 pi j k / size`.

    Raises:
        NotImplementedError: the transform is too long for a matrix.
    """
    if size > LONGEST:
        raise NotImplementedError(f"a transform of {size} points needs a matrix of {size * size} entries")
    line = partial(aten.arange.start, 0, dtype=torch.int32, device=like.device)
    turns = aten.remainder.Scalar(aten.mul.Tensor(aten.unsqueeze(line(rows), 1), line(columns)), size)
    angle = aten.mul.Tensor(aten._to_copy(turns, dtype=torch.float32), 2 * math.pi / size)
    return aten._to_copy(torch.cos(angle), dtype=like.dtype), aten._to_copy(torch.sin(angle), dtype=like.dtype)


def _scale(sizes: Sequence[int], normalization: int) -> float:
    """1, 1 / sqrt(n) or 1 / n, as PyTorch numbers them."""
    count = math.prod(sizes)
    return (1.0, 1 / math.sqrt(count or 1), 1 / (count or 1))[normalization]


def _one_dim(real: Tensor, imag: Tensor | None, dim: int, kept: int, sign: int) -> tuple[Tensor, Tensor]:
    """The first `kept` points of the transform along `dim` with kernel `exp(sign i angle)`."""
    size = real.shape[dim]
    cosine, sine = _waves(size, kept, size, real)
    real = real.transpose(dim, -1)
    if imag is None:
        parts = real @ cosine, (real @ sine) * sign
    else:
        imag = imag.transpose(dim, -1)
        parts = real @ cosine - (imag @ sine) * sign, (real @ sine) * sign + imag @ cosine
    return parts[0].transpose(dim, -1), parts[1].transpose(dim, -1)


def real_to_complex(x: Tensor, dims: Sequence[int], normalization: int, onesided: bool) -> Pair:
    """`_fft_r2c`: the last of the dims first, half of it if one-sided."""
    last = dims[-1] % x.dim()
    size = x.shape[last]
    real, imag = _one_dim(x, None, last, size // 2 + 1 if onesided else size, -1)
    for dim in dims[:-1]:
        real, imag = _one_dim(real, imag, dim % x.dim(), x.shape[dim], -1)
    scale = _scale([x.shape[dim] for dim in dims], normalization)
    return pair(real * scale, imag * scale)


def complex_to_complex(x: Pair, dims: Sequence[int], normalization: int, forward: bool) -> Pair:
    """`_fft_c2c`."""
    real, imag = x.real, x.imag
    for dim in dims:
        at = x.dim(dim)
        real, imag = _one_dim(real, imag, at, real.shape[at], -1 if forward else 1)
    scale = _scale([real.shape[x.dim(dim)] for dim in dims], normalization)
    return pair(real * scale, imag * scale)


def complex_to_real(x: Pair, dims: Sequence[int], normalization: int, last_dim_size: int) -> Tensor:
    """`_fft_c2r`: the half that is given stands for the other too, but for its ends."""
    real, imag = x.real, x.imag
    for dim in dims[:-1]:
        at = x.dim(dim)
        real, imag = _one_dim(real, imag, at, real.shape[at], 1)
    last, size = x.dim(dims[-1]), last_dim_size
    given = size // 2 + 1
    cosine, sine = _waves(given, size, size, real)
    place = aten.arange.start(0, given, dtype=torch.int32, device=real.device)
    ends = place == 0
    ends = ends | (place == size // 2) if size % 2 == 0 else ends
    weight = torch.where(ends, 1.0, 2.0).to(real.dtype)
    real, imag = (part.narrow(last, 0, given).transpose(last, -1) * weight for part in (real, imag))
    scale = _scale([*(x.real.shape[x.dim(dim)] for dim in dims[:-1]), size], normalization)
    result: Tensor = ((real @ cosine - imag @ sine) * scale).transpose(last, -1)
    return result


def _padded(x: Pair, pad: Sequence[int], value: float = 0) -> Pair:
    if value:
        raise NotImplementedError("the padding is not zero")
    return Pair(aten.constant_pad_nd(x.parts, [0, 0, *pad], 0))


RULES: dict[Any, Callable[..., Pair | Tensor]] = {
    aten._fft_r2c.default: real_to_complex,
    aten._fft_c2c.default: complex_to_complex,
    aten._fft_c2r.default: complex_to_real,
    aten.constant_pad_nd.default: _padded,
}
"""Op -> its form on pairs of reals."""
