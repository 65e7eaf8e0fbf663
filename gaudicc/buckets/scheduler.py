"""A small continuous-batching server: a trace of requests -> the shapes of its prefill and decode calls.

Prefill and decode calls alternate while both have work, as in a server without mixed batches. Prompts are chunked at
the token budget and may be batched; a request's KV blocks are reserved when it is admitted, so none is preempted. A
call takes the time that the cost says, at its real (unpadded) sizes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gaudicc.buckets.cost import BLOCK, ShapeCost, llama_8b_decode, llama_8b_prefill
from gaudicc.buckets.options import Phase
from gaudicc.buckets.space import Rows, Space
from gaudicc.buckets.trace import Trace
from gaudicc.errors import InputError


@dataclass(frozen=True, slots=True)
class Server:
    """The server that a trace is replayed through.

    Attributes:
        max_model_len: longest prompt plus output, tokens; longer prompts are clipped.
        max_num_batched_tokens: most padded prompt tokens of one prefill call.
        max_prefill_seqs: most prompts of one prefill call; 1 makes the prefill problem two-dimensional.
        max_num_seqs: most sequences that decode together.
        kv_blocks: KV-cache blocks in device memory (4,107: an 8B Llama on a card with 96 GB, computed).
        load: arrivals are scaled to this share of the server's saturated throughput; None keeps the trace's times.
        prefill_cost: microseconds of a prefill call by (batch, query, context blocks).
        decode_cost: microseconds of a decode step by (batch, blocks).
    """

    max_model_len: int = 8192
    max_num_batched_tokens: int = 2048
    max_prefill_seqs: int = 1
    max_num_seqs: int = 128
    kv_blocks: int = 4107
    load: float | None = 0.75
    prefill_cost: ShapeCost = llama_8b_prefill
    decode_cost: ShapeCost = llama_8b_decode

    def __post_init__(self) -> None:
        if min(self.max_prefill_seqs, self.max_num_seqs, self.max_num_batched_tokens, self.max_model_len - 1) < 1:
            raise InputError(f"a server's limits must be at least 1, max_model_len at least 2; got {self}")
        if self.load is not None and not self.load > 0:
            raise InputError(f"the load is a share of the saturated throughput, so over 0; got {self.load}")
        if self.kv_blocks * BLOCK < self.max_model_len or self.max_num_batched_tokens % BLOCK:
            raise InputError(
                f"{self.kv_blocks} KV blocks must hold max_model_len={self.max_model_len}, and "
                f"max_num_batched_tokens={self.max_num_batched_tokens} must be a multiple of {BLOCK}"
            )

    @property
    def max_context(self) -> int:
        """Most context blocks of a prefill call."""
        return -(-self.max_model_len // BLOCK) - 1

    def prefill_space(self) -> Space:
        """The shapes of prefill calls: (query, context), with batch in front when prompts are batched."""
        tokens, longest, most = self.max_num_batched_tokens, self.max_model_len, self.max_prefill_seqs
        query = min(tokens, -(-longest // BLOCK) * BLOCK)

        def legal(lower: Rows, upper: Rows) -> NDArray[np.bool_]:
            # A prompt alone fits the model's length; in a batch, the longest query and the longest context may come
            # from different prompts.
            query = lower[:, -2]
            fits = query + BLOCK * lower[:, -1] < longest + BLOCK
            if most == 1:
                return fits
            alone: NDArray[np.bool_] = fits & (lower[:, 0] == 1)
            pair = np.maximum(lower[:, 0], 2)
            return alone | ((pair <= upper[:, 0]) & (pair * query <= tokens))

        if most == 1:
            cost = self.prefill_cost
            return Space(
                ("query", "context"), (BLOCK, 0), (query, self.max_context), (BLOCK, 1), (32, 80),
                cost=lambda query, context: cost(1, query, context), legal=legal,
            )  # fmt: skip
        return Space(
            ("batch", "query", "context"), (1, BLOCK, 0), (most, query, self.max_context), (1, BLOCK, 1), (8, 24, 32),
            cost=self.prefill_cost, split=0, legal=legal,
        )  # fmt: skip

    def decode_space(self) -> Space:
        """The shapes of decode steps: (batch, blocks)."""
        per_sequence = -(-self.max_model_len // BLOCK)

        def legal(lower: Rows, upper: Rows) -> NDArray[np.bool_]:
            # Each sequence holds from one block to `per_sequence`.
            inside: NDArray[np.bool_] = (lower[:, 0] <= upper[:, 1]) & (lower[:, 1] <= per_sequence * upper[:, 0])
            return inside

        limit = (self.max_num_seqs, min(self.kv_blocks, self.max_num_seqs * per_sequence))
        return Space(("batch", "blocks"), (1, 1), limit, (1, 1), (24, 64), cost=self.decode_cost, legal=legal)


@dataclass(frozen=True, slots=True)
class Steps:
    """The calls of one replay: start times in seconds and shapes.

    Attributes:
        prefill_time: [n].
        prefill: (batch, query, context blocks), unpadded [n, 3]; (query, context) [n, 2] when batches are of one.
        decode_time: [m].
        decode: (batch, blocks) [m, 2].
    """

    prefill_time: NDArray[np.float64]
    prefill: Rows
    decode_time: NDArray[np.float64]
    decode: Rows

    def rows(self, phase: Phase) -> Rows:
        """The shapes of a phase's calls."""
        return self.prefill if phase == "prefill" else self.decode

    def until(self, seconds: float) -> Steps:
        """The calls that start before a time."""
        return self._where(self.prefill_time < seconds, self.decode_time < seconds)

    def since(self, seconds: float) -> Steps:
        """The calls that start at a time or after."""
        return self._where(self.prefill_time >= seconds, self.decode_time >= seconds)

    def _where(self, prefill: NDArray[np.bool_], decode: NDArray[np.bool_]) -> Steps:
        return Steps(self.prefill_time[prefill], self.prefill[prefill], self.decode_time[decode], self.decode[decode])


