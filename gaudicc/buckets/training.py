"""A trace and a server -> the traffic to plan on: what was seen, and replays of what might have been."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gaudicc.buckets.options import Phase
from gaudicc.buckets.planner import with_prior
from gaudicc.buckets.scheduler import Server, Steps, clipped, replay
from gaudicc.buckets.space import Sample, Space
from gaudicc.buckets.trace import Trace, resampled, unseen

UNSEEN_REPLAYS = 4


@dataclass(frozen=True, slots=True)
class Replays:
    """Replays besides that of the trace itself.

    Attributes:
        resampled: of its requests, drawn anew.
        unseen: of prompts of any length.
    """

    resampled: tuple[Steps, ...]
    unseen: tuple[Steps, ...]

    @classmethod
    def of(cls, trace: Trace, server: Server, count: int, rng: np.random.Generator) -> Replays:
        """Replays `count` resampled traces, and a few of unseen prompts."""
        drawn = tuple(replay(resampled(trace, rng), server) for _ in range(count))
        strange = (unseen(trace, server.max_model_len, rng) for _ in range(UNSEEN_REPLAYS))
        return cls(drawn, tuple(replay(clipped(other, server), server) for other in strange))

    def sample(self, phase: Phase, space: Space, seen: Sample, rng: np.random.Generator) -> Sample:
        """The sample to plan a phase on: the calls that were seen with those of the replays and a prior."""
        drawn, strange = (
            [Sample.of(steps.rows(phase)).rounded(space) for steps in part if len(steps.rows(phase))]
            for part in (self.resampled, self.unseen)
        )
        return with_prior(space, seen, drawn, rng, unseen=strange)
