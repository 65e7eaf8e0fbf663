"""What a call costs at given sizes, and what a recorded graph costs to hold: the planner's default figures.

A cost is any callable of the sizes in dim order; it gets numpy arrays (or numbers) and returns one cost per call, in
any unit. It must not fall when a size grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gaudicc.errors import InputError

ShapeCost = Callable[..., Any]
"""`cost(*sizes) -> cost`, vectorised over numpy arrays."""

BLOCK = 128
"""Tokens of one KV-cache block (vllm-gaudi's default)."""


def llama_8b_prefill(batch: Any, query: Any, context: Any) -> Any:
    """Work of one prefill call of an 8B Llama in bf16, modelled microseconds on one Gaudi 3.

    43 us a token is 75 % of the chip's bf16 peak, 6,500 us reads the weights once, 4,500 us is the host and launch
    share; the last term is attention over `context` blocks of cached tokens and the prompt itself.
    """
    tokens = batch * query
    return 4500.0 + np.maximum(6500.0, 43.0 * tokens) + 0.00182 * tokens * (BLOCK * context + query)


def llama_8b_decode(batch: Any, blocks: Any) -> Any:
    """Work of one decode step of an 8B Llama in bf16, modelled microseconds on one Gaudi 3.

    6,500 us reads the weights, 7.2 us reads one KV block of 16.8 MB, 20 us is spent per sequence.
    """
    return 6500.0 + 20.0 * batch + 7.2 * blocks


def llama_8b_prompt(query: Any) -> Any:
    """Work of a whole prompt without constants, modelled microseconds: the one-dimensional problem."""
    return 43.0 * query + 0.00182 * query * query


@dataclass(frozen=True, slots=True)
class GraphPrice:
    """What one recorded graph costs to have.

    Attributes:
        device_bytes: device memory it holds.
        compile_seconds: time to compile and record it.
    """

    device_bytes: float
    compile_seconds: float

    def __post_init__(self) -> None:
        if self.device_bytes < 0 or self.compile_seconds < 0:
            raise InputError(f"a graph's price cannot be negative: {self}")


# vllm-gaudi's documentation shows 15 prompt graphs in 14.0 GiB and 48 decode graphs in 0.16 GiB, and 72 graphs warmed
# up in 49 s, all of an 8B Llama.
PREFILL_GRAPH = GraphPrice(device_bytes=14.0 * 2**30 / 15, compile_seconds=49 / 72)
DECODE_GRAPH = GraphPrice(device_bytes=0.16 * 2**30 / 48, compile_seconds=49 / 72)
