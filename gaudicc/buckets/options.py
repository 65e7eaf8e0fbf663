"""Command line: the options of `gaudicc buckets plan`. Imports no numpy, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """Plan buckets for the traffic of a trace.

    Attributes:
        trace: CSV of requests with the columns arrival_s, input_len, output_len and, optionally, cached_len.
        max_graphs: most graphs in all.
        phase: plan prefill, decode, or both from one pool.
        max_gib: most device memory that all graphs may hold, GiB.
        max_compile_seconds: most time to compile and record all graphs, one after the other.
        worst_padding: most padded over real cost of any shape, also of shapes not seen yet, as a ratio.
        max_model_len: longest prompt plus output, tokens.
        max_num_batched_tokens: most padded prompt tokens of one prefill call.
        max_prefill_seqs: most prompts of one prefill call.
        max_num_seqs: most sequences that decode together.
        kv_blocks: KV-cache blocks of 128 tokens in device memory.
        load: share of saturated throughput that arrivals are scaled to; 0 keeps the trace's own times.
        cached_share: share of requests given a random cached prefix, for traces without cached_len.
        replays: replays on resampled requests to plan on besides the trace itself.
        recorded: plan file whose buckets are recorded already and stay.
        export: files to write, each vllm=FILE or json=FILE.
        plot: picture to write, an .svg file.
        json: print the plan as JSON instead of tables.
    """

    trace: Path
    max_graphs: int = 80
    phase: Literal["both", "prefill", "decode"] = "both"
    max_gib: float | None = None
    max_compile_seconds: float | None = None
    worst_padding: float | None = None
    max_model_len: int = 8192
    max_num_batched_tokens: int = 2048
    max_prefill_seqs: int = 1
    max_num_seqs: int = 128
    kv_blocks: int = 4107
    load: float = 0.75
    cached_share: float = 0.0
    replays: int = 8
    recorded: Path | None = None
    export: tuple[str, ...] = ()
    plot: Path | None = None
    json: bool = False
