"""A CSV of requests -> arrays, and resampled copies of them: the planner's first step."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gaudicc.buckets.cost import BLOCK
from gaudicc.errors import InputError

LARGEST = 1e12
"""Numbers in a trace are below this."""
COLUMNS = ("arrival_s", "input_len", "output_len")


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival.

    Attributes:
        arrival: seconds from the first request [n].
        input_len: prompt tokens [n].
        output_len: generated tokens [n].
        cached_len: prompt tokens whose KV is cached already [n].
    """

    arrival: NDArray[np.float64]
    input_len: NDArray[np.int64]
    output_len: NDArray[np.int64]
    cached_len: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.arrival)

    def __getitem__(self, part: slice | NDArray[np.int64]) -> Trace:
        return Trace(self.arrival[part], self.input_len[part], self.output_len[part], self.cached_len[part])


def read_trace(path: Path) -> Trace:
    """Reads a CSV with the columns `arrival_s,input_len,output_len` and, if it has one, `cached_len`.

    Raises:
        InputError: the file is missing or empty, lacks a column, or holds something that is no number.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        columns = {name: np.array([float(row[name]) for row in rows]) for name in COLUMNS}
        columns["cached_len"] = np.array([float(row.get("cached_len") or 0) for row in rows])
    except OSError as error:
        raise InputError(f"cannot read the trace {path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a trace: {error}", hint=f"it needs the columns {','.join(COLUMNS)}") from error
    if not rows or not all(((column >= 0) & (column < LARGEST)).all() for column in columns.values()):
        raise InputError(f"{path} holds no request, or a number that is negative or not below {LARGEST:.0e}")
    order = np.argsort(columns["arrival_s"], kind="stable")
    arrival = columns.pop("arrival_s")[order]
    whole = {name: column[order].astype(np.int64) for name, column in columns.items()}
    return Trace(arrival - arrival[0], **whole)


def with_cached_prefixes(trace: Trace, share: float, most: float, block: int, rng: np.random.Generator) -> Trace:
    """Gives a random `share` of the requests a cached prefix, uniform up to `most` of the prompt in whole blocks.

    Published traces carry no prefix information, so this is an assumption, not data. A share of 0 leaves all as it is.

    Raises:
        InputError: a share is not within 0 and 1.
    """
    if not (0 <= share <= 1 and 0 <= most <= 1):
        raise InputError(f"the share of cached requests, and of their prompts, is within 0 and 1; got {share}, {most}")
    if not share:
        return trace
    hit = rng.random(len(trace)) < share
    cached = (rng.random(len(trace)) * most * trace.input_len / block).astype(np.int64) * block
    return Trace(trace.arrival, trace.input_len, trace.output_len, np.where(hit, cached, 0))


def resampled(trace: Trace, rng: np.random.Generator, run: int = 50, neighbours: int = 50) -> Trace:
    """Another trace of the same traffic: runs of consecutive requests, drawn with replacement, with their gaps.

    A plan trained on the one trace that happened would fit its accidents. Each request's cached share is that of
    another request of about its length, so that prefixes are drawn anew as well; see docs/buckets.md.

    Args:
        trace: what was seen.
        rng: source of the draws.
        run: consecutive requests drawn together.
        neighbours: how many ranks of prompt length away a cached share may come from.
    """
    n = len(trace)
    starts = rng.integers(0, max(1, n - run + 1), size=-(-n // run))
    picked = np.minimum(starts[:, None] + np.arange(run), n - 1).ravel()[:n]
    gaps = np.diff(trace.arrival, prepend=trace.arrival[0])[picked]
    order = np.argsort(trace.input_len, kind="stable")
    rank = np.empty(n, dtype=np.int64)
    rank[order] = np.arange(n)
    donor = order[np.clip(rank[picked] + rng.integers(-neighbours, neighbours + 1, size=n), 0, n - 1)]
    share = trace.cached_len[donor] / np.maximum(trace.input_len[donor], 1)
    cached = (share * trace.input_len[picked] / BLOCK).astype(np.int64) * BLOCK
    return Trace(np.cumsum(gaps), trace.input_len[picked], trace.output_len[picked], cached)


def unseen(trace: Trace, longest: int, rng: np.random.Generator) -> Trace:
    """The trace with prompts of other lengths: log-uniform from 1 to `longest`, with the cached shares that were there.

    Long prompts are few and cost most, so that those to come are seldom among those that came. Replayed through the server,
    they say in which batches and contexts they would be met, which sizes drawn by themselves do not.
    """
    lengths = np.exp(rng.uniform(0.0, np.log(longest), len(trace))).astype(np.int64)
    share = trace.cached_len / np.maximum(trace.input_len, 1)
    return Trace(trace.arrival, lengths, trace.output_len, (share * lengths / BLOCK).astype(np.int64) * BLOCK)
