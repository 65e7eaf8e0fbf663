"""The host's part of a call that no bucket holds: several calls on parts of its rows, their results one behind the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from gaudicc.buckets import Bucket, BucketSet
from gaudicc.errors import BucketMissError

Results = tuple[torch.Tensor, ...]
Run = Callable[[Bucket, list[torch.Tensor], Mapping[str, int]], Results]
"""Replays a bucket on inputs of logical sizes."""


@dataclass(frozen=True, slots=True)
class Divisible:
    """A size over which a call may be divided.

    Attributes:
        name: the dimension's name.
        low: its smallest size.
        inputs: for every user input, the dim that has the rows; None: it is the same for all.
        outputs: likewise for every output.
    """

    name: str
    low: int
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]


def in_parts(
    sizes_to_divide: Sequence[Divisible],
    buckets: BucketSet,
    tensors: Sequence[torch.Tensor],
    sizes: Mapping[str, int],
    run: Run,
) -> Results:
    """Serves a call in the cheapest number of calls over one of the sizes that may be divided.

    Args:
        sizes_to_divide: what was proved; at least one.
        buckets: of the model.
        tensors: the user inputs.
        sizes: dimension name -> logical size.
        run: serves one part.

    Raises:
        BucketMissError: another size is over its bound too, or parts would be smaller than the model takes.
    """
    size, bucket, calls = _cheapest(sizes_to_divide, buckets, sizes)
    least, more = divmod(sizes[size.name], calls)  # parts differ by one row at most
    begin, made = 0, []
    for part in range(calls):
        rows = least + (part < more)
        given = [
            tensor if dim is None else _rows(tensor, dim, begin, rows, sizes[size.name])
            for tensor, dim in zip(tensors, size.inputs, strict=True)
        ]
        made.append(run(bucket, given, {**sizes, size.name: rows}))
        begin += rows
    return tuple(
        results[0] if dim is None else torch.cat(results, dim)
        for dim, *results in zip(size.outputs, *made, strict=True)
    )


def _cheapest(
    sizes_to_divide: Sequence[Divisible], buckets: BucketSet, sizes: Mapping[str, int]
) -> tuple[Divisible, Bucket, int]:
    found: list[tuple[float, int, Divisible, Bucket, int]] = []
    misses: list[BucketMissError] = []
    for number, size in enumerate(sizes_to_divide):
        try:
            bucket, calls = buckets.choose_split(sizes, size.name)
        except BucketMissError as miss:
            misses.append(miss)
            continue
        if sizes[size.name] // calls >= size.low:
            found.append((calls * buckets.cost(bucket), number, size, bucket, calls))
    if not found:
        raise misses[0] if misses else BucketMissError("a part of the call would have fewer rows than the model takes")
    _, _, size, bucket, calls = min(found, key=lambda entry: entry[:2])
    return size, bucket, calls


def _rows(tensor: torch.Tensor, dim: int, begin: int, rows: int, every: int) -> torch.Tensor:
    """The rows of a part; a row may be a block of the dim."""
    block = tensor.shape[dim] // max(every, 1)
    return tensor.narrow(dim, begin * block, rows * block)
