"""LM inference: two short prompts are read and continued in eager, as the graphs will do it, and compared with the model.

A model may take where a token stands from elsewhere than the positions it is handed, or use a mask in a way of its own. Then a
batch of prompts of different lengths would be continued wrongly, and nothing would fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gaudicc.errors import UnsupportedInputError, Where
from gaudicc.lm.cache import Cache

Step = Callable[[Tensor, Cache, Tensor | None], Tensor]
"""See `LanguageModel.__call__`."""

COLUMNS = 5
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_COARSE = 0.1  # of the largest logit, in 16 bits: another expert may be chosen there by rounding


@dataclass
class _Kept:
    """A `Cache` of plain tensors: each row writes at its own positions."""

    positions: Tensor
    keys: Tensor
    layers: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)
    continues: bool = False

    def carried(self, name: str) -> Tensor:
        """See `Cache.carried`."""
        return self.states[name]

    def carry(self, name: str, value: Tensor) -> None:
        """See `Cache.carry`."""
        self.states[name] = value

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """See `Cache.update`."""
        return self._stored("keys", layer, keys), self._stored("values", layer, values)

    def update_keys(self, layer: int, keys: Tensor) -> Tensor:
        """See `Cache.update_keys`."""
        return self._stored("keys", layer, keys)

    def _stored(self, name: str, layer: int, new: Tensor) -> Tensor:
        room = self.layers.setdefault(f"{name}_{layer}", _room(new))
        places = torch.where(self.positions < 0, COLUMNS, self.positions)[:, None, :, None]
        room.scatter_(2, places.expand_as(new), new)
        return room[:, :, :COLUMNS] if self.continues else new


def _room(new: Tensor) -> Tensor:
    return new.new_zeros(new.shape[0], new.shape[1], COLUMNS + 1, new.shape[3])  # the last row is for pads


def sample_ids(config: Any, device: torch.device) -> Tensor:
    """Tokens that are none of the model's special ones.

    Args:
        config: of the model.
        device: of the result.

    Returns:
        int64 `[2, COLUMNS]`.
    """
    special = {value for name, value in config.to_dict().items() if name.endswith("_token_id")}
    plain = [token for token in range(min(config.vocab_size, 1000)) if token not in special] or [0]
    chosen = [plain[(3 + 7 * place) % len(plain)] for place in range(2 * COLUMNS)]
    return torch.tensor(chosen, device=device).view(2, COLUMNS)


@torch.no_grad()
def rehearse(name: str, step: Step, ids: Tensor, wanted: Tensor, *, pads_left: bool = False) -> None:
    """Compares a prefill of rows of two lengths, and a decode step behind it, with the model's own forward pass.

    Args:
        name: of the model.
        step: the model on our cache, as it is captured later.
        ids: int64 `[2, COLUMNS]`.
        wanted: `[2, COLUMNS, vocabulary]`, the model's own logits of `ids`.
        pads_left: where the shorter row of the prefill has its pad.

    Raises:
        UnsupportedInputError: the model fails on our cache, or gives other logits.
    """
    lengths = torch.tensor([COLUMNS - 1, COLUMNS - 2], device=ids.device)
    columns = torch.arange(COLUMNS, device=ids.device)
    rows, read = torch.arange(2, device=ids.device), columns[None, :-1].expand(2, -1)
    prompts, last = ids[:, :-1], lengths - 1
    if pads_left:
        read, last = read - (COLUMNS - 1 - lengths)[:, None], torch.full_like(lengths, COLUMNS - 2)
        prompts = torch.gather(prompts, 1, torch.clamp(read, min=0))
    reading = _Kept(read, read)
    following = _Kept(lengths[:, None], columns[None], reading.layers, reading.states, continues=True)
    try:
        first = step(prompts, reading, last)
        second = step(ids[rows, lengths][:, None], following, None)
    except Exception as error:
        raise UnsupportedInputError(
            f"{name} fails on a cache that is not its own: {type(error).__name__}: {error}",
            where=Where(stage="compile_lm"),
            hint="use gaudicc.compile with a step of your own",
        ) from error
    for what, mine, theirs in (
        ("the first token", first, wanted[rows, lengths - 1]),
        ("the second token", second, wanted[rows, lengths]),
    ):
        if _differ(mine, theirs.float(), wanted.dtype):
            raise UnsupportedInputError(
                f"{name} gives other logits for {what} of prompts of {COLUMNS - 1} and {COLUMNS - 2} tokens in one batch than "
                "for each alone: it does not take positions or masks from its arguments",
                where=Where(stage="compile_lm"),
                hint="use gaudicc.compile with a step of your own",
            )


def _differ(mine: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    largest = (mine - theirs).abs().amax(-1) / theirs.abs().amax(-1)
    if dtype in _TOLERANCE:
        return not bool((largest <= _TOLERANCE[dtype]).all())
    return not bool((largest <= _COARSE).any())
