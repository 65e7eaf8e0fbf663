"""transformers' caches as containers of tensors, so that they can be arguments and results of a captured model.

transformers has such a registration of its own for export, but it rebuilds a cache by running its updates, which ends up in
the graph, and forgets how many tokens a sliding window has seen, which makes later positions wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from gaudicc.errors import UnsupportedInputError

Flatten = Callable[[Any], tuple[list[Any], Any]]

_HINT = "call the model with use_cache=False, or serve it with gaudicc.compile_lm, which keeps the cache as state"
_LAYERS = (
    "DynamicLayer", "DynamicSlidingWindowLayer", "LinearAttentionLayer", "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
)  # fmt: skip
_STATES = ("conv_states", "recurrent_states")
_MARKS = ("has_previous_state", "conv_kernel_size")


class _Context(NamedTuple):
    """What a layer is besides its tensors.

    Attributes:
        name: of its class.
        window: how many tokens it keeps, if not all.
        seen: how many tokens such a layer has seen.
        has_keys: whether it holds keys and values.
        held: which states of linear attention it holds, convolution's and recurrent ones.
        marks: what it notes of each state.
    """

    name: str
    window: int | None
    seen: int | None
    has_keys: bool
    held: tuple[tuple[bool, ...], ...]
    marks: tuple[tuple[Any, ...], ...]


def register_cache(kind: type[Any]) -> None:
    """Registers a cache class of transformers as a pytree node, if it is one of those that gaudicc knows.

    Args:
        kind: `DynamicCache` or `EncoderDecoderCache`; others are left to be refused as arguments or results.

    Raises:
        UnsupportedInputError: another registration is there, whose caches could be wrong.
    """
    if kind.__name__ not in _FORMS:
        return
    flatten, unflatten = _FORMS[kind.__name__]
    if kind not in pytree.SUPPORTED_NODES:
        pytree.register_pytree_node(
            kind,
            flatten,
            unflatten,
            serialized_type_name=f"{kind.__module__}.{kind.__qualname__}",
            flatten_with_keys_fn=partial(_with_keys, flatten),
        )
    elif pytree.SUPPORTED_NODES[kind].flatten_fn is not flatten:
        raise UnsupportedInputError(
            f"{kind.__name__} was registered as a pytree node by someone else",
            hint="let gaudicc register it: do not call transformers' register_dynamic_cache_export_support",
        )


def _with_keys(flatten: Flatten, cache: Any) -> tuple[list[tuple[Any, Any]], Any]:
    children, context = flatten(cache)
    return [(pytree.SequenceKey(i), child) for i, child in enumerate(children)], context


def _flatten_dynamic(cache: Any) -> tuple[list[Any], Any]:
    return [_tensors_of(layer) for layer in cache.layers], tuple(tuple(_layer_context(layer)) for layer in cache.layers)


def _tensors_of(layer: Any) -> list[Any]:
    """Keys and values, then the states of linear attention, those that are there."""
    states = [state for name in _STATES for state in getattr(layer, name, {}).values() if state is not None]
    return [*([layer.keys, layer.values] if getattr(layer, "is_initialized", False) else []), *states]


def _layer_context(layer: Any) -> _Context:
    """What a layer is besides its tensors.

    Raises:
        UnsupportedInputError: a layer that keeps more than this, or counts tokens of a dynamic size.
    """
    name = type(layer).__name__
    if name not in _LAYERS:
        raise UnsupportedInputError(f"a cache holds a {name}", hint=_HINT)
    seen = getattr(layer, "cumulative_length", None)
    if isinstance(seen, torch.SymInt):
        raise UnsupportedInputError("a sliding-window cache counts tokens of a dynamic size", hint=_HINT)
    if getattr(layer, "record_past", False):
        raise UnsupportedInputError(f"a {name} records what it drops", hint=_HINT)
    held = tuple(tuple(state is not None for state in getattr(layer, states, {}).values()) for states in _STATES)
    marks = tuple(tuple(getattr(layer, mark, {}).values()) for mark in _MARKS)
    return _Context(
        name, getattr(layer, "sliding_window", None), seen, getattr(layer, "is_initialized", False), held, marks
    )


def _unflatten_dynamic(tensors: Any, contexts: Any) -> Any:
    from transformers import cache_utils

    cache = cache_utils.DynamicCache()
    cache.layers = [
        _layer(getattr(cache_utils, context[0]), _Context(*context), list(held))
        for held, context in zip(tensors, contexts, strict=True)
    ]
    return cache


def _layer(kind: type[Any], context: _Context, tensors: list[Any]) -> Any:
    options = {} if context.window is None else {"sliding_window": context.window}
    options |= {"number_of_states": len(context.held[0])} if context.held[0] else {}
    with _disable_current_modes():  # the layer's own constant is no part of the model
        layer = kind(**options)
    if context.seen is not None:
        layer.cumulative_length = context.seen
    feed = iter(tensors)
    if context.has_keys:
        layer.keys, layer.values = next(feed), next(feed)
        layer.is_initialized = True
    for name, held in zip(_STATES, context.held, strict=True):
        for i, is_there in enumerate(held):
            if is_there:
                getattr(layer, name)[i] = next(feed)
                getattr(layer, f"is_{name}_initialized")[i] = True
    for name, values in zip(_MARKS, context.marks, strict=True):
        if values:
            getattr(layer, name).update(enumerate(values))
    if tensors and isinstance(tensors[0], torch.Tensor):  # pytree also rebuilds containers of placeholders
        layer.dtype, layer.device = tensors[0].dtype, tensors[0].device
    return layer


def _flatten_pair(cache: Any) -> tuple[list[Any], Any]:
    return [cache.self_attention_cache, cache.cross_attention_cache], None


def _unflatten_pair(caches: Any, _context: Any) -> Any:
    from transformers.cache_utils import EncoderDecoderCache

    return EncoderDecoderCache(*caches)


_FORMS: dict[str, tuple[Flatten, Callable[[Any, Any], Any]]] = {
    "DynamicCache": (_flatten_dynamic, _unflatten_dynamic),
    "EncoderDecoderCache": (_flatten_pair, _unflatten_pair),
}
