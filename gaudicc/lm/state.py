"""LM inference, first step: the state that all recorded graphs of one language model share.

Whole buffers, owned by the compiled model. Graphs write them by index and read narrowed values; pads write a dump row.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gaudicc.capture.repeats import may_keep


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What one layer keeps of each token.

    Attributes:
        heads: key/value heads.
        key: width of a key.
        value: width of a value; 0: there are keys only, as those of an indexer that chooses what is attended to.
    """

    heads: int
    key: int
    value: int


@dataclass(frozen=True, slots=True)
class CarriedShape:
    """What a layer carries from token to token instead: the state of a recurrence, of one size however long the prompt is.

    Attributes:
        name: of its buffer.
        shape: of one request's.
        dtype: of it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes that the buffers are made for.

    Attributes:
        slots: requests that can be in flight at once.
        context: tokens of one request, prompt and new ones together.
        stops: stop ids of one request.
    """

    slots: int
    context: int
    stops: int


class LmState(nn.Module):
    """Key/value caches and what each request needs between two tokens.

    Keys and values have `context + 1` rows a slot and head, tokens as many a slot, of which the last is the dump row; all but
    keys and values have a dump slot behind the others, for rows of a batch that are pads. What one head attends to lies in
    one piece, since every decode step reads all of it and writes one row: token by token, the reads took 1.6 times as
    long (measured on CPU, keys from memory).

    Attributes:
        history: int64 `[(slots + 1) * (context + 1)]`, tokens by slot and position.
        position: int64 `[slots + 1]`, where the token is that the next decode step reads.
        live: int64 `[slots + 1]`, 1 while the request goes on.
        limit: int64 `[slots + 1]`, the position of the last token it may have.
        stop: int64 `[slots + 1, stops]`, ids that end it; -1 where there are fewer.
        temperature: float32 `[slots + 1]`; 0 is greedy.
        top_k: int64 `[slots + 1]`, how many of the likeliest tokens are sampled from.
        top_p: float32 `[slots + 1]`, the probability mass sampled from.
        min_p: float32 `[slots + 1]`, the least probability sampled from, as a part of the largest.
        repetition_penalty: float32 `[slots + 1]`, divides the logits of tokens that the request has already; 1 leaves them.
        uniform: float32 `[slots + 1, context + 1]`, one random number per position, drawn at admission.

    Args:
        shapes: one per layer that keeps keys and values.
        dtype: of keys and values.
        limits: sizes.
        carried: what recurrences carry; one buffer `[slots + 1, ...]` each.
    """

    history: Tensor
    position: Tensor
    live: Tensor
    limit: Tensor
    stop: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition_penalty: Tensor
    uniform: Tensor

    def __init__(
        self,
        shapes: tuple[CacheShape, ...],
        dtype: torch.dtype,
        limits: Limits,
        carried: tuple[CarriedShape, ...] = (),
    ) -> None:
        super().__init__()
        self.limits = limits
        self.heads = tuple(shape.heads for shape in shapes)
        slots = limits.slots + 1
        for i, shape in enumerate(shapes):
            rows = limits.slots * shape.heads * (limits.context + 1)
            self.register_buffer(f"keys_{i}", torch.zeros(rows, shape.key, dtype=dtype))
            if shape.value:
                self.register_buffer(f"values_{i}", torch.zeros(rows, shape.value, dtype=dtype))
        for each in carried:
            self.register_buffer(each.name, torch.zeros(slots, *each.shape, dtype=each.dtype))
        self.register_buffer("history", torch.zeros(slots * (limits.context + 1), dtype=torch.int64))
        for name in ("position", "live", "limit"):
            self.register_buffer(name, torch.zeros(slots, dtype=torch.int64))
        self.register_buffer("stop", torch.full((slots, limits.stops), -1))
        self.register_buffer("temperature", torch.zeros(slots))
        self.register_buffer("top_k", torch.ones(slots, dtype=torch.int64))
        self.register_buffer("top_p", torch.ones(slots))
        self.register_buffer("min_p", torch.zeros(slots))
        self.register_buffer("repetition_penalty", torch.ones(slots))
        self.register_buffer("uniform", torch.zeros(slots, limits.context + 1))

    @property
    def device(self) -> torch.device:
        """Where the buffers are: beside the weights."""
        return self.history.device

    @property
    def bytes_held(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())


@dataclass
class Memory:
    """The state during one step. The step is a function of it: new values are collected, no buffer is touched.

    Capture would otherwise have to make the whole graph functional again, which takes twice as long as all the rest.

    Attributes:
        state: the buffers as they were before the step.
        written: name -> new value of a whole buffer.
    """

    state: LmState
    written: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        may_keep(self.written)

    def read(self, name: str) -> Tensor:
        """A buffer as it is now."""
        return self.written[name] if name in self.written else self.state.get_buffer(name)

    def write(self, name: str, rows: Tensor, values: Tensor) -> Tensor:
        """Puts values into rows of a buffer, along dim 0, and gives the buffer back as it is then."""
        self.written[name] = torch.index_copy(self.read(name), 0, rows, values)
        return self.written[name]
