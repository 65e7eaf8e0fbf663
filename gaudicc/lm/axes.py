"""LM inference: the physical sizes that steps are recorded for, exponential over batch, queries and context."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from gaudicc.lm.state import Limits

_FEW_QUERIES = (16, 64)
_FULL_QUERIES = 128
_SMALLEST_CONTEXT = 64


@dataclass(frozen=True, slots=True)
class Axes:
    """Sizes in ascending order; the last of each holds everything.

    Attributes:
        batch: rows of a step.
        queries: tokens of a row in a prefill.
        context: tokens that a step reads.
    """

    batch: tuple[int, ...]
    queries: tuple[int, ...]
    context: tuple[int, ...]


def exponential(limits: Limits) -> Axes:
    """Sizes up to the limits: batch and context double.

    Queries, which cost most when they are pads, go in half steps: 16, 64, 128, 192, 256, 384, 512, 768, ...
    """
    halves = [size for power in _doubling(_FULL_QUERIES, limits.context) for size in (power, power * 3 // 2)]
    queries = sorted(size for size in {*_FEW_QUERIES, *halves} if size < limits.context)
    return Axes(
        _doubling(1, limits.slots),
        (*queries, limits.context),
        _doubling(min(_SMALLEST_CONTEXT, limits.context), limits.context),
    )


def _doubling(low: int, high: int) -> tuple[int, ...]:
    sizes = [low]
    while sizes[-1] < high:
        sizes.append(min(2 * sizes[-1], high))
    return tuple(sizes)


def smallest(sizes: tuple[int, ...], wanted: int) -> int:
    """The smallest size that holds `wanted`, which the last one does."""
    return sizes[bisect_left(sizes, wanted)]
