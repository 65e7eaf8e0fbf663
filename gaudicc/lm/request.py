"""LM inference, sixth step: what a user asks for, checked, and what came of it so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gaudicc.errors import GaudiccError, InputError, ShapeError, Where
from gaudicc.lm.state import Limits

OnToken = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How one request is continued.

    Attributes:
        max_new_tokens: tokens at which it ends.
        do_sample: draw tokens; False takes the likeliest.
        temperature: divides the logits.
        top_k: sample among so many of the likeliest tokens; None: among all.
        top_p: sample among the likeliest tokens that reach this probability together.
        min_p: sample among tokens that have this part of the largest probability at least.
        repetition_penalty: divides the logits of tokens that the prompt or the continuation has already.
        seed: of the request's random numbers.
        stop: ids that end it; they are part of the result.

    Raises:
        InputError: a value that has no meaning.
    """

    max_new_tokens: int = 20
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _demand(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "1 or more")
        positive = math.isfinite(self.temperature) and self.temperature > 0
        _demand(positive, "temperature", self.temperature, "above 0; do_sample=False is greedy")
        _demand(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "1 or more, or None")
        _demand(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _demand(0 <= self.min_p <= 1, "min_p", self.min_p, "0 or more, and at most 1")
        penalty = self.repetition_penalty
        _demand(math.isfinite(penalty) and penalty > 0, "repetition_penalty", penalty, "above 0; 1 is none")
        _demand(0 <= self.seed < 2**63, "seed", self.seed, "0 or more, and below 2**63")

    @property
    def plain(self) -> bool:
        """Whether each token is the likeliest by the logits as they are."""
        return not self.do_sample and self.repetition_penalty == 1


def _demand(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise InputError(f"{name} is {value}", where=Where(stage="generate"), hint=f"{name} must be {wanted}")


@dataclass(eq=False)
class Request:
    """One prompt and its continuation.

    Attributes:
        prompt: the ids that the next prefill reads.
        options: how it is continued.
        kept: tokens whose keys and values are in its slot already, from earlier turns of a session.
        keep: hold the slot after it ended, for the next turn of a session.
        on_token: called with each new token.
        tokens: the new tokens so far.
        logits: of each new token, float32 `[vocabulary]`, if they are asked for.
        reason: why it ended: `stop`, `length`, `cancelled` or `error`; None while it goes on.
        error: what ended it, e.g. what `on_token` raised.
        slot: while it holds one.
        position: of its newest token.
        cancel_wanted: it ends before the next decode chunk.
    """

    prompt: tuple[int, ...]
    options: GenerationOptions
    kept: int = 0
    keep: bool = False
    on_token: OnToken | None = None
    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] | None = None
    reason: str | None = None
    error: GaudiccError | None = None
    slot: int | None = None
    position: int = 0
    cancel_wanted: bool = False

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.reason is not None

    @property
    def limit(self) -> int:
        """The position of the last token it may have."""
        return self.kept + len(self.prompt) + self.options.max_new_tokens - 1

    def cancel(self) -> None:
        """Ends it before the next decode chunk; its tokens so far stay."""
        self.cancel_wanted = True

    def take(self, tokens: Sequence[int]) -> None:
        """Adds new tokens and hands them to `on_token`, up to the first that makes it raise."""
        for token in tokens:
            self.tokens.append(token)
            if self.on_token is None:
                continue
            try:
                self.on_token(token)
            except Exception as error:
                self.fail(error)
                return

    def fail(self, error: Exception) -> None:
        """Ends it with an error; what the user's own code raised is told apart from ours."""
        self.cancel_wanted = True
        if isinstance(error, GaudiccError):
            self.error = error
            return
        self.error = GaudiccError(
            f"the request ended with {type(error).__name__}: {error}",
            where=Where(stage="generate"),
            hint="mend what raised it; the other requests go on",
        )
        self.error.__cause__ = error

    def keep_logits(self, logits: Tensor) -> None:
        """Keeps the logits of the next token, if they are asked for."""
        if self.logits is not None:
            self.logits.append(logits.clone())


def check_prompt(ids: Sequence[int], vocabulary: int) -> tuple[int, ...]:
    """The ids of a prompt as a tuple.

    Raises:
        InputError: there are none, or one is not an id of the vocabulary.
    """
    prompt = tuple(ids)
    if not prompt:
        raise InputError("the prompt is empty", where=Where(stage="generate"), hint="give one id at least")
    for column, token in enumerate(prompt):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary:
            raise InputError(
                f"id {token!r} at column {column} of the prompt is none of the vocabulary's {vocabulary}",
                where=Where(stage="generate"),
                hint="use the tokenizer of this very model",
            )
    return prompt


def check_room(request: Request, limits: Limits) -> None:
    """Refuses what does not fit the buffers.

    Raises:
        ShapeError: prompt and new tokens are more than the context, or there are too many stop ids.
    """
    total = request.limit + 1
    if total > limits.context:
        raise ShapeError(
            f"{request.kept + len(request.prompt)} tokens and {request.options.max_new_tokens} new ones are {total}, "
            f"the context holds {limits.context}",
            where=Where(stage="generate"),
            hint="shorten the prompt, lower max_new_tokens, or compile with a larger max_context",
        )
    if len(request.options.stop) > limits.stops:
        raise ShapeError(
            f"{len(request.options.stop)} stop ids are given, {limits.stops} fit",
            where=Where(stage="generate"),
            hint="compile with a larger max_stop_ids",
        )


def rows_of(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """The prompts of a padded batch; pads, on either side, are left out.

    Args:
        input_ids: integers `[batch, columns]`, or `[columns]`.
        attention_mask: 1 for tokens and 0 for pads, as `input_ids`; None: all are tokens.

    Raises:
        InputError: another dtype, rank or size.
    """
    if not isinstance(input_ids, Tensor) or input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        kind = str(input_ids.dtype) if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise InputError(f"input_ids are {kind}", where=Where(stage="generate"), hint="pass int64 ids")
    if input_ids.dim() not in (1, 2):
        raise InputError(f"input_ids have {input_ids.dim()} dims", hint="pass [batch, columns]")
    ids = input_ids if input_ids.dim() == 2 else input_ids[None]
    if attention_mask is None:
        return [list(map(int, row)) for row in ids.tolist()]
    mask = attention_mask if attention_mask.dim() == 2 else attention_mask[None]
    if mask.shape != ids.shape:
        raise InputError(f"attention_mask is {list(mask.shape)}, input_ids are {list(ids.shape)}")
    rows = zip(ids.tolist(), mask.tolist(), strict=True)
    return [[int(token) for token, real in zip(row, marks, strict=True) if real] for row, marks in rows]
