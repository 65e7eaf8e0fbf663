"""What a user writes for `buckets=` -> a BucketSet: lists, or a strategy word with ranges.

The formulas of `exp`, `lin` and `pad` are those of vllm-gaudi's bucketing strategies (its docs/features/
bucketing_mechanism.md and extension/bucketing/), so that a user's min, step and max mean the same here. Unlike there,
the maximum is always a bucket, so that nothing in range can miss.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gaudicc.buckets.bucket import Bucket, BucketSet, Cost, product_of_sizes
from gaudicc.errors import InputError

Strategy = Literal["exp", "lin", "pad", "optimal"]
STRATEGIES: tuple[Strategy, ...] = ("exp", "lin", "pad", "optimal")
PerDim = int | Mapping[str, int] | None

PAD_PERCENT = 25
"""vllm-gaudi's default bound on padding of the `pad` strategy, in percent of the bucket."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """A request for buckets by strategy. An int holds for every dim, a mapping for the dims it names.

    Attributes:
        strategy: `exp` (exponential spacing), `lin` (doubling up to step, then step by step), `pad` (as lin, but skips
            what keeps padding within 25 %) or `optimal` (planned for traffic that is log-uniform over the ranges;
            `gaudicc.buckets.planner` plans for measured traffic).
        min: smallest bucket of a dim; by default the dim's own minimum.
        step: what sizes are rounded to (`exp`, `optimal`) or advance by (`lin`, `pad`); by default 1 (`exp`,
            `optimal`), or the smallest that stays within `max_graphs` (`lin`, `pad`).
        max: largest bucket of a dim; by default the dim's own maximum.
        max_graphs: most buckets in all.
    """

    strategy: Strategy = "exp"
    min: PerDim = None
    step: PerDim = None
    max: PerDim = None
    max_graphs: int = 32

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise InputError(f"unknown bucketing strategy {self.strategy!r}", hint=f"use one of {STRATEGIES}")
        if self.max_graphs < 1:
            raise InputError(f"max_graphs must be at least 1, got {self.max_graphs}")


@dataclass(frozen=True, slots=True)
class Range:
    """The sizes one dim's buckets span. `step` 0 means that the strategy may choose it."""

    min: int
    step: int
    max: int

    def __post_init__(self) -> None:
        if not 0 <= self.min <= self.max or self.step < 0:
            raise InputError(f"a bucket range needs 0 <= min <= max and step >= 0, got {self}")


BucketForm = Buckets | BucketSet | str | Sequence[Mapping[str, int] | Sequence[int] | Bucket] | None


def parse_buckets(
    form: BucketForm, bounds: Mapping[str, tuple[int, int]], cost: Cost = product_of_sizes, max_graphs: int = 32
) -> BucketSet:
    """Turns any form a user may write into a BucketSet.

    Args:
        form: None (`exp`), a strategy word, `Buckets`, a BucketSet, or a list of buckets, each a mapping dim -> size or
            the sizes in the order of `bounds`.
        bounds: (min, max) of every dynamic dim, in the order the buckets' dims take.
        cost: cost of one call at a bucket, by which the set chooses.
        max_graphs: most buckets a strategy word may make.

    Raises:
        InputError: the form is malformed, names another dim, or its steps need more than `max_graphs` buckets.
    """
    if form is None or isinstance(form, str):
        form = Buckets("exp" if form is None else form, max_graphs=max_graphs)  # type: ignore[arg-type]  # checked there
    if isinstance(form, Buckets):
        return expand(form, bounds, cost)
    buckets = [_listed(entry, tuple(bounds)) for entry in form]
    return BucketSet(buckets, form.cost if isinstance(form, BucketSet) else cost)


def _listed(entry: Mapping[str, int] | Sequence[int] | Bucket, dims: tuple[str, ...]) -> Bucket:
    if isinstance(entry, Bucket):
        entry = entry.as_dict()
    if isinstance(entry, Mapping):
        if set(entry) != set(dims):
            raise InputError(
                f"bucket {dict(entry)} must give a size for each of {dims}",
                hint=f"write it as {{{', '.join(f'{dim!r}: ...' for dim in dims)}}}",
            )
        return Bucket(dims, tuple(entry[dim] for dim in dims))
    return Bucket(dims, tuple(entry))


