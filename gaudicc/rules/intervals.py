"""Intervals of numbers: what is known of the values of a tensor, and what an op makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

INF = float("inf")


class Interval(NamedTuple):
    """All numbers from `low` to `high`, both included; NaN apart. Whole numbers stay exact, however large."""

    low: float
    high: float

    def within(self, other: Interval) -> bool:
        """Whether the other interval holds every number of this one."""
        return other.low <= self.low and self.high <= other.high

    def cut(self, other: Interval) -> Interval:
        """What both hold; the other where they have nothing in common."""
        low, high = max(self.low, other.low), min(self.high, other.high)
        return Interval(low, high) if low <= high else other


ALL = Interval(-INF, INF)
INT32 = Interval(-(2**31), 2**31 - 1)
FLAG = Interval(0, 1)


def exactly(number: float) -> Interval:
    """The interval of one number."""
    return Interval(number, number)


def hull(intervals: Iterable[Interval]) -> Interval:
    """The smallest interval that holds all of them."""
    found = list(intervals)
    return Interval(min(each.low for each in found), max(each.high for each in found)) if found else ALL


def add(a: Interval, b: Interval) -> Interval:
    """Of sums."""
    return Interval(a.low + b.low, a.high + b.high)


def negative(a: Interval) -> Interval:
    """Of negatives."""
    return Interval(-a.high, -a.low)


def multiply(a: Interval, b: Interval) -> Interval:
    """Of products; nothing times infinity is nothing."""
    ends = [x * y if x and y else 0 for x in a for y in b]
    return Interval(min(ends), max(ends))


def times(a: Interval, count: Interval) -> Interval:
    """Of sums of at most `count.high` entries, and of every beginning of them."""
    return hull((exactly(0), multiply(a, Interval(0, max(count.high, 0)))))


def magnitude(a: Interval) -> float:
    """The largest absolute value."""
    return max(abs(a.low), abs(a.high))


def absolute(a: Interval) -> Interval:
    """Of absolute values."""
    low = 0 if a.low <= 0 <= a.high else min(abs(a.low), abs(a.high))
    return Interval(low, magnitude(a))


def divide(a: Interval, b: Interval) -> Interval:
    """Of quotients; everything where the divisor may be nothing."""
    if b.low <= 0 <= b.high:
        return ALL
    return multiply(a, Interval(*sorted((1 / b.low, 1 / b.high))))


def divide_whole(a: Interval, b: Interval) -> Interval:
    """Of quotients of integers, rounded either way; torch raises where the divisor is nothing."""
    least = max(1, 0 if b.low <= 0 <= b.high else min(abs(b.low), abs(b.high)))
    largest = magnitude(a)
    down, up = (largest // least, -(-largest // least)) if largest < INF else (INF, INF)
    positive = (a.high > 0 and b.high > 0) or (a.low < 0 and b.low < 0)
    negative_too = (a.low < 0 and b.high > 0) or (a.high > 0 and b.low < 0)
    return Interval(-up if negative_too else 0, down if positive else 0)


def remainder(a: Interval, b: Interval) -> Interval:
    """Of remainders with the divisor's sign, of integers or floats."""
    if a.low >= 0 and b.low > a.high:
        return a
    return Interval(min(b.low, 0), max(b.high, 0))


def truncated(a: Interval, b: Interval) -> Interval:
    """Of remainders with the dividend's sign, no larger than either."""
    most = min(magnitude(a), magnitude(b))
    return Interval(max(-most, a.low) if a.low < 0 else 0, min(most, a.high) if a.high > 0 else 0)


def bits(a: Interval, b: Interval) -> Interval:
    """Of any combination of bits: no more of them than the larger operand has."""
    width = max(_width(end) for each in (a, b) for end in each)
    if width == INF:
        return ALL
    negative_too = a.low < 0 or b.low < 0
    return Interval(-(2 ** int(width)) if negative_too else 0, 2 ** int(width) - 1)


def divisor(a: Interval, b: Interval) -> Interval:
    """Of greatest common divisors."""
    return Interval(0, max(magnitude(a), magnitude(b)))


def shared_bits(a: Interval, b: Interval) -> Interval:
    """Of the bits that both have: no more than an operand that is not negative."""
    highs = [each.high for each in (a, b) if each.low >= 0]
    return Interval(0, min(highs)) if highs else bits(a, b)


def _width(end: float) -> float:
    return INF if end in (INF, -INF) else (int(end) if end >= 0 else ~int(end)).bit_length()


def rising(function: Callable[[float], float], least: float = -INF) -> Callable[[Interval], Interval]:
    """The form of a function that grows with its operand and is defined from `least` on."""

    def form(a: Interval) -> Interval:
        return Interval(_at(function, max(a.low, least)), _at(function, max(a.high, least)))

    return form


def _at(function: Callable[[float], float], x: float) -> float:
    if x in (INF, -INF):
        return x
    try:
        return function(x)
    except OverflowError:
        return INF


def logarithm(x: float) -> float:
    """`log`, with its limit at nothing."""
    return math.log(x) if x > 0 else -INF


def whole(a: Interval) -> Interval:
    """Of floats cast to integers: towards zero; with room for what 16-bit floats round on the way."""
    low, high = (math.trunc(end) if abs(end) < INF else end for end in a)
    return Interval(low - abs(low) / 32 - 1, high + abs(high) / 32 + 1)


def power(a: Interval, exponent: Any) -> Interval:
    """Of whole powers that are not negative."""
    if not isinstance(exponent, int) or exponent < 0 or exponent > 64:
        return ALL
    ends = [end**exponent if abs(end) < INF else INF * (1 if end > 0 or exponent % 2 == 0 else -1) for end in a]
    if exponent == 0:
        return exactly(1)
    return Interval(0 if exponent % 2 == 0 and a.low <= 0 <= a.high else min(ends), max(ends))
