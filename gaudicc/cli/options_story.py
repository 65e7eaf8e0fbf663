"""Command line: the options of `gaudicc bench story`. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BenchStoryOptions:
    """Port a CUDA-style stack stage by stage on the emulated device: fallbacks, compiles, launches, modelled time.

    Attributes:
        requests: prompts in the stream.
        longest: tokens of the longest prompt.
        layers: of the stack.
        json: print JSON.
    """

    requests: int = 200
    longest: int = 64
    layers: int = 4
    json: bool = False
