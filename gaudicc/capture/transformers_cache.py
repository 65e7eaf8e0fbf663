"""transformers' caches as containers of tensors, so that they can be arguments and results of a captured model.

transformers has such a registration of its own for export, but it rebuilds a cache by running its updates, which ends up in
the graph, and forgets how many tokens a sliding window has seen, which makes later positions wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from gaudicc.errors import UnsupportedInputError

Flatten = Callable[[Any], tuple[list[Any], Any]]

_HINT = "call the model with use_cache=False, or serve it with gaudicc.compile_lm, which keeps the cache as state"
_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")


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
    tensors = [[layer.keys, layer.values] if layer.is_initialized else [] for layer in cache.layers]
    return tensors, tuple(_layer_context(layer) for layer in cache.layers)


def _layer_context(layer: Any) -> tuple[Any, ...]:
    """What a layer is besides its tensors: class, window, tokens seen.

    Raises:
        UnsupportedInputError: a layer that keeps more than this, or counts tokens of a dynamic size.
    """
    name = type(layer).__name__
    if name not in _LAYERS:
        raise UnsupportedInputError(f"a cache holds a {name}", hint=_HINT)
    seen = getattr(layer, "cumulative_length", None)
    if isinstance(seen, torch.SymInt):
        raise UnsupportedInputError("a sliding-window cache counts tokens of a dynamic size", hint=_HINT)
    return name, getattr(layer, "sliding_window", None), seen


def _unflatten_dynamic(tensors: Any, context: Any) -> Any:
    from transformers import cache_utils

    cache = cache_utils.DynamicCache()
    cache.layers = [
        _layer(getattr(cache_utils, name), window, seen, list(pair))
        for pair, (name, window, seen) in zip(tensors, context, strict=True)
    ]
    return cache


def _layer(kind: type[Any], window: int | None, seen: int | None, pair: list[Any]) -> Any:
    with _disable_current_modes():  # the layer's own constant is no part of the model
        layer = kind() if window is None else kind(sliding_window=window)
    if seen is not None:
        layer.cumulative_length = seen
    if pair:
        layer.keys, layer.values = pair
        layer.is_initialized = True
        if isinstance(layer.keys, torch.Tensor):  # pytree also rebuilds containers of placeholders
            layer.dtype, layer.device = layer.keys.dtype, layer.keys.device
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
