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
        shape: instead, a large model by the dimensions alone, e.g. Llama-3.1-8B: modelled times of its calls by stage.
        json: print JSON.
    """

    requests: int = 200
    longest: int = 64
    layers: int = 4
    shape: str | None = None
    json: bool = False
