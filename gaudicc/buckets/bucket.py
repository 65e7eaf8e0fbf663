"""Bucket arithmetic: the physical sizes that graphs are recorded for, and which of them serves a call.

Used on every call, so choosing is a few list look-ups and integer operations; no numpy and no torch here.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from gaudicc.errors import BucketMissError, InputError


@dataclass(frozen=True, slots=True)
class Bucket:
    """Physical sizes of the dynamic dims, in a fixed order: the shape one graph is recorded for.

    Attributes:
        dims: dim names, e.g. `("batch", "seq")`.
        sizes: the physical size of each dim, 0 or more.

    Raises:
        InputError: names repeat, or a size is missing or negative.
    """

    dims: tuple[str, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.dims) != len(self.sizes) or len(set(self.dims)) != len(self.dims):
            raise InputError(f"a bucket needs one size for each of its dims, got dims {self.dims} sizes {self.sizes}")
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 0 for size in self.sizes):
            raise InputError(f"bucket sizes must be integers of 0 or more, got {self}")

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> Bucket:
        """The bucket of a mapping dim name -> size; the mapping's order is the bucket's order."""
        return cls(tuple(sizes), tuple(sizes.values()))

    def __getitem__(self, dim: str) -> int:
        return self.sizes[self.dims.index(dim)]

    def as_dict(self) -> dict[str, int]:
        """Dim name -> physical size."""
        return dict(zip(self.dims, self.sizes, strict=True))

    def dominates(self, sizes: Mapping[str, int] | Bucket) -> bool:
        """True if every dim of this bucket holds the logical size of that dim in `sizes`."""
        return all(sizes[dim] <= size for dim, size in zip(self.dims, self.sizes, strict=True))

    def __str__(self) -> str:
        return ", ".join(f"{dim}={size}" for dim, size in zip(self.dims, self.sizes, strict=False))


Cost = Callable[[Bucket], float]


def product_of_sizes(bucket: Bucket) -> float:
    """The default cost: elements per call. A size of 0 counts as 1, for the other dims still cost."""
    return float(math.prod(max(size, 1) for size in bucket.sizes))


class BucketSet(Collection[Bucket]):
    """An ordered set of buckets over the same dims, which chooses the cheapest that dominates.

    Args:
        buckets: the buckets, in the order that breaks ties between equal costs. Repeats are dropped.
        cost: cost of one call at a bucket's physical sizes, any unit.

    Raises:
        InputError: there is no bucket, or their dims differ.
    """

    def __init__(self, buckets: Iterable[Bucket], cost: Cost = product_of_sizes) -> None:
        self._buckets = tuple(dict.fromkeys(buckets))
        if not self._buckets:
            raise InputError("a bucket set needs at least one bucket")
        self.dims = self._buckets[0].dims
        if stranger := next((bucket for bucket in self._buckets if bucket.dims != self.dims), None):
            raise InputError(f"all buckets of a set have the same dims in the same order: {self.dims}, {stranger.dims}")
        self.cost = cost
        self._ranked = sorted(self._buckets, key=cost)  # stable: ties keep the given order
        self._costs = [cost(bucket) for bucket in self._ranked]
        # Per dim: the distinct sizes, and for each the set of ranks that are at least as large, as the bits of an
        # integer. The buckets that dominate are the AND over the dims; the lowest bit is the cheapest.
        self._axes = [self._axis(i) for i in range(len(self.dims))]

    def _axis(self, i: int) -> tuple[str, list[int], list[int]]:
        values = sorted({bucket.sizes[i] for bucket in self._ranked})
        masks = [sum(1 << rank for rank, b in enumerate(self._ranked) if b.sizes[i] >= value) for value in values]
        return self.dims[i], values, [*masks, 0]

    def choose(self, sizes: Mapping[str, int]) -> Bucket:
        """The cheapest bucket that dominates, ties by order.

        Args:
            sizes: logical size of every dim of the set; other names are ignored.

        Raises:
            BucketMissError: no bucket dominates; names the dim at fault and its bound.
            InputError: a dim has no size.
        """
        mask = -1
        try:
            for dim, values, masks in self._axes:
                mask &= masks[bisect_left(values, sizes[dim])]
        except KeyError as error:
            raise InputError(f"no size given for dim {error}; the buckets are over {self.dims}") from None
        if not mask:
            raise self._miss(sizes)
        return self._ranked[(mask & -mask).bit_length() - 1]

    def choose_split(self, sizes: Mapping[str, int], dim: str) -> tuple[Bucket, int]:
        """The cheapest way to serve `sizes` in one or more calls that divide `dim` (usually the batch).

        Of equals it takes the fewest calls.

        Returns:
            The bucket, and the number of calls: 1 if it holds all of `dim`.

        Raises:
            BucketMissError: some other dim fits no bucket.
        """
        mask = -1
        for name, values, masks in self._axes:
            mask &= masks[bisect_left(values, min(sizes[name], 1) if name == dim else sizes[name])]
        best: tuple[float, int, int] | None = None
        while mask:
            rank = (mask & -mask).bit_length() - 1
            mask &= mask - 1
            if best is not None and self._costs[rank] > best[0]:
                break
            calls = max(1, -(-sizes[dim] // max(self._ranked[rank][dim], 1)))
            offered = (calls * self._costs[rank], calls, rank)
            best = offered if best is None else min(best, offered)
        if best is None:
            raise self._miss(sizes)
        return self._ranked[best[2]], best[1]

    def _miss(self, sizes: Mapping[str, int]) -> BucketMissError:
        shape = ", ".join(f"{dim}={sizes[dim]}" for dim in self.dims)
        for dim, values, _ in self._axes:
            if sizes[dim] > values[-1]:
                return BucketMissError(f"{dim}={sizes[dim]} is over its largest bucket, {values[-1]} (call: {shape})")
        # Each dim fits some bucket, none fits all: name the last dim that the others leave too little room for.
        for i in reversed(range(len(self.dims))):
            others = [b for b in self._buckets if all(b[d] >= sizes[d] for d in self.dims if d != self.dims[i])]
            if others:
                bound = max(bucket.sizes[i] for bucket in others)
                return BucketMissError(f"{self.dims[i]}={sizes[self.dims[i]]} is over {bound}, its bound for {shape}")
        return BucketMissError(f"no bucket holds these sizes together: {shape}")

    def __len__(self) -> int:
        return len(self._buckets)

    def __getitem__(self, index: int) -> Bucket:
        return self._buckets[index]

    def __contains__(self, bucket: object) -> bool:
        return bucket in self._buckets

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._buckets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketSet) and self._buckets == other._buckets

    def __hash__(self) -> int:
        return hash(self._buckets)

    def __repr__(self) -> str:
        return f"BucketSet({'; '.join(map(str, self._buckets))})"
