"""LM inference: causal language models of transformers, by their own attention, mask and cache interfaces.

transformers dispatches attention and masks by name. Under the name `gaudicc`, masks are made of positions (the model's
own rule decides: causal, sliding, chunked), attention is one call with grouped heads, and the cache is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn

from gaudicc.errors import ModelRaisedError, UnsupportedInputError, Where
from gaudicc.lm.attention import attention
from gaudicc.lm.cache import Cache, mask
from gaudicc.lm.rehearsal import rehearse, sample_ids
from gaudicc.lm.state import CacheShape

_NAME = "gaudicc"
_current: ContextVar[tuple[Cache, bool]] = ContextVar(
    "the cache of a forward pass, and whether masks are added to scores"
)


class TransformersModel(nn.Module):
    """A causal LM of transformers as a `LanguageModel`.

    Args:
        model: with an output embedding, and with layers that keep keys and values of every token and nothing else.

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
        logits, self.dtype, self.shapes = _probe(model, ids)
        if not logits.is_meta:
            rehearse(type(model).__name__, self, ids, logits)

    def forward(self, ids: Tensor, cache: Cache, last: Tensor | None) -> Tensor:
        """See `LanguageModel.__call__`."""
        with _as_ours(self.inner), _last_only(self._head, last):
            token = _current.set((cache, self._added))
            try:
                output = self.inner(
                    input_ids=ids,
                    position_ids=cache.positions,
                    past_key_values=_adapted(cache, len(self.shapes)),
                    use_cache=True,
                )
            finally:
                _current.reset(token)
        logits: Tensor = output.logits[:, -1]
        return logits.float()


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


def _probe(model: Any, ids: Tensor) -> tuple[Tensor, torch.dtype, tuple[CacheShape, ...]]:
    """The model's own logits, and what each layer keeps of a token: seen by running it with transformers' growing cache."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    try:
        with torch.no_grad():
            output = model(input_ids=ids, use_cache=True)
    except Exception as error:
        raise ModelRaisedError(
            f"{type(model).__name__} raised {type(error).__name__}: {error}",
            where=Where(stage="compile_lm"),
            hint=f"it must take input_ids of shape {list(ids.shape)} with use_cache=True",
        ) from error
    kept = getattr(output, "past_key_values", None)
    layers = list(kept.layers) if isinstance(kept, DynamicCache) else []
    if not layers or not all(isinstance(layer, DynamicLayer) and layer.is_initialized for layer in layers):
        kinds = sorted({type(layer).__name__ for layer in layers}) or [type(output).__name__]
        raise UnsupportedInputError(
            f"{type(model).__name__} keeps {', '.join(kinds)} between tokens, not keys and values of every layer",
            where=Where(stage="compile_lm"),
            hint="use a model whose layers all attend, or gaudicc.compile with a step of your own",
        )
    shapes = tuple(CacheShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]) for layer in layers)
    return output.logits, layers[0].keys.dtype, shapes


def _adapted(cache: Cache, layers: int) -> Any:
    """Our cache as one of transformers'."""
    from transformers.cache_utils import Cache as TheirCache
    from transformers.cache_utils import CacheLayerMixin

    class Layer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped
        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index
            self.is_initialized = True

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            """The buffers are there already."""

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            return cache.update(self.index, key_states, value_states)

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return cache.keys.shape[1], 0

        def get_seq_length(self) -> int:
            return 0

        def get_max_length(self) -> int:
            return -1

    return TheirCache(layers=[Layer(index) for index in range(layers)])


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
    zero, (cache, added) = torch.zeros((), dtype=torch.int64), _current.get()
    allowed = mask(cache, lambda query, key: cast(Tensor, mask_function(zero, zero, query, key)))
    if not added:
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
