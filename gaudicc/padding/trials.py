"""Calls to try padding with, made of a program's own example inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from gaudicc.program import Program
from gaudicc.verify import in_range

Call = tuple[dict[str, torch.Tensor], Mapping[str, int]]


def trials(program: Program, original: Program, buckets: Sequence[Mapping[str, int]]) -> Iterator[Call]:
    """Four calls per bucket, whose lengths grow and shrink, each dim in a rhythm of its own; all that the program stands for.

    Args:
        program: with dimensions and an example.
        original: the program without padding, which must be able to take the inputs.
        buckets: dimension name -> physical size.

    Yields:
        The user inputs at logical sizes, and the bucket.
    """
    for sizes in buckets:
        for turn in range(4):
            wanted = {}
            for place, dim in enumerate(program.dimensions):
                size = sizes[dim.name]
                low = min(dim.low, size)
                wanted[dim.name] = (size, low, (low + size + 1) // 2, max(low, size - 1))[(turn + place) % 4]
            if (lengths := program.served(wanted)) is not None:
                inputs, _ = in_range(original, _inputs(program, lengths))
                yield dict(inputs), sizes


def _inputs(program: Program, lengths: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """The example at other sizes."""
    inputs = dict(program.example)
    for dim in program.dimensions:
        for name, position in dim.positions:
            inputs[name] = resized(inputs[name], position, lengths[dim.name])
    return inputs


def resized(tensor: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """A tensor repeated or cut to a size, so that its values stay in range."""
    index = torch.arange(size, device=tensor.device) % max(tensor.shape[dim], 1)
    return tensor.index_select(dim, index)
