"""LM inference, last step: what the user holds; transformers' `generate`, streams, sessions and requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gaudicc.buckets import Bucket
from gaudicc.errors import InputError, ShapeError, Where
from gaudicc.lm.defaults import Defaults
from gaudicc.lm.graphs import Graphs
from gaudicc.lm.request import GenerationOptions, OnToken, Request, check_prompt, rows_of
from gaudicc.lm.scheduler import LmStats, Scheduler
from gaudicc.lm.session import Session
from gaudicc.lm.steps import carried_by


@dataclass(frozen=True)
class Generation:
    """What `generate` returns with `return_dict_in_generate=True`.

    Attributes:
        sequences: int64 `[batch, prompt columns + new tokens]`.
        logits: one per new token, float32 `[batch, vocabulary]`; rows that ended before are 0.
        reasons: why each row ended: `stop` or `length`.
    """

    sequences: Tensor
    logits: tuple[Tensor, ...]
    reasons: tuple[str, ...]


class CompiledLM:
    """A language model compiled for generation.

    Attributes:
        stats: counters.
        notes: what was decided at compile time.
        defaults: what holds where a call names nothing else.

    Args:
        graphs: the recorded graphs.
        stats: what they count into.
        chunk: most decode steps between two reads of the host.
        defaults: what holds where a call names nothing else.
        notes: for the user.
    """

    def __init__(
        self,
        graphs: Graphs,
        stats: LmStats,
        *,
        chunk: int,
        defaults: Defaults,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.stats, self.notes, self.defaults = stats, notes, defaults
        self._graphs = graphs
        self._scheduler = Scheduler(graphs, chunk, stats)

    @property
    def buckets(self) -> dict[str, tuple[Bucket, ...]]:
        """The buckets recorded so far, by entry point."""
        return self._graphs.buckets

    @property
    def bytes_held(self) -> int:
        """Bytes of the state: key/value caches and what each request needs between two tokens."""
        return self._graphs.state.bytes_held

    def warm_up(
        self,
        *,
        do_sample: bool | None = None,
        sessions: bool = False,
        progress: Callable[[str, Bucket], None] | None = None,
    ) -> None:
        """Records every bucket, so that no later call does.

        Args:
            do_sample: the graphs that sample, which those with a repetition penalty use too, or the greedy ones; None: those of
                a call that names nothing.
            sessions: also the graphs of later turns of sessions.
            progress: called before each with the entry point and the bucket.
        """
        sampled = not GenerationOptions(**self.defaults.options).plain if do_sample is None else do_sample
        with self._scheduler.lock:
            for kind, bucket in self._graphs.warm_up(sampled=sampled, sessions=sessions):
                if progress is not None:
                    progress(kind, bucket)

    def submit(
        self,
        prompt: Sequence[int] | Tensor,
        *,
        on_token: OnToken | None = None,
        output_logits: bool = False,
        **how: Any,
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
        request = self._make(prompt.tolist() if isinstance(prompt, Tensor) else prompt, how)
        request.on_token = on_token
        request.logits = [] if output_logits else None
        self._scheduler.enqueue([request])
        return request

    def step(self) -> bool:
        """Admits what waits and fits, then runs one chunk of decode steps. What fails is in `Request.error`.

        Returns:
            Whether any request is left.
        """
        return self._scheduler.step()

    def run(self, requests: Iterable[Request] = ()) -> None:
        """Steps until these requests have ended; all there are, if none are named.

        Raises:
            GaudiccError: the error of the first of those named that failed, once all of them have ended. Where none are
                named, `Request.error` tells.
        """
        wanted = list(requests)
        if wanted:
            self._scheduler.run(wanted)
            return
        while self._scheduler.step():
            pass

    def stream(self, prompt: Sequence[int] | Tensor, **how: Any) -> Iterator[int]:
        """Yields the new tokens of one prompt as they come. Leaving the loop cancels it.

        Args:
            prompt: token ids.
            **how: fields of `GenerationOptions`.
        """
        return self._scheduler.follow(self.submit(prompt, **how))

    def session(self) -> Session:
        """A conversation that keeps its keys and values between turns; it holds a slot until it is closed.

        Where layers carry a recurrence, each turn reads the whole conversation again.
        """
        return Session(self._scheduler, self._make, rereads=bool(carried_by(self._graphs.model)))

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
            **how: `max_new_tokens`, `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`; by default as
                the model's generation config says, and greedily 20 tokens where it says nothing.

        Returns:
            int64 `[batch, columns + new tokens]`: the columns given, then the new tokens.

        Raises:
            InputError: an id or an option has no meaning; ShapeError: a prompt or the batch is too large.
        """
        rows = rows_of(input_ids, attention_mask)
        self._refuse_wide(len(rows))
        if eos_token_id is not None:
            how["stop"] = (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)
        requests = [self._make(row, {**how, "seed": seed + i}) for i, row in enumerate(rows)]
        for request in requests:
            request.logits = [] if output_logits else None
        self._scheduler.enqueue(requests)
        self._scheduler.run(requests)
        fill = pad_token_id if pad_token_id is not None else self.defaults.pad or 0
        tail = pad_sequence([torch.tensor(request.tokens) for request in requests], True, fill)
        sequences = torch.cat([input_ids.view(len(rows), -1), tail.to(input_ids.device)], dim=1)
        if not return_dict_in_generate:
            return sequences
        return Generation(sequences, _by_step(requests), tuple(str(request.reason) for request in requests))

    def _refuse_wide(self, rows: int) -> None:
        slots = self._graphs.state.limits.slots
        if rows > slots:
            raise ShapeError(
                f"the batch has {rows} rows, the model was compiled for {slots}",
                where=Where(stage="generate"),
                hint="compile with a larger max_batch, or submit() the prompts: what does not fit waits",
            )

    def _make(self, prompt: Sequence[int], how: dict[str, Any]) -> Request:
        known = GenerationOptions.__slots__
        if unknown := [name for name in how if name not in known]:
            raise InputError(
                f"there is no option {unknown[0]}",
                where=Where(stage="generate"),
                hint=f"the options are {', '.join(known)}",
            )
        options = GenerationOptions(**{**self.defaults.options, "stop": self.defaults.stop, **how})
        return Request(check_prompt(prompt, self._graphs.model.vocabulary), options)


def _by_step(requests: Sequence[Request]) -> tuple[Tensor, ...]:
    """The logits of each new token of all rows."""
    kept = [request.logits for request in requests if request.logits]
    if not kept:
        return ()
    blank = torch.zeros_like(kept[0][0])
    return tuple(torch.stack([row[i] if i < len(row) else blank for row in kept]) for i in range(max(map(len, kept))))