def clipped(trace: Trace, server: Server) -> Trace:
    """The trace within the server's model length, every request with at least one token in and out."""
    output = np.clip(trace.output_len, 1, server.max_model_len - 1)
    prompt = np.clip(trace.input_len, 1, server.max_model_len - output)
    cached = np.minimum(trace.cached_len, (prompt - 1) // BLOCK * BLOCK)
    return Trace(trace.arrival, prompt, output, cached)


def at_load(trace: Trace, server: Server) -> Trace:
    """The trace with its arrival times scaled to the server's load.

    The saturated throughput is that of a replay in which every request is there from the start.
    """
    if server.load is None:
        return trace
    saturated = replay(replace_arrival(trace, np.zeros(len(trace))), server)
    busy = max(saturated.prefill_time[-1], saturated.decode_time[-1] if len(saturated.decode_time) else 0.0)
    span = max(float(trace.arrival[-1] - trace.arrival[0]), 1e-9)
    return replace_arrival(trace, trace.arrival * (busy / server.load / span))


def replace_arrival(trace: Trace, arrival: NDArray[np.float64]) -> Trace:
    """The same requests at other times."""
    return replace(trace, arrival=arrival)


def replay(trace: Trace, server: Server) -> Steps:
    """Runs a trace through the server; the trace must be within its limits (`clipped`)."""
    return _Replay(trace, server).run()


class _Replay:
    """One replay's state.

    A decode step costs O(1): a sequence gains a block every 128th step, so the number of sequences that gain one is
    counted per step number modulo 128.
    """

    def __init__(self, trace: Trace, server: Server) -> None:
        self.server = server
        self.arrival = trace.arrival.tolist()
        self.input_len, self.output_len = trace.input_len.tolist(), trace.output_len.tolist()
        self.done = trace.cached_len.tolist()  # prompt tokens whose KV exists
        self.waiting: deque[int] = deque()
        self.next_arrival = 0
        self.now = 0.0
        self.held: dict[int, int] = {}  # admitted request -> KV blocks reserved
        self.free_blocks = server.kv_blocks
        self.batch = self.blocks = self.step = 0
        self.gains = [0] * BLOCK
        self.finish: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        self.prefill: list[tuple[float, int, int, int]] = []
        self.decode: list[tuple[float, int, int]] = []

    def run(self) -> Steps:
        while True:
            self._arrive()
            worked = self._prefill_call()
            worked = self._decode_step() or worked
            if not worked:
                if self.next_arrival == len(self.arrival):
                    return self._steps()
                self.now = self.arrival[self.next_arrival]

    def _arrive(self) -> None:
        while self.next_arrival < len(self.arrival) and self.arrival[self.next_arrival] <= self.now:
            self.waiting.append(self.next_arrival)
            self.next_arrival += 1

    def _prefill_call(self) -> bool:
        chosen: list[int] = []
        query = context = 0
        while self.waiting and len(chosen) < self.server.max_prefill_seqs:
            request = self.waiting[0]
            chunk = min(self.input_len[request] - self.done[request], self.server.max_num_batched_tokens)
            widest = max(query, chunk)
            padded = (len(chosen) + 1) * -(-widest // BLOCK) * BLOCK
            if padded > self.server.max_num_batched_tokens or not self._admit(request):
                break
            query, context = widest, max(context, self.done[request] // BLOCK)
            chosen.append(self.waiting.popleft())
        if not chosen:
            return False
        self.prefill.append((self.now, len(chosen), query, context))
        self.now += float(self.server.prefill_cost(len(chosen), query, context)) * 1e-6
        for request in reversed(chosen):
            self.done[request] += min(self.input_len[request] - self.done[request], query)
            if self.done[request] < self.input_len[request]:
                self.waiting.appendleft(request)
            else:
                self._start_decoding(request)
        return True

    def _admit(self, request: int) -> bool:
        if request in self.held:
            return True
        needed = -(-(self.input_len[request] + self.output_len[request]) // BLOCK)
        if needed > self.free_blocks or len(self.held) >= self.server.max_num_seqs:
            return False
        self.free_blocks -= needed
        self.held[request] = needed
        return True

    def _start_decoding(self, request: int) -> None:
        steps = self.output_len[request] - 1  # the prefill made the first token
        if not steps:
            self.free_blocks += self.held.pop(request)
            return
        length, first = self.input_len[request], self.step + 1
        residue = (first - length) % BLOCK
        self.batch += 1
        # Blocks one step before its first: `_decode_step` adds the gain of the first step itself.
        self.blocks += -(-length // BLOCK)
        self.gains[residue] += 1
        self.finish[first + steps - 1].append((request, residue, -(-(length + steps) // BLOCK)))

    def _decode_step(self) -> bool:
        if not self.batch:
            return False
        self.step += 1
        self.blocks += self.gains[self.step % BLOCK]
        self.decode.append((self.now, self.batch, self.blocks))
        self.now += float(self.server.decode_cost(self.batch, self.blocks)) * 1e-6
        for request, residue, blocks in self.finish.pop(self.step, ()):
            self.batch -= 1
            self.blocks -= blocks
            self.gains[residue] -= 1
            self.free_blocks += self.held.pop(request)
        return True

    def _steps(self) -> Steps:
        prefill = np.array(self.prefill, dtype=np.float64).reshape(-1, 4)
        decode = np.array(self.decode, dtype=np.float64).reshape(-1, 3)
        keep = slice(1, 4) if self.server.max_prefill_seqs > 1 else slice(2, 4)
        return Steps(prefill[:, 0], prefill[:, keep].astype(np.int64), decode[:, 0], decode[:, 1:].astype(np.int64))
