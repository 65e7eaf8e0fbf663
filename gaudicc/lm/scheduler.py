"""LM inference, eighth step: requests in and out of slots, prefills and chunks of decode steps, one read of the host each."""

from __future__ import annotations

import threading
from bisect import insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from gaudicc.errors import StateError, Where
from gaudicc.lm.axes import smallest
from gaudicc.lm.graphs import Graphs
from gaudicc.lm.request import Request, check_room
from gaudicc.runtime.runner import Counters


@dataclass
class LmStats(Counters):
    """Counters of a compiled language model; `host_ops` stays 0, for nothing is computed outside recorded graphs.

    Attributes:
        requests: requests admitted.
        prefills: prefill steps.
        decode_steps: decode steps.
        host_reads: how often the host read tokens: once per prefill and once per chunk of decode steps.
        tokens: new tokens delivered.
    """

    requests: int = 0
    prefills: int = 0
    decode_steps: int = 0
    host_reads: int = 0
    tokens: int = 0


class Scheduler:
    """Requests that share the slots of one state. One thread at a time drives the device: whoever waits for tokens.

    Args:
        graphs: the recorded graphs.
        chunk: most decode steps between two reads of the host.
        stats: counted into.

    Attributes:
        lock: held while the device is driven.
    """

    def __init__(self, graphs: Graphs, chunk: int, stats: LmStats) -> None:
        self.lock = threading.RLock()
        self._graphs, self._chunk, self._stats = graphs, chunk, stats
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}
        self._free = list(range(graphs.state.limits.slots))

    def enqueue(self, requests: Sequence[Request]) -> None:
        """Queues requests, all or none.

        Raises:
            ShapeError: one does not fit the context.
        """
        for request in requests:
            check_room(request, self._graphs.state.limits)
        with self.lock:
            self._waiting.extend(requests)

    def release(self, slot: int) -> None:
        """Takes back a slot that was kept for a session."""
        with self.lock:
            insort(self._free, slot)

    def step(self) -> bool:
        """Admits what waits and fits, then runs one chunk of decode steps.

        A request that fails ends with its error; the step itself raises nothing, for it serves the others too.

        Returns:
            Whether any request is left.
        """
        with self.lock:
            self._drop_cancelled()
            self._admit()
            self._drop_cancelled()
            if self._running:
                self._decode(list(self._running.values()))
                self._drop_cancelled()
            return bool(self._running or self._waiting)

    def run(self, requests: Iterable[Request]) -> None:
        """Steps until these requests have ended; an interrupt cancels them.

        Raises:
            GaudiccError: the error of the first of them that failed, once all have ended.
        """
        wanted = list(requests)
        try:
            while any(not request.done for request in wanted):
                self.step()
        except BaseException:
            for request in wanted:
                self.cancel(request)
            raise
        for request in wanted:
            if request.error is not None:
                raise request.error

    def follow(self, request: Request) -> Iterator[int]:
        """Yields a queued request's tokens as they come. Leaving the loop cancels it."""
        given = 0
        try:
            while given < len(request.tokens) or not request.done:
                if given == len(request.tokens):
                    self.step()
                    continue
                given += 1
                yield request.tokens[given - 1]
            if request.error is not None:
                raise request.error
        finally:
            self.cancel(request)

    def cancel(self, request: Request) -> None:
        """Ends a request now."""
        request.cancel()
        with self.lock:
            self._drop_cancelled()

    def _drop_cancelled(self) -> None:
        for request in [r for r in (*self._running.values(), *self._waiting) if r.cancel_wanted]:
            self._end(request, "cancelled" if request.error is None else "error")

    def _admit(self) -> None:
        """Prefills what waits, together where the prompts are of one bucket."""
        groups: dict[tuple[bool, int], list[Request]] = {}
        for request in list(self._waiting):
            if request.slot is None and not self._free:
                continue
            self._waiting.remove(request)
            if request.slot is None:
                request.slot = self._free.pop(0)
            self._running[request.slot] = request
            key = (bool(request.kept), smallest(self._graphs.axes.queries, len(request.prompt)))
            groups.setdefault(key, []).append(request)
        for group in groups.values():
            with self._failing(group):
                self._prefill(group)
        if self._waiting and not self._running and not self._free:
            held = StateError(
                "every slot is held by a session between two turns",
                where=Where(stage="generate"),
                hint="close a session, or compile with a larger max_batch",
            )
            self._fail(list(self._waiting), held)

    def _prefill(self, group: Sequence[Request]) -> None:
        logits = self._graphs.prefill(group, sampled=not all(request.options.plain for request in group))
        self._stats.prefills += 1
        self._stats.requests += len(group)
        for row, request in enumerate(group):
            request.position = request.kept + len(request.prompt) - 1
            if request.logits is not None:
                request.keep_logits(logits[row])
        self._read(group)

    def _decode(self, running: Sequence[Request]) -> None:
        """One chunk: no read of the host between its steps."""
        left = max(request.limit - request.position for request in running)
        steps = 1 if any(request.logits is not None for request in running) else min(self._chunk, left)
        reach = max(min(request.position + steps, request.limit) for request in running)
        sampled = not all(request.options.plain for request in running)
        with self._failing(running):
            step = self._graphs.decode(max(self._running) + 1, reach, sampled=sampled)
            try:
                for _ in range(steps):
                    logits = step()
                    self._stats.decode_steps += 1
                    self._keep(running, logits)
            finally:  # what interrupts between two steps must not leave the host behind the device
                self._read(running)

    @contextmanager
    def _failing(self, requests: Sequence[Request]) -> Iterator[None]:
        """Ends these requests with what is raised inside."""
        try:
            yield
        except Exception as error:
            self._fail(requests, error)

    def _keep(self, running: Sequence[Request], logits: Tensor) -> None:
        for request in running:
            if request.logits is not None and request.slot is not None:
                request.keep_logits(logits[request.slot])

    def _read(self, requests: Sequence[Request]) -> None:
        """The one read of the host: new tokens, and who has ended."""
        state, fetch = self._graphs.state, self._graphs.device.fetch
        self._stats.host_reads += 1
        positions, live = fetch(state.position).tolist(), fetch(state.live).tolist()
        history = fetch(state.history).view(-1, state.limits.context + 1)
        for request in requests:
            if request.slot is None:
                continue
            reached = positions[request.slot]
            tokens = history[request.slot, request.position + 1 : reached + 1].tolist()
            request.position = reached
            self._stats.tokens += len(tokens)
            request.take(tokens)
            if request.error is None and not live[request.slot]:
                self._end(request, "stop" if request.tokens[-1] in request.options.stop else "length")

    def _fail(self, requests: Sequence[Request], error: Exception) -> None:
        for request in requests:
            if not request.done:
                request.fail(error)
                self._end(request, "error")

    def _end(self, request: Request, reason: str) -> None:
        request.reason = reason
        if request in self._waiting:
            self._waiting.remove(request)
        slot = request.slot
        if slot is None:
            return
        if self._running.get(slot) is request:
            del self._running[slot]
            self._graphs.device.fetch(self._graphs.state.live)[slot] = 0
        if not request.keep:
            request.slot = None
            insort(self._free, slot)
