"""Options of `gaudicc bench cuda`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class BenchCudaOptions:
    """Times CUDA graphs beside eager PyTorch and torch.compile(mode="reduce-overhead") on one NVIDIA GPU.

    Attributes:
        requests: how many requests, each of another batch and length.
        rows: most rows of a request.
        length: most tokens of a row.
        context: tokens in the cache of a decode step.
        rounds: turns; the median of each is kept.
        layers: decoder layers of the language model; the encoder has half as many.
        width: width of the language model; the encoder's is half of it.
        peers: beside whom; `compile` needs a C++ compiler and Triton.
        device: `cuda`, or `cpu` to try the command where there is no GPU: nothing is recorded as CUDA graphs there.
        json: print JSON instead of the Markdown tables.
    """

    requests: int = 40
    rows: int = 8
    length: int = 256
    context: int = 256
    rounds: int = 15
    layers: int = 12
    width: int = 1024
    peers: tuple[Literal["eager", "compile"], ...] = ("eager", "compile")
    device: Literal["cuda", "cpu"] = "cuda"
    json: bool = False
