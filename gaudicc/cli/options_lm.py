"""Command line: the options of the commands for language models. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

Peer = Literal["native", "eager", "inductor", "onnxruntime", "openvino"]


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """Generate text with a causal language model: prefill and decode as recorded graphs over one static state.

    Attributes:
        model: folder of a transformers model, or a name with random weights (llama, llama-512x8, cuda-style-llm, ...).
        prompt: text; token ids (`12 7 9`) where the model has no tokenizer. Several prompts share the batch.
        max_new_tokens: tokens at which each answer ends.
        max_context: most tokens of a prompt and its answer; by default what the prompts need.
        chunk: tokens between two looks of the host at the device.
        sample: draw tokens; by default the likeliest is taken.
        temperature: with --sample, divides the logits.
        top_k: with --sample, draw among so many of the likeliest tokens; 0: among all.
        top_p: with --sample, draw among the likeliest tokens that reach this probability together.
        min_p: with --sample, draw among tokens that have this part of the largest probability at least.
        repetition_penalty: divides the logits of tokens that are there already.
        seed: with --sample, of the random numbers.
        target: chip: gaudi2 or gaudi3.
        json: print JSON.
    """

    model: Positional[str]
    prompt: tuple[str, ...]
    max_new_tokens: int = 64
    max_context: int | None = None
    chunk: int = 8
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    target: str = "gaudi3"
    json: bool = False


@dataclass(frozen=True, slots=True)
class BenchLmOptions:
    """Time decode, prefill and a stream of requests beside peers and beside what this machine can do at most.

    Attributes:
        model: a transformers family or reference config; its weights are random.
        threads: thread counts, each measured in a process of its own.
        context: tokens in the cache at the decode step that is timed.
        prompt: tokens of the prefill that is timed.
        requests: prompts of the stream, each of another length up to twice the context.
        rounds: turns of everything that is timed; medians are printed.
        peers: what to measure beside gaudicc; native (its kernels in C) needs a C compiler, inductor one for C++, the last two
            `pip install gaudicc[peers]`.
        save: also write the JSON to this file.
        json: print JSON instead of the Markdown table.
    """

    model: str = "llama-512x8"
    threads: tuple[int, ...] = (1, 2)
    context: int = 256
    prompt: int = 128
    requests: int = 40
    rounds: int = 15
    peers: tuple[Peer, ...] = ("native", "eager", "inductor", "onnxruntime", "openvino")
    save: Path | None = None
    json: bool = False
