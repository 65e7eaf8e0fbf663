"""LM inference, last step: requests in and out of slots, prefill and decode chunks, tokens to whoever waits for them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gaudicc.buckets import Bucket
from gaudicc.errors import InputError, ShapeError, StateError, Where
from gaudicc.lm.graphs import Graphs
from gaudicc.lm.request import GenerationOptions, OnToken, Request, check_prompt, check_room, rows_of
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


@dataclass(frozen=True)
class Generation:
    """What `generate` returns with `return_dict_in_generate=True`.

    Attributes:
        sequences: int64 `[batch, prompt columns + new tokens]`.
        logits: one per new token, float32 `[batch, vocabulary]`; rows that ended before are 0.
        reasons: why each row ended.
    """

    sequences: Tensor
    logits: tuple[Tensor, ...]
    reasons: tuple[str, ...]


class CompiledLM:
    """A language model compiled for generation.

    Requests share the slots of one state. One thread at a time drives the device: whoever waits for tokens.

    Attributes:
        stats: counters.
        notes: what was decided at compile time.
        default_stop: stop ids where a call names none.

    Args:
        graphs: the recorded graphs.
        chunk: most decode steps between two reads of the host.
        default_stop: stop ids where a call names none.
        pad: id that fills rows of `generate` which ended before others.
        notes: for the user.
    """

    def __init__(
        self,
        graphs: Graphs,
        *,
        chunk: int,
        default_stop: tuple[int, ...] = (),
        pad: int | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        assert isinstance(graphs.counters, LmStats), "compile_lm makes them so"
        self.stats = graphs.counters
        self.default_stop = default_stop
        self.notes = notes
        self._graphs, self._chunk, self._pad = graphs, chunk, pad
        self._limits = graphs.state.limits
        self._waiting: deque[Request] = deque()
        self._running: dict[int, Request] = {}
        self._free = list(range(self._limits.slots))
        self._lock = threading.RLock()

    @property
    def buckets(self) -> dict[str, tuple[Bucket, ...]]:
        """The buckets recorded so far, by entry point."""
        return self._graphs.buckets

    @property
    def bytes_held(self) -> int:
        """Bytes of the state: key/value caches and what each request needs between two tokens."""
        return self._graphs.state.bytes_held

    def warm_up(
        self, *, do_sample: bool = False, sessions: bool = False, progress: Callable[[str, Bucket], None] | None = None
    ) -> None:
        """Records every bucket, so that no later call does.

        Args:
            do_sample: the graphs that sample instead of the greedy ones.
            sessions: also the graphs of later turns of sessions.
            progress: called before each with the entry point and the bucket.
        """
        with self._lock:
            for kind, bucket in self._graphs.warm_up(sampled=do_sample, sessions=sessions):
                if progress is not None:
                    progress(kind, bucket)

    def submit(
        self, prompt: Sequence[int] | Tensor, *, on_token: OnToken | None = None, output_logits: bool = False, **how: Any
    ) -> Request:
        """Queues one prompt; `step` or `run` carries it on, beside the others.

        Args:
            prompt: token ids.
            on_token: called with each new token, by the thread that drives the device. If it raises, this request ends.
            output_logits: keep the logits of each new token in `Request.logits`.
            **how: fields of `GenerationOptions`.

        Raises:
            InputError: an id or an option has no meaning; ShapeError: it does not fit the context.
        """
        ids = prompt.tolist() if isinstance(prompt, Tensor) else prompt
        request = Request(check_prompt(ids, self._graphs.model.vocabulary), self._options(how), on_token=on_token)
        request.logits = [] if output_logits else None
        return self._enqueue(request)

    def _options(self, how: dict[str, Any]) -> GenerationOptions:
        known = GenerationOptions.__slots__
        if unknown := [name for name in how if name not in known]:
            raise InputError(
                f"there is no option {unknown[0]}",
                where=Where(stage="generate"),
                hint=f"the options are {', '.join(known)}",
            )
        return GenerationOptions(**{"stop": self.default_stop, **how})

    def _enqueue(self, request: Request) -> Request:
        check_room(request, self._limits)
        with self._lock:
            self._waiting.append(request)
        return request

    def step(self) -> bool:
        """Admits what waits and fits, then runs one chunk of decode steps.

        Returns:
            Whether any request is left.
        """
        with self._lock:
            self._drop_cancelled()
            self._admit()
            self._drop_cancelled()
            if self._running:
                self._decode()
            return bool(self._running or self._waiting)

    def run(self, requests: Iterable[Request] = ()) -> None:
        """Steps until these requests have ended; all there are, if none are named.

        Raises:
            GaudiccError: the error of the first of them that failed, once all have ended.
        """
        wanted = list(requests)
        while any(not request.done for request in wanted) if wanted else (self._running or self._waiting):
            self.step()
        for request in wanted:
            if request.error is not None:
                raise request.error

    def _drop_cancelled(self) -> None:
        for request in [r for r in (*self._running.values(), *self._waiting) if r.cancel_wanted]:
            self._end(request, "cancelled" if request.error is None else "error")

    def _admit(self) -> None:
        """Prefills what waits, together where the prompts are of one bucket."""
        groups: dict[Any, list[Request]] = {}
        axes = self._graphs.axes
        while self._waiting and (self._free or self._waiting[0].slot is not None):
            request = self._waiting.popleft()
            if request.slot is None:
                request.slot = self._free.pop(0)
            self._running[request.slot] = request
            self.stats.requests += 1
            queries = next(size for size in axes.queries if size >= len(request.prompt))
            groups.setdefault((bool(request.kept), queries), []).append(request)
        for group in groups.values():
            self.stats.prefills += 1
            logits = self._graphs.prefill(group, sampled=any(request.options.do_sample for request in group))
            for row, request in enumerate(group):
                request.position = request.kept + len(request.prompt) - 1
                _keep_logits(request, logits[row])
            self._read(group)

    def _decode(self) -> None:
        """One chunk: no read of the host between its steps."""
        running = list(self._running.values())
        most = max(request.limit - request.position for request in running)
        steps = 1 if any(request.logits is not None for request in running) else min(self._chunk, most)
        reach = max(min(request.position + steps, request.limit) for request in running)
        step = self._graphs.decode(
            max(self._running) + 1, reach, sampled=any(request.options.do_sample for request in running)
        )
        for _ in range(steps):
            logits = step()
        self.stats.decode_steps += steps
        for request in running:
            assert request.slot is not None, "it is running"
            _keep_logits(request, logits[request.slot])
        self._read(running)

    def _read(self, requests: Sequence[Request]) -> None:
        """The one read of the host: new tokens, and who has ended."""
        state = self._graphs.state
        self.stats.host_reads += 1
        positions, live = state.position.tolist(), state.live.tolist()
        history = state.history.view(-1, self._limits.context + 1)
        for request in requests:
            assert request.slot is not None, "it is running"
            reached = positions[request.slot]
            tokens = history[request.slot, request.position + 1 : reached + 1].tolist()
            request.position = reached
            self.stats.tokens += len(tokens)
            request.take(tokens)
            if request.error is None and not live[request.slot]:
                self._end(request, "stop" if tokens and tokens[-1] in request.options.stop else "length")

    def _end(self, request: Request, reason: str) -> None:
        request.reason = reason
        if request in self._waiting:
            self._waiting.remove(request)
        if request.slot is not None and self._running.get(request.slot) is request:
            del self._running[request.slot]
            self._graphs.state.live[request.slot] = 0
        if request.slot is not None and not request.keep:
            self._free = sorted([*self._free, request.slot])
            request.slot = None

    def stream(self, prompt: Sequence[int] | Tensor, **how: Any) -> Iterator[int]:
        """Yields the new tokens of one prompt as they come. Leaving the loop cancels it.

        Args:
            prompt: token ids.
            **how: fields of `GenerationOptions`.
        """
        return self._follow(self.submit(prompt, **how))

    def _follow(self, request: Request) -> Iterator[int]:
        given = 0
        try:
            while True:
                while given < len(request.tokens):
                    given += 1
                    yield request.tokens[given - 1]
                if request.done:
                    return
                self.step()
        finally:
            if not request.done:
                request.cancel()
                with self._lock:
                    self._drop_cancelled()

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        seed: int = 0,
        return_dict_in_generate: bool = False,
        output_logits: bool = False,
        **how: Any,
    ) -> Tensor | Generation:
        """Continues a batch of prompts, with the arguments of transformers' `generate`.

        Args:
            input_ids: int64 `[batch, columns]`.
            attention_mask: 0 for pads, on either side.
            eos_token_id: ids that end a row; by default the model's own.
            pad_token_id: fills rows that ended before others; by default the model's own, or 0.
            seed: row i samples with `seed + i`.
            return_dict_in_generate: return a `Generation`.
            output_logits: with the logits of each new token.
            **how: `max_new_tokens`, `do_sample`, `temperature`, `top_k`, `top_p`.

        Returns:
            int64 `[batch, columns + new tokens]`: the columns given, then the new tokens.

        Raises:
            InputError: an id or an option has no meaning; ShapeError: a prompt or the batch is too large.
        """
        rows = rows_of(input_ids, attention_mask)
        if len(rows) > self._limits.slots:
            raise ShapeError(
                f"the batch has {len(rows)} rows, the model was compiled for {self._limits.slots}",
                where=Where(stage="generate"),
                hint="compile with a larger max_batch, or submit() the prompts: what does not fit waits",
            )
        if eos_token_id is not None:
            how["stop"] = (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)
        vocabulary = self._graphs.model.vocabulary
        requests = [
            Request(
                check_prompt(row, vocabulary),
                self._options({**how, "seed": seed + i}),
                logits=[] if output_logits else None,
            )
            for i, row in enumerate(rows)
        ]
        for request in requests:
            check_room(request, self._limits)
        with self._lock:
            self._waiting.extend(requests)
        self.run(requests)
        pad = pad_token_id if pad_token_id is not None else self._pad
        new = [torch.tensor(request.tokens) for request in requests]
        tail = torch.nn.utils.rnn.pad_sequence(new, batch_first=True, padding_value=pad or 0)
        sequences = torch.cat([input_ids.view(len(rows), -1), tail], dim=1)
        if not return_dict_in_generate:
            return sequences
        return Generation(sequences, _stack_logits(requests), tuple(str(request.reason) for request in requests))

    def session(self) -> Session:
        """A conversation that keeps its keys and values between turns; it holds a slot until it is closed."""
        return Session(self)


class Session:
    """One conversation. Each turn reads only what is new.

    Args:
        lm: the compiled model.

    Attributes:
        tokens: everything so far, prompts and answers.
    """

    def __init__(self, lm: CompiledLM) -> None:
        self.tokens: list[int] = []
        self._lm = lm
        self._kept = 0
        self._slot: int | None = None
        self._last: Request | None = None

    def stream(self, prompt: Sequence[int] | Tensor, **how: Any) -> Iterator[int]:
        """Yields the tokens of the next turn's answer as they come.

        Args:
            prompt: what is new.
            **how: fields of `GenerationOptions`.

        Raises:
            StateError: the turn before has not ended.
        """
        return self._lm._follow(self._submit(prompt, how))

    def generate(self, prompt: Sequence[int] | Tensor, **how: Any) -> list[int]:
        """The tokens of the next turn's answer; as `stream`."""
        request = self._submit(prompt, how)
        self._lm.run([request])
        return request.tokens

    def _submit(self, prompt: Sequence[int] | Tensor, how: dict[str, Any]) -> Request:
        self._settle()
        ids = prompt.tolist() if isinstance(prompt, Tensor) else list(prompt)
        new = check_prompt([*self.tokens[self._kept :], *ids], self._lm._graphs.model.vocabulary)
        request = Request(new, self._lm._options(how), kept=self._kept, keep=True, slot=self._slot)
        self._lm._enqueue(request)
        self.tokens.extend(ids)
        self._last = request
        return request

    def _settle(self) -> None:
        """Takes over what the last turn left: its tokens, its slot, and how much of it is in the cache."""
        last = self._last
        if last is None:
            return
        if not last.done:
            raise StateError("the turn before has not ended", hint="read its tokens to the end, or cancel it")
        self.tokens.extend(last.tokens)
        self._kept, self._slot, self._last = last.position if last.tokens else self._kept, last.slot, None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the slot back; a turn that has not ended is cancelled."""
        if self._last is not None and not self._last.done:
            self._last.cancel()
            self._lm.step()
        self._settle()
        if self._slot is not None:
            with self._lm._lock:
                self._lm._free = sorted([*self._lm._free, self._slot])
            self._slot = None


def _keep_logits(request: Request, logits: Tensor) -> None:
    if request.logits is not None:
        request.logits.append(logits.clone())


def _stack_logits(requests: Sequence[Request]) -> tuple[Tensor, ...]:
    kept = [request.logits for request in requests if request.logits]
    if not kept:
        return ()
    blank = torch.zeros_like(kept[0][0])
    steps = max(map(len, kept))
    return tuple(torch.stack([row[i] if i < len(row) else blank for row in kept]) for i in range(steps))
