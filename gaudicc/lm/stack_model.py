"""LM inference: the CUDA-style stack of `gaudicc.models.cuda_style_llm`, its cache grown by `torch.cat` replaced by ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from gaudicc.errors import UnsupportedInputError, Where
from gaudicc.lm.cache import Cache, mask
from gaudicc.lm.state import CacheShape
from gaudicc.models.cuda_style_llm import LayerCache, Transformer


class StackModel(nn.Module):
    """The stack as a `LanguageModel`; its layers run as they are written.

    Args:
        model: without early exit.

    Raises:
        UnsupportedInputError: the model exits early, which makes a row's tokens depend on the rows beside it.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        if model.args.early_exit is not None:
            raise UnsupportedInputError(
                "the stack leaves its layers early once all rows of a batch are confident",
                where=Where(op="Transformer.confident", stage="compile_lm"),
                hint="build it with early_exit=None: requests that share a batch must not change each other's tokens",
            )
        self.inner = model
        self.vocabulary = model.args.vocab_size
        self.context: int | None = model.args.max_context
        self.dtype = model.embed.weight.dtype
        self.shapes = (CacheShape(model.args.n_kv_head, model.args.head_dim, model.args.head_dim),) * model.args.n_layer

    def forward(self, ids: Tensor, cache: Cache, last: Tensor | None) -> Tensor:
        """See `LanguageModel.__call__`."""
        model = self.inner
        hidden = model.embed(ids)
        rotary = model.rotary.to(ids.device)[cache.positions]
        seen = mask(cache)
        bias = torch.where(seen, 0.0, torch.finfo(hidden.dtype).min).to(hidden.dtype)
        for index, layer in enumerate(cast(Any, model.layers)):
            with _kept_by(layer.attn, cache, index):
                hidden, _ = layer(hidden, rotary, bias, None)
        if last is not None:
            hidden = torch.gather(hidden, 1, last[:, None, None].expand(hidden.shape[0], 1, hidden.shape[2]))
        logits: Tensor = model.head(model.norm(hidden))[:, -1]
        return logits.float()


@contextmanager
def _kept_by(attention: Any, cache: Cache, index: int) -> Iterator[None]:
    """Lets `extend` store new keys and values in our cache."""
    grow = attention.extend

    def extend(x: Tensor, rotary: Tensor, cached: LayerCache | None) -> LayerCache:
        keys, values = grow(x, rotary, None)
        keys, values = cache.update(index, keys.transpose(1, 2), values.transpose(1, 2))
        return keys.transpose(1, 2), values.transpose(1, 2)

    attention.extend = extend
    try:
        yield
    finally:
        del attention.extend  # the class's own shows again
