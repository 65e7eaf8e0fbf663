"""LM inference: our cache as one of transformers', layer by layer: keys and values, or what a recurrence carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gaudicc.errors import UnsupportedInputError, Where
from gaudicc.lm.cache import Cache
from gaudicc.lm.state import CacheShape, CarriedShape


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What one layer keeps between tokens.

    Attributes:
        attends: which of the layers with keys and values it is; None: it has none.
        convolves: index of a state -> name of the buffer with the last inputs of a convolution.
        recurs: index of a state -> name of the buffer with the state of a recurrence.
        indexes: which of the layers with keys its indexer's are, which choose the keys that are attended to; None: it has none.
    """

    attends: int | None
    convolves: dict[int, str]
    recurs: dict[int, str]
    indexes: int | None = None


@dataclass(frozen=True, slots=True)
class Layers:
    """What all layers of a model keep.

    Attributes:
        kinds: by layer.
        shapes: of keys and values, by the layers that have them.
        dtype: of keys and values.
        carried: what recurrences carry.
        argument: by which the model takes its cache.
    """

    kinds: tuple[LayerKind, ...]
    shapes: tuple[CacheShape, ...]
    dtype: torch.dtype
    carried: tuple[CarriedShape, ...]
    argument: str


def layers_of(name: str, output: Any) -> Layers:
    """Reads what the layers of a model kept from the cache that a forward pass returned.

    Args:
        name: of the model.
        output: what the model returned.

    Raises:
        UnsupportedInputError: a layer keeps something else.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

    argument = next(
        (name for name in ("past_key_values", "cache_params") if getattr(output, name, None) is not None), ""
    )
    kept = getattr(output, argument, None)
    layers = list(kept.layers) if isinstance(kept, DynamicCache) else []
    kinds: list[LayerKind] = []
    shapes: list[CacheShape] = []
    carried: list[CarriedShape] = []
    dtype: torch.dtype | None = None
    for place, layer in enumerate(layers):
        attends: int | None = None
        indexes: int | None = None
        convolves: dict[int, str] = {}
        recurs: dict[int, str] = {}
        if isinstance(layer, DynamicLayer) and layer.is_initialized:
            attends, dtype = len(shapes), layer.keys.dtype
            shapes.append(CacheShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]))
        if getattr(layer, "indexer_keys", None) is not None:
            indexes = len(shapes)
            shapes.append(CacheShape(1, layer.indexer_keys.shape[2], 0))
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            convolves = _named(carried, f"conv_{place}", layer.conv_states)
            recurs = _named(carried, f"recurrent_{place}", layer.recurrent_states)
        kinds.append(LayerKind(attends, convolves, recurs, indexes))
    if (not shapes and not carried) or any(_forgets(layer, kind) for layer, kind in zip(layers, kinds, strict=True)):
        found = sorted({type(layer).__name__ for layer in layers}) or [type(output).__name__]
        raise UnsupportedInputError(
            f"{name} keeps {', '.join(found)} between tokens, not keys and values or a recurrence's state",
            where=Where(stage="compile_lm"),
            hint="use gaudicc.compile with a step of your own",
        )
    return Layers(tuple(kinds), tuple(shapes), dtype or carried[0].dtype, tuple(carried), argument)


def _named(carried: list[CarriedShape], name: str, states: dict[int, Tensor | None]) -> dict[int, str]:
    """Adds the states that a layer has of one sort to what is carried: index -> name of its buffer."""
    names = {}
    for index, state in states.items():
        if state is not None:
            names[index] = f"{name}_{index}"
            carried.append(CarriedShape(names[index], tuple(state.shape[1:]), state.dtype))
    return names


def _forgets(layer: Any, kind: LayerKind) -> bool:
    """Whether a layer has a place for something that we saw nothing of, or keep no place for."""
    if getattr(layer, "indexer_position_ids", None) is not None:
        return True
    return not (kind.convolves or kind.recurs or kind.attends is not None or type(layer).__name__ == "DummyLayer")


def adapted(cache: Cache, layers: Layers) -> Any:
    """Our cache as one of transformers'."""
    from transformers.cache_utils import Cache as TheirCache

    return TheirCache(layers=[_layer(cache, kind, layers.carried) for kind in layers.kinds])


def carry_on(cache: Cache, theirs: Any, layers: Layers) -> None:
    """Stores what recurrences carry on from a forward pass."""
    for layer, kind in zip(theirs.layers, layers.kinds, strict=True):
        for names, states in ((kind.convolves, "conv_states"), (kind.recurs, "recurrent_states")):
            for index, name in names.items():
                cache.carry(name, getattr(layer, states)[index])


def _layer(cache: Cache, kind: LayerKind, carried: tuple[CarriedShape, ...]) -> Any:
    from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

    class Attending(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped
        def __init__(self) -> None:
            CacheLayerMixin.__init__(self)
            self.is_initialized = True

        def lazy_initialization(self, *_: Any, **__: Any) -> None:
            """The buffers are there already."""

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            assert kind.attends is not None
            return cache.update(kind.attends, key_states, value_states)

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return cache.keys.shape[1], 0

        def get_seq_length(self) -> int:
            return 0

        def get_max_length(self) -> int:
            return -1

    class Indexed(Attending):
        def update_indexer(self, indexer_key_states: Tensor) -> Tensor:
            assert kind.indexes is not None
            return cache.update_keys(kind.indexes, indexer_key_states.unsqueeze(1)).squeeze(1)

    class Recurring(LinearAttentionCacheLayerMixin):  # type: ignore[misc]
        def __init__(self) -> None:
            LinearAttentionCacheLayerMixin.__init__(self, number_of_states=max([0, *kind.convolves, *kind.recurs]) + 1)
            states = range(self.number_of_states)
            self.has_previous_state: dict[int, bool] = dict.fromkeys(states, cache.continues)
            if cache.continues:  # copies, since a convolution of one token writes its state in place
                self.conv_states |= {index: cache.carried(name).clone() for index, name in kind.convolves.items()}
                self.recurrent_states |= {index: cache.carried(name).clone() for index, name in kind.recurs.items()}

        def lazy_initialization(self, *_: Any, **__: Any) -> None:
            """The buffers are there already."""

        def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
            before = self.conv_states[state_idx]
            width = widths[kind.convolves[state_idx]]
            seen = F.pad(conv_states, (width, 0)) if before is None else torch.cat([before, conv_states], dim=-1)
            self.conv_states[state_idx] = seen[..., -width:]
            self.has_previous_state[state_idx] = True
            return conv_states if before is None else seen

        def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
            self.recurrent_states[state_idx] = recurrent_states
            self.has_previous_state[state_idx] = True
            return recurrent_states

    class Both(Recurring, Attending):
        def __init__(self) -> None:
            Attending.__init__(self)
            Recurring.__init__(self)

    widths = {each.name: each.shape[-1] for each in carried}
    if kind.attends is None:
        return Recurring()
    if kind.convolves or kind.recurs:
        return Both()
    return Attending() if kind.indexes is None else Indexed()
