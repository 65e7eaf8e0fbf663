"""LM inference, fourth step: prefill and decode as modules to be captured, each a whole step from state to state.

Between two tokens of a request nothing goes through the host: a decode step takes the current token from the state,
and leaves the next one there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gaudicc.lm.cache import AnySlotsCache, Cache, FirstSlotsCache, FreshCache, StepCache, rows_by_heads
from gaudicc.lm.sampling import Choice, greedy, penalized, sample
from gaudicc.lm.state import CacheShape, CarriedShape, LmState, Memory


class LanguageModel(Protocol):
    """A causal language model behind one interface; `nn.Module`s that `gaudicc.lm` can capture.

    Attributes:
        shapes: what each layer keeps of a token.
        dtype: of keys and values.
        vocabulary: how many tokens there are.
        context: most positions it knows, or None.

    A model with recurrences has an attribute `carried` too: one `CarriedShape` for each state that a layer carries from
    token to token.
    """

    shapes: tuple[CacheShape, ...]
    dtype: torch.dtype
    vocabulary: int
    context: int | None

    def __call__(self, ids: Tensor, cache: Cache, last: Tensor | None) -> Tensor:
        """Logits of one query per row.

        Args:
            ids: int64 `[batch, queries]`.
            cache: positions of the queries, and the keys and values before them.
            last: int64 `[batch]`, which query; None: there is only one.

        Returns:
            float32 `[batch, vocabulary]`.
        """
        ...


def carried_by(model: LanguageModel) -> tuple[CarriedShape, ...]:
    """What the recurrences of a model carry; models without them need not say so."""
    shapes: tuple[CarriedShape, ...] = getattr(model, "carried", ())
    return shapes


class Admission(NamedTuple):
    """What a prefill writes into the state for each row of its batch; see `LmState`.

    Attributes:
        limit: int64 `[batch]`.
        stop: int64 `[batch, stops]`.
        temperature: float32 `[batch]`.
        top_k: int64 `[batch]`.
        top_p: float32 `[batch]`.
        min_p: float32 `[batch]`.
        repetition_penalty: float32 `[batch]`.
        uniform: float32 `[batch, context + 1]`.
    """

    limit: Tensor
    stop: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition_penalty: Tensor
    uniform: Tensor


Result = tuple[Tensor, dict[str, Tensor]]
"""What a step gives: logits `[batch, vocabulary]`, and name -> new value of each state buffer that it writes."""


class _Step(nn.Module):
    """What prefill and decode share.

    Args:
        model: the language model.
        state: the buffers.
        sampled: draw tokens; False takes the likeliest of every row.
    """

    def __init__(self, model: LanguageModel, state: LmState, *, sampled: bool) -> None:
        super().__init__()
        self.model = model
        self.state = state
        self.sampled = sampled
        self.pads_left = bool(carried_by(model))

    def _advance(
        self, cache: StepCache, logits: Tensor, slots: Tensor, position: Tensor, live: Tensor, how: Admission
    ) -> Result:
        """Chooses the next token, puts it behind `position`, and ends rows that stop there.

        Args:
            cache: what the model wrote to; all tokens of a row are below the number of its keys.
            logits: `[batch, vocabulary]`.
            slots: int64 `[batch]`.
            position: int64 `[batch]`, of the token that gave the logits.
            live: int64 `[batch]`.
            how: of each row.
        """
        context, memory = self.state.limits.context, cache.memory
        if self.sampled:
            columns = torch.arange(cache.keys.shape[1], device=slots.device)
            tokens = memory.read("history").view(-1, context + 1)[:, : cache.keys.shape[1]].index_select(0, slots)
            scores = penalized(logits, tokens, columns <= position[:, None], how.repetition_penalty)
            uniform = torch.gather(how.uniform, 1, position[:, None])[:, 0]
            token = sample(scores, Choice(how.temperature, how.top_k, how.top_p, how.min_p, uniform))
        else:
            token = greedy(logits)
        following = position + live
        column = torch.where(live > 0, following, context)
        memory.write("history", slots * (context + 1) + column, token)
        hit = (token[:, None] == how.stop).to(torch.int64).sum(-1)
        goes_on = (hit == 0) & (following < how.limit)
        memory.write("position", slots, following)
        memory.write("live", slots, torch.where(goes_on, live, 0))
        return logits, memory.written


class Decode(_Step):
    """One token for each of the first slots."""

    def forward(self, slots: Tensor, context: Tensor) -> Result:
        """One step.

        Args:
            slots: int64 `[batch]`: 0, 1, 2, ...
            context: int64 `[length]`: 0, 1, 2, ...; every live row's position is below `length`.

        Returns:
            The logits, float32 `[batch, vocabulary]`, and the new state.
        """
        state, limits, batch = self.state, self.state.limits, slots.shape[0]
        position, live = state.position[:batch], state.live[:batch]
        ids = torch.gather(state.history.view(-1, limits.context + 1)[:batch], 1, position[:, None])
        column = torch.where(live > 0, position, limits.context)
        rows = rows_by_heads(state, slots, column[:, None])
        owners = torch.where(live > 0, slots, limits.slots)
        cache = FirstSlotsCache(Memory(state), position[:, None], context[None], rows, owners)
        logits: Tensor = self.model(ids, cache, None)
        how = Admission(*(getattr(state, name)[:batch] for name in Admission._fields))
        return self._advance(cache, logits, slots, position, live, how)


@dataclass(frozen=True)
class _Chunk:
    """The tokens of a prefill.

    Attributes:
        positions: int64 `[batch, queries]`, where each stands.
        columns: int64 `[batch, queries]`, the column of the buffers that it goes to.
        rows: the buffer rows of their keys, see `rows_by_heads`.
    """

    positions: Tensor
    columns: Tensor
    rows: dict[int, Tensor]


class Prefill(_Step):
    """The prompts of new requests, and the first token after each."""

    def forward(
        self,
        ids: Tensor,
        slots: Tensor,
        lengths: Tensor,
        limit: Tensor,
        stop: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        repetition_penalty: Tensor,
        uniform: Tensor,
    ) -> Result:
        """One step.

        Args:
            ids: int64 `[batch, queries]`, pads on the right; on the left of a model that carries a recurrence, whose state
                behind the last column is then that of the last token.
            slots: int64 `[batch]`; the dump slot for rows that are pads.
            lengths: int64 `[batch]`, tokens of each row, 1 or more.
            limit: see `Admission`, as the others.
            stop: int64 `[batch, stops]`.
            temperature: float32 `[batch]`.
            top_k: int64 `[batch]`.
            top_p: float32 `[batch]`.
            min_p: float32 `[batch]`.
            repetition_penalty: float32 `[batch]`.
            uniform: float32 `[batch, context + 1]`.

        Returns:
            The logits of each row's last token, float32 `[batch, vocabulary]`, and the new state.
        """
        chunk = self._chunk(ids, slots, torch.zeros_like(lengths), lengths)
        cache = FreshCache(Memory(self.state), chunk.positions, chunk.positions, chunk.rows, slots)
        how = Admission(limit, stop, temperature, top_k, top_p, min_p, repetition_penalty, uniform)
        return self._finish(ids, cache, chunk, slots, lengths, lengths, how)

    def _chunk(self, ids: Tensor, slots: Tensor, starts: Tensor, lengths: Tensor) -> _Chunk:
        limits = self.state.limits
        columns = torch.arange(ids.shape[1], device=ids.device)[None]
        if self.pads_left:
            columns = columns - (ids.shape[1] - lengths)[:, None]
        positions = starts[:, None] + columns
        inside = columns >= 0 if self.pads_left else columns < lengths[:, None]
        real = inside & (slots < limits.slots)[:, None]
        stored = torch.clamp(slots, max=limits.slots - 1)
        stored_at = torch.where(real, positions, limits.context)
        return _Chunk(positions, stored_at, rows_by_heads(self.state, stored, stored_at))

    def _finish(
        self,
        ids: Tensor,
        cache: StepCache,
        chunk: _Chunk,
        slots: Tensor,
        lengths: Tensor,
        total: Tensor,
        how: Admission,
    ) -> Result:
        last = torch.full_like(lengths, ids.shape[1] - 1) if self.pads_left else lengths - 1
        logits: Tensor = self.model(ids, cache, last)
        for name, value in how._asdict().items():
            cache.memory.write(name, slots, value)
        cells = slots[:, None] * (self.state.limits.context + 1) + chunk.columns
        cache.memory.write("history", cells.flatten(), ids.flatten())
        return self._advance(cache, logits, slots, total - 1, torch.ones_like(slots), how)


class Extend(Prefill):
    """More tokens for requests whose keys and values are kept: the next turn of a session."""

    def forward(  # type: ignore[override]
        self,
        ids: Tensor,
        slots: Tensor,
        starts: Tensor,
        lengths: Tensor,
        context: Tensor,
        limit: Tensor,
        stop: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        repetition_penalty: Tensor,
        uniform: Tensor,
    ) -> Result:
        """As `Prefill.forward`, behind what is there.

        Args:
            ids: int64 `[batch, queries]`, pads on the right.
            slots: int64 `[batch]`; the dump slot for rows that are pads.
            starts: int64 `[batch]`, how many tokens are kept.
            lengths: int64 `[batch]`, new tokens of each row, 1 or more.
            context: int64 `[length]`: 0, 1, 2, ...; all tokens of each row fit below `length`.
            limit: see `Admission`, as the others.
            stop: int64 `[batch, stops]`.
            temperature: float32 `[batch]`.
            top_k: int64 `[batch]`.
            top_p: float32 `[batch]`.
            min_p: float32 `[batch]`.
            repetition_penalty: float32 `[batch]`.
            uniform: float32 `[batch, context + 1]`.

        Returns:
            The logits of each row's last token, float32 `[batch, vocabulary]`, and the new state.
        """
        chunk = self._chunk(ids, slots, starts, lengths)
        readable = torch.clamp(slots, max=self.state.limits.slots - 1)
        cache = AnySlotsCache(Memory(self.state), chunk.positions, context[None], chunk.rows, slots, readable)
        how = Admission(limit, stop, temperature, top_k, top_p, min_p, repetition_penalty, uniform)
        return self._finish(ids, cache, chunk, slots, lengths, starts + lengths, how)
