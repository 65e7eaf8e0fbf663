"""LM inference: causal language models of transformers, by their own attention, mask and cache interfaces.

transformers dispatches attention and masks by name. Under the name `gaudicc`, masks are made of positions (the model's
own rule decides: causal, sliding, chunked), attention is one call with grouped heads, and the cache is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from gaudicc.errors import ModelRaisedError, UnsupportedInputError, Where
from gaudicc.lm.attention import attention
from gaudicc.lm.cache import Cache, mask
from gaudicc.lm.rehearsal import rehearse, sample_ids
from gaudicc.lm.transformers_cache import Layers, adapted, carry_on, layers_of

_NAME = "gaudicc"


class _Pass(NamedTuple):
    """One forward pass.

    Attributes:
        cache: ours.
        added: masks are added to scores; otherwise they say which keys are attended.
        pads_left: columns before a prompt have positions below 0.
    """

    cache: Cache
    added: bool
    pads_left: bool


_current: ContextVar[_Pass] = ContextVar("the forward pass of this thread")


class TransformersModel(nn.Module):
    """A causal LM of transformers as a `LanguageModel`.

    Args:
        model: with an output embedding, and with layers that keep keys and values of every token, or carry the state of a
            recurrence.

    Raises:
        ModelRaisedError: the model fails in eager.
        UnsupportedInputError: the model keeps something else between tokens, has no output embedding, or computes something
            else on our cache than alone.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        _register()
        config = model.config.get_text_config(decoder=True)
        self.inner: Any = model
        self.vocabulary = int(config.vocab_size)
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self._head = _head(model)
        self._added = not any(_calls_by_name(part) for part in model.modules())
        ids = sample_ids(config, model.device)
        logits, self._layers = _probe(model, ids)
        self.dtype, self.shapes, self.carried = self._layers.dtype, self._layers.shapes, self._layers.carried
        if not logits.is_meta:
            rehearse(type(model).__name__, self, ids, logits)

    def forward(self, ids: Tensor, cache: Cache, last: Tensor | None) -> Tensor:
        """See `LanguageModel.__call__`."""
        with _as_ours(self.inner), _last_only(self._head, last):
            token = _current.set(_Pass(cache, self._added, bool(self.carried)))
            theirs = adapted(cache, self._layers)
            try:
                placed = _placed(cache, bool(self.carried))
                output = self.inner(input_ids=ids, use_cache=True, **{self._layers.argument: theirs}, **placed)
            finally:
                _current.reset(token)
            carry_on(cache, theirs, self._layers)
        logits: Tensor = output.logits[:, -1]
        return logits.float()


def _placed(cache: Cache, pads_left: bool) -> dict[str, Tensor]:
    """Positions; and which columns are tokens, where recurrences must know."""
    positions = cache.positions
    if not pads_left:
        return {"position_ids": positions}
    given = {"position_ids": torch.clamp(positions, min=0)}
    if not cache.continues:  # one token alone is none
        given["attention_mask"] = (positions >= 0).to(torch.int64)
    return given


def _calls_by_name(part: nn.Module) -> bool:
    """Whether a model's attention is called by name; one that is written out adds the mask to the scores."""
    return getattr(part, "_supports_attention_backend", False)


def _head(model: Any) -> nn.Module:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise UnsupportedInputError(
            f"{type(model).__name__} has no output embedding",
            where=Where(stage="compile_lm"),
            hint="pass a causal language model, e.g. LlamaForCausalLM",
        )
    return head


def _probe(model: Any, ids: Tensor) -> tuple[Tensor, Layers]:
    """The model's own logits, and what its layers keep: seen by running it with transformers' growing cache."""
    try:
        with torch.no_grad():
            output = model(input_ids=ids, use_cache=True)
    except Exception as error:
        raise ModelRaisedError(
            f"{type(model).__name__} raised {type(error).__name__}: {error}",
            where=Where(stage="compile_lm"),
            hint=f"it must take input_ids of shape {list(ids.shape)} with use_cache=True",
        ) from error
    return output.logits, layers_of(type(model).__name__, output)


@contextmanager
def _as_ours(model: Any) -> Iterator[None]:
    """Lets a model take its attention and masks from here."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    before = [(config, config._attn_implementation_internal) for config in configs]
    try:
        for config, _ in before:
            config._attn_implementation_internal = _NAME
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name


@contextmanager
def _last_only(head: nn.Module, last: Tensor | None) -> Iterator[None]:
    """Gives the head one hidden state a row: `[batch, queries, width]` -> `[batch, 1, width]`."""
    if last is None:
        yield
        return

    def choose(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        hidden = args[0]
        index = last[:, None, None].expand(hidden.shape[0], 1, hidden.shape[2])
        return (torch.gather(hidden, 1, index),)

    handle = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def _register() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, _mask)


def _mask(*_: Any, mask_function: Any, dtype: torch.dtype = torch.float32, **__: Any) -> Tensor:
    """The model's own rule, of positions."""
    zero, now = torch.zeros((), dtype=torch.int64), _current.get()

    def rule(query: Tensor, key: Tensor) -> Tensor:
        allowed = cast(Tensor, mask_function(zero, zero, query, key))
        # Pads attend pads: a row of a mask that allows nothing gives NaN, which a recurrence would take along.
        return allowed & ((key >= 0) | (query < 0)) if now.pads_left else allowed

    allowed = mask(now.cache, rule)
    if not now.added:
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