def expand(spec: Buckets, bounds: Mapping[str, tuple[int, int]], cost: Cost = product_of_sizes) -> BucketSet:
    """The buckets of a strategy over the ranges of `bounds`, at most `spec.max_graphs` of them.

    Raises:
        InputError: a range is empty, an explicit step needs too many buckets, or a name is not a dim.
    """
    ranges = {dim: _range(spec, dim, low, high) for dim, (low, high) in bounds.items()}
    for given in (spec.min, spec.step, spec.max):
        if isinstance(given, Mapping) and (strange := set(given) - set(bounds)):
            raise InputError(f"buckets name {sorted(strange)}, which is no dynamic dim; there are {list(bounds)}")
    if not ranges:
        return BucketSet([Bucket((), ())], cost)
    if spec.strategy == "optimal":
        from gaudicc.buckets.planner import plan_log_uniform  # numpy only when it is needed

        return plan_log_uniform(ranges, spec.max_graphs, cost)
    axes = [
        axis_sizes(spec.strategy, r, n) for r, n in zip(ranges.values(), divide(ranges, spec.max_graphs), strict=True)
    ]
    if (count := math.prod(map(len, axes))) > spec.max_graphs:
        raise InputError(
            f"{spec.strategy!r} with these steps needs {count} buckets, more than max_graphs={spec.max_graphs}",
            hint="leave step out, make it larger, or raise max_graphs",
        )
    return BucketSet((Bucket(tuple(ranges), sizes) for sizes in itertools.product(*axes)), cost)


def _range(spec: Buckets, dim: str, low: int, high: int) -> Range:
    def pick(given: PerDim, default: int) -> int:
        value = given.get(dim) if isinstance(given, Mapping) else given
        return default if value is None else value

    return Range(pick(spec.min, low), pick(spec.step, 0), pick(spec.max, high))


def divide(ranges: Mapping[str, Range], max_graphs: int) -> list[int]:
    """How many sizes each dim gets so that their product is within `max_graphs`: always to the dim spaced widest."""
    counts = [1] * len(ranges)
    limits = [(r.max - r.min) // max(r.step, 1) + 2 for r in ranges.values()]

    def spacing(i: int, r: Range) -> float:
        return float(((r.max + 1) / (r.min + 1)) ** (1 / counts[i]))

    open_dims = [i for i, r in enumerate(ranges.values()) if r.max > r.min]
    while open_dims:
        widest = max(open_dims, key=lambda i: spacing(i, list(ranges.values())[i]))
        grown = math.prod(counts) // counts[widest] * (counts[widest] + 1)
        if grown > max_graphs or counts[widest] >= limits[widest]:
            open_dims.remove(widest)
        else:
            counts[widest] += 1
    return counts


def axis_sizes(strategy: Strategy, r: Range, count: int) -> tuple[int, ...]:
    """One dim's sizes by a strategy, at most `count` of them unless the range gives an explicit step."""
    if strategy == "exp":
        return exponential(r.min, max(r.step, 1), r.max, count)
    if r.step:
        return linear(r.min, r.step, r.max) if strategy == "lin" else padding_aware(r.min, r.step, r.max)
    return next(axis for axis in _by_smallest_step(strategy, r) if len(axis) <= count)


def _by_smallest_step(strategy: Strategy, r: Range) -> Iterator[tuple[int, ...]]:
    step = 1
    while step <= r.max:
        yield linear(r.min, step, r.max) if strategy == "lin" else padding_aware(r.min, step, r.max)
        step = max(step + 1, step * 17 // 16)  # finer than anyone can feel, and few enough to try
    yield (r.max,)


def exponential(low: int, step: int, high: int, count: int) -> tuple[int, ...]:
    """`ceil(low * (high/low)**(i/(count-1)) / step) * step`, i < count, without repeats; 0 is a size of its own."""
    if count == 1 or low == high:
        return (high,)
    if low == 0:
        return (0, *exponential(min(step, high), step, high, count - 1))
    powers = (low * (high / low) ** (i / (count - 1)) for i in range(count - 1))
    values = {min(high, math.ceil(round(power / step, 9)) * step) for power in powers}
    return tuple(sorted({*values, high}))


def linear(low: int, step: int, high: int) -> tuple[int, ...]:
    """`low` doubled up to `step`, then every multiple of `step`, and `high`."""
    values = {0, high} if low == 0 else {high}
    ramp = low or step
    while ramp < min(step, high):
        values.add(ramp)
        ramp *= 2
    values.update(value for value in range(step, high + 1, step) if value >= low)
    return tuple(sorted(values))


def padding_aware(
    low: int, step: int, high: int, percent: float = PAD_PERCENT, most: int | None = None
) -> tuple[int, ...]:
    """`linear`, keeping a size only where skipping it would pad by more than `percent` % or `most`.

    Args:
        low: smallest size.
        step: distance of the sizes considered.
        high: largest size, always kept.
        percent: most padding, in percent of the padded size.
        most: most padding in absolute size; multiples of it are kept too. By default a quarter of `high`.
    """
    most = max(1, math.ceil(high / 4) if most is None else most)
    sizes = linear(low, step, high)
    kept = [sizes[0]]
    for size, following in itertools.pairwise(sizes[1:]):
        padding = following - kept[-1] - 1
        if size <= step or padding > percent / 100 * following or padding > most or size % most == 0:
            kept.append(size)
    return tuple(dict.fromkeys([*kept, high]))
