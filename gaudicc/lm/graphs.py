"""LM inference, seventh step: the recorded graphs of one model, called with plain Python values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor, nn

from gaudicc.buckets import Bucket
from gaudicc.errors import UnsupportedInputError
from gaudicc.lm.axes import Axes, smallest
from gaudicc.lm.entry import EntryPoint
from gaudicc.lm.request import Request
from gaudicc.lm.state import LmState
from gaudicc.lm.steps import Admission, Decode, Extend, LanguageModel, Prefill, carried_by
from gaudicc.runtime.device import Device
from gaudicc.runtime.runner import Counters, Runner
from gaudicc.targets import Target

_MANY_QUERIES = 1021  # a prime, so that it is no other size by accident


@dataclass
class Graphs:
    """Entry points by what they do and whether they sample.

    Attributes:
        model: the language model.
        state: shared by all of them.
        axes: the sizes of buckets.
        target: the chip.
        device: records.
        counters: counted into.
    """

    model: LanguageModel
    state: LmState
    axes: Axes
    target: Target
    device: Device
    counters: Counters

    def __post_init__(self) -> None:
        self._entries: dict[tuple[str, bool, int | None], EntryPoint] = {}
        self._each_batch = False

    @cached_property
    def _lengths(self) -> Tensor:
        return torch.arange(max(self.state.limits.context, self.state.limits.slots), device=self.state.device)

    def decode(self, rows: int, length: int, *, sampled: bool) -> Callable[[], Tensor]:
        """A decode step over the first `rows` slots that reads `length` tokens; call it once per token.

        Returns:
            Gives the logits, float32 `[physical rows, vocabulary]`, valid until the next step.
        """
        batch, context = smallest(self.axes.batch, rows), smallest(self.axes.context, length)
        runner = self._runner("decode", sampled, {"batch": batch, "context": context})
        inputs = (self._lengths[:batch], self._lengths[:context])
        return lambda: runner.run(inputs)[0]

    def prefill(self, requests: Sequence[Request], *, sampled: bool) -> Tensor:
        """Reads the prompts of requests that hold a slot, and chooses the first token of each.

        Returns:
            The logits, float32 `[physical rows, vocabulary]`, valid until the next step.
        """
        past = any(request.kept for request in requests)
        batch = smallest(self.axes.batch, len(requests))
        queries = smallest(self.axes.queries, max(len(request.prompt) for request in requests))
        sizes = {"batch": batch, "queries": queries}
        tokens = _tokens(requests, batch, queries, self.state.limits.slots, left=bool(carried_by(self.model)))
        inputs = [*tokens, *_admission(requests, batch, self.state)]
        if past:
            total = max(request.kept + len(request.prompt) for request in requests)
            sizes["context"] = smallest(self.axes.context, total)
            starts = [request.kept for request in requests] + [0] * (batch - len(requests))
            inputs[2:3] = [torch.tensor(starts), inputs[2], self._lengths[: sizes["context"]]]
        runner = self._runner("extend" if past else "prefill", sampled, sizes)
        return runner.run([value.to(self.state.device) for value in inputs])[0]

    def warm_up(self, *, sampled: bool, sessions: bool) -> Iterator[tuple[str, Bucket]]:
        """Records every bucket; yields before each."""
        kinds: dict[str, tuple[str, ...]] = {"prefill": ("batch", "queries"), "decode": ("batch", "context")}
        if sessions:
            kinds["extend"] = ("batch", "queries", "context")
        for kind, dims in kinds.items():
            for sizes in product(*(getattr(self.axes, dim) for dim in dims)):
                bucket = Bucket(dims, sizes)
                yield kind, bucket
                self._runner(kind, sampled, dict(zip(dims, sizes, strict=True)))

    def _runner(self, kind: str, sampled: bool, sizes: dict[str, int]) -> Runner:
        """The recorded bucket of these sizes."""
        if not self._each_batch:
            try:
                return self.entry(kind, sampled).runner(Bucket.of(sizes))
            except UnsupportedInputError:
                if self.state.limits.slots != 2:
                    raise
                # A model that tells a batch of several from one leaves 2 alone of the sizes 1 and 2: no size that varies.
                self._each_batch = True
        rest = {name: size for name, size in sizes.items() if name != "batch"}
        return self.entry(kind, sampled, sizes["batch"]).runner(Bucket.of(rest))

    def entry(self, kind: str, sampled: bool, batch: int | None = None) -> EntryPoint:
        """The entry point `prefill`, `extend` or `decode`; for all batches, or for one."""
        key = (kind, sampled, batch)
        if key not in self._entries:
            self._entries[key] = self._make(*key)
        return self._entries[key]

    def _make(self, kind: str, sampled: bool, batch: int | None) -> EntryPoint:
        limits = self.state.limits
        example: dict[str, Tensor]
        rows = batch or min(2, limits.slots)
        if kind == "decode":
            step: nn.Module = Decode(self.model, self.state, sampled=sampled)
            example = {"slots": torch.arange(rows), "context": torch.arange(2)}
        else:
            step = (Extend if kind == "extend" else Prefill)(self.model, self.state, sampled=sampled)
            # Recurrences work in chunks: with one chunk in the example, graphs would hold for one.
            columns = min(limits.context, _MANY_QUERIES) if carried_by(self.model) else 2
            ids, slots, lengths = torch.zeros(rows, columns).long(), torch.arange(rows), torch.ones(rows).long()
            example = {"ids": ids, "slots": slots, "lengths": lengths}
            if kind == "extend":
                example |= {"starts": torch.zeros_like(lengths), "context": torch.arange(2)}
            example |= _admission([], rows, self.state)._asdict()
        dims: dict[str, dict[int, tuple[str, int, int]]] = {
            name: {0: ("context", 1, limits.context)} if name == "context" else {0: ("batch", 1, limits.slots)}
            for name in example
            if name == "context" or (limits.slots > 1 and batch is None)
        }
        if "ids" in example and limits.context > 2:  # a prompt of one token is padded to two or more
            dims.setdefault("ids", {})[1] = ("queries", 2, limits.context)
        example = {name: value.to(self.state.device) for name, value in example.items()}
        # What the scheduler keeps: it admits no request that would leave the state.
        kept = {"slots": limits.slots, "context": limits.context, "lengths": limits.context, "starts": limits.context}
        kept |= {"state.position": limits.context, "state.live": 1}
        ranges = tuple((name, 0, high) for name, high in kept.items())
        return EntryPoint(
            step.eval(), example, dims, target=self.target, device=self.device, counters=self.counters, ranges=ranges
        )

    @property
    def buckets(self) -> dict[str, tuple[Bucket, ...]]:
        """The buckets recorded so far, by entry point."""
        return {
            f"{kind}{' sampled' * sampled}{'' if batch is None else f' of {batch}'}": entry.buckets
            for (kind, sampled, batch), entry in self._entries.items()
        }


def _tokens(
    requests: Sequence[Request], batch: int, queries: int, dump: int, *, left: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids `[batch, queries]`, slots `[batch]` and lengths `[batch]`; rows that are pads have one token in the dump slot.

    Pads stand on the `left` of the tokens, or on the right.
    """
    pads = batch - len(requests)
    ids = torch.zeros(batch, queries, dtype=torch.int64)
    for row, request in enumerate(requests):
        start = queries - len(request.prompt) if left else 0
        ids[row, start : start + len(request.prompt)] = torch.tensor(request.prompt)
    slots = torch.tensor([request.slot for request in requests] + [dump] * pads)
    lengths = torch.tensor([len(request.prompt) for request in requests] + [1] * pads)
    return ids, slots, lengths


def _admission(requests: Sequence[Request], batch: int, state: LmState) -> Admission:
    """What the state must know of each request; pads get what ends them at once."""
    limits, stops = state.limits, state.limits.stops
    limit, top_k = torch.zeros(batch, dtype=torch.int64), torch.ones(batch, dtype=torch.int64)
    stop = torch.full((batch, stops), -1)
    temperature, top_p, min_p, penalty = (torch.full((batch,), off) for off in (0.0, 1.0, 0.0, 1.0))
    uniform = torch.zeros(batch, limits.context + 1)
    for row, request in enumerate(requests):
        how = request.options
        limit[row] = request.limit
        stop[row, : len(how.stop)] = torch.tensor(how.stop, dtype=torch.int64)
        penalty[row] = how.repetition_penalty
        if how.do_sample:
            temperature[row], top_p[row], min_p[row] = how.temperature, how.top_p, how.min_p
            top_k[row] = how.top_k if how.top_k is not None else torch.iinfo(torch.int32).max
            uniform[row] = torch.rand(limits.context + 1, generator=torch.Generator().manual_seed(how.seed))
    return Admission(limit, stop, temperature, top_k, top_p, min_p, penalty, uniform)
