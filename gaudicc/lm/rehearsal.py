"""LM inference: two short prompts are read and continued in eager, as the graphs will do it, and compared with the model.

A model may take where a token stands from elsewhere than the positions it is handed, or use a mask in a way of its own. Then a
batch of prompts of different lengths would be continued wrongly, and nothing would fail.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gaudicc.errors import UnsupportedInputError, Where
from gaudicc.lm.state import Limits, LmState
from gaudicc.lm.steps import Admission, Decode, LanguageModel, Prefill, Result, carried_by

COLUMNS = 5
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_COARSE = 0.1  # of the largest logit, in 16 bits: another expert may be chosen there by rounding


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
def rehearse(name: str, model: LanguageModel, ids: Tensor, wanted: Tensor) -> None:
    """Compares a prefill of rows of two lengths, and a decode step behind it, with the model's own forward pass.

    Args:
        name: of the model.
        model: the model on our cache, as it is captured later.
        ids: int64 `[2, COLUMNS]`.
        wanted: `[2, COLUMNS, vocabulary]`, the model's own logits of `ids`.

    Raises:
        UnsupportedInputError: the model fails on our cache, or gives other logits.
    """
    rows, lengths = torch.arange(2, device=ids.device), torch.tensor([COLUMNS - 1, COLUMNS - 2], device=ids.device)
    carried = carried_by(model)
    state = LmState(model.shapes, model.dtype, Limits(slots=2, context=COLUMNS, stops=1), carried).to(ids.device)
    prompts = ids[:, : COLUMNS - 1].clone()
    if carried:  # pads stand on the left
        prompts[1] = ids[1, : COLUMNS - 1].roll(1)
    how = (state.limit[:2] + COLUMNS, *(getattr(state, field)[:2] for field in Admission._fields[1:]))
    try:
        first = _done(state, Prefill(model, state, sampled=False)(prompts, rows, lengths, *how))
        state.history.view(-1, COLUMNS + 1)[rows, lengths] = ids[rows, lengths]
        second = _done(state, Decode(model, state, sampled=False)(rows, torch.arange(COLUMNS, device=ids.device)))
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


def _done(state: LmState, result: Result) -> Tensor:
    """Writes what a step leaves into the state; returns its logits."""
    logits, written = result
    for name, value in written.items():
        state.get_buffer(name).copy_(value)
    return logits


def _differ(mine: Tensor, theirs: Tensor, dtype: torch.dtype) -> bool:
    largest = (mine - theirs).abs().amax(-1) / theirs.abs().amax(-1)
    if dtype in _TOLERANCE:
        return not bool((largest <= _TOLERANCE[dtype]).all())
    return not bool((largest <= _COARSE).any())
