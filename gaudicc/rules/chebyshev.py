"""Functions of one float32 variable that the device lacks, as Chebyshev polynomials by pieces.

No coefficient is written down: each is computed once, when this module is loaded, from PyTorch's own float64 function, by
interpolation at Chebyshev points; terms below float32's precision are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

aten = torch.ops.aten
_POINTS = 64
_PRECISION = 1e-7  # relative to the largest coefficient


@dataclass(frozen=True, slots=True)
class Piece:
    """A polynomial on an interval.

    Attributes:
        low: where the interval begins.
        high: where it ends.
        coefficients: of the Chebyshev polynomials of degree 0, 1, ...
    """

    low: float
    high: float
    coefficients: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """The polynomial at x, by Clenshaw's recurrence; x outside is clamped to the interval."""
        inside = aten.clamp(x, self.low, self.high)
        scaled = aten.mul.Tensor(aten.add.Tensor(inside, -self.low), 4 / (self.high - self.low))
        twice = aten.add.Tensor(scaled, -2.0)
        last, before = aten.full_like(x, self.coefficients[-1]), aten.full_like(x, 0.0)
        for coefficient in reversed(self.coefficients[1:-1]):
            step = aten.sub.Tensor(aten.mul.Tensor(twice, last), before)
            last, before = aten.add.Tensor(step, coefficient), last
        half = aten.mul.Tensor(aten.mul.Tensor(twice, last), 0.5)
        result: Tensor = aten.add.Tensor(aten.sub.Tensor(half, before), self.coefficients[0])
        return result


def piece(function: Callable[[Tensor], Tensor], low: float, high: float) -> Piece:
    """Interpolates a float64 function on an interval."""
    angles = (torch.arange(_POINTS, dtype=torch.float64) + 0.5) * (math.pi / _POINTS)
    values = function((torch.cos(angles) + 1) * ((high - low) / 2) + low)
    waves = torch.cos(torch.arange(_POINTS, dtype=torch.float64)[:, None] * angles)
    coefficients = (waves @ values) * (2 / _POINTS)
    coefficients[0] /= 2
    small = coefficients.abs() < _PRECISION * coefficients.abs().max()
    count = int((~small).nonzero().max()) + 1
    return Piece(low, high, tuple(coefficients[: max(count, 2)].tolist()))


def choose(conditions: Sequence[tuple[Tensor, Tensor]], otherwise: Tensor) -> Tensor:
    """The value of the first condition that holds, entry by entry."""
    for condition, value in reversed(conditions):
        otherwise = aten.where.self(condition, value, otherwise)
    return otherwise


def constant(like: Tensor, value: float) -> Tensor:
    """A scalar tensor in the dtype of `like`."""
    result: Tensor = aten.full([], value, dtype=like.dtype, device=like.device)
    return result
