"""The planner's test problems: a trace through the server simulator, its first half to plan on, its second to judge.

Half of the requests get a random cached prefix, up to 90 % of the prompt: the traces carry none, and without one every
context is that of a later chunk. Shapes are rounded up to the alignment for all methods alike, so that floor is not
counted, except for whole prompts, where waste is against unrounded lengths.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gaudicc.buckets.cost import BLOCK, llama_8b_prompt
from gaudicc.buckets.options import Phase
from gaudicc.buckets.planner import with_prior
from gaudicc.buckets.scheduler import Server, at_load, clipped, replay
from gaudicc.buckets.space import Rows, Sample, Space
from gaudicc.buckets.trace import Trace, read_trace, with_cached_prefixes
from gaudicc.buckets.training import Replays

REPLAYS = 8
CACHED_SHARE, LONGEST_CACHED = 0.5, 0.9
LONG_PROMPTS = 16384
"""Traces with longer prompts than this get a server for long contexts."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is planned for and what the plan is judged on.

    Attributes:
        trace: name of the trace.
        space: legal shapes and cost.
        first: calls of the first half, for the peers' knobs.
        planned: the same with replays of resampled requests and the prior: what the planner gets.
        stream: calls of the second half in order of time [n, dims].
    """

    trace: str
    space: Space
    first: Sample
    planned: Sample
    stream: Rows

    @property
    def second(self) -> Sample:
        """The calls of the second half."""
        return Sample.of(self.stream)


def scheduled(path: Path) -> dict[str, Problem]:
    """The problems `decode`, `prefill` (one prompt a call) and `prefill 3-D` (up to 8 prompts a call) of a trace."""
    trace = read_trace(path)
    long = bool(trace.input_len.max() > LONG_PROMPTS)
    length, tokens = (131072, 8192) if long else (8192, 2048)
    one = _halves(path.stem, trace, Server(max_model_len=length, max_num_batched_tokens=tokens))
    many = _halves(path.stem, trace, Server(max_model_len=length, max_num_batched_tokens=8192, max_prefill_seqs=8))
    return {"decode": one["decode"], "prefill": one["prefill"], "prefill 3-D": many["prefill"]}


def _halves(name: str, trace: Trace, server: Server) -> dict[str, Problem]:
    rng = np.random.default_rng(0)
    prefixed = with_cached_prefixes(trace, CACHED_SHARE, LONGEST_CACHED, BLOCK, rng)
    trace = at_load(clipped(prefixed, server), server)
    middle = len(trace) // 2
    steps, replays = replay(trace, server), Replays.of(trace[:middle], server, REPLAYS, rng)
    before, after = steps.until(float(trace.arrival[middle])), steps.since(float(trace.arrival[middle]))

    def problem(phase: Phase, space: Space) -> Problem:
        first = Sample.of(before.rows(phase)).rounded(space)
        return Problem(name, space, first, replays.sample(phase, space, first, rng), space.round_up(after.rows(phase)))

    return {"prefill": problem("prefill", server.prefill_space()), "decode": problem("decode", server.decode_space())}


def whole_prompts(path: Path, step: int) -> Problem:
    """The one-dimensional problem: every prompt in one call of its own, no prefix, sizes in multiples of `step`.

    The stream holds the prompts' true lengths, unrounded.
    """
    lengths = np.maximum(read_trace(path).input_len, 1)
    limit = -(-int(lengths.max()) // step) * step
    space = Space(("query",), (step,), (limit,), (step,), (limit // step,), cost=llama_8b_prompt)
    middle = len(lengths) // 2
    first = Sample.of(lengths[:middle, None]).rounded(space)
    planned = with_prior(space, first, [], np.random.default_rng(0))
    return Problem(path.stem, space, first, planned, lengths[middle:, None])


def distance(first: Sample, second: Sample) -> float:
    """Kolmogorov-Smirnov distance of two one-dimensional samples, 0 to 1."""
    points = np.union1d(first.shapes[:, 0], second.shapes[:, 0])

    def below(sample: Sample) -> np.ndarray:
        shares = np.concatenate([[0.0], np.cumsum(sample.weights) / sample.weights.sum()])
        return shares[np.searchsorted(sample.shapes[:, 0], points, side="right")]

    return float(np.abs(below(first) - below(second)).max())


def effective_size(space: Space, sample: Sample) -> float:
    """How many calls of equal cost the sample is worth: few where a few long calls cost most."""
    cost = space.cost_of(sample.shapes)
    return float((cost @ sample.weights) ** 2 / (cost**2 @ sample.weights))
