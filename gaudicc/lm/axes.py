"""LM inference: the physical sizes that steps are recorded for; `exp` over batch, queries and context."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from gaudicc.lm.state import Limits

_SMALLEST_QUERIES = 16
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
    """Doubling sizes up to the limits."""
    return Axes(
        _doubling(1, limits.slots),
        _doubling(min(_SMALLEST_QUERIES, limits.context), limits.context),
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
