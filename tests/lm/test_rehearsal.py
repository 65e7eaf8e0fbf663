"""What a model computes on our cache is compared with the model alone before anything is captured."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gaudicc
from gaudicc.errors import UnsupportedInputError
from gaudicc.lm.cache import Cache
from gaudicc.lm.rehearsal import COLUMNS, rehearse, sample_ids
from gaudicc.lm.state import CacheShape
from gaudicc.lm.transformers_model import TransformersModel
from gaudicc.models.transformers_models import build

OTHERS = "gives other logits for the second token"


@pytest.mark.parametrize("family", ["llama", "codegen", "gpt_oss", "falcon", "gptj", "bloom", "gemma2", "deepseek_v3"])
def test_models_that_take_positions_and_masks_pass(family: str) -> None:
    TransformersModel(build(family, task="causal"))


@pytest.mark.parametrize("family", ["bart", "pegasus"])
def test_a_model_that_counts_positions_itself_is_refused(family: str) -> None:
    model: Any = build(family, task="causal")
    model.generation_config.forced_eos_token_id = None
    with pytest.raises(UnsupportedInputError, match=OTHERS):
        gaudicc.compile_lm(model)


def test_a_model_that_fails_on_our_cache_is_refused_with_what_it_raised() -> None:
    with pytest.raises(
        UnsupportedInputError, match="cache that is not its own: ValueError: MiniMax uses cache of its own"
    ):
        TransformersModel(build("minimax", task="causal"))


class Bag(torch.nn.Module):
    """Logits are the mean over all tokens so far of a value per token and position; `blind` forgets the position."""

    def __init__(self, dtype: torch.dtype = torch.float32, *, blind: bool = False) -> None:
        super().__init__()
        self.table = torch.randn(64, COLUMNS + 1, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
        self.shapes: tuple[CacheShape, ...] = (CacheShape(1, 6, 6),)
        self.dtype, self.vocabulary = dtype, 6
        self.context: int | None = None
        self.blind = blind

    def values(self, ids: Tensor, positions: Tensor) -> Tensor:
        return self.table[ids, torch.zeros_like(positions) if self.blind else positions]

    def alone(self, ids: Tensor) -> Tensor:
        seen = self.values(ids, torch.arange(COLUMNS).expand(2, -1)).float()
        return (seen.cumsum(1) / torch.arange(1, COLUMNS + 1)[:, None]).to(self.table.dtype)

    def __call__(self, ids: Tensor, cache: Cache, last: Tensor | None) -> Tensor:
        new = self.values(ids, cache.positions)[:, None]
        kept, _ = cache.update(0, new, new)
        at = cache.positions if last is None else cache.positions.gather(1, last[:, None])
        reach = (cache.keys <= at)[..., None]
        return (kept[:, 0].float() * reach).sum(1) / (at + 1)


def rehearsed(step: Bag, wanted: Bag) -> None:
    ids = torch.arange(2 * COLUMNS).view(2, COLUMNS)
    rehearse("Bag", step, ids, wanted.alone(ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_function_passes(dtype: torch.dtype) -> None:
    rehearsed(Bag(dtype), Bag(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_that_are_forgotten_are_noticed(dtype: torch.dtype) -> None:
    with pytest.raises(UnsupportedInputError, match="Bag gives other logits"):
        rehearsed(Bag(dtype, blind=True), Bag(dtype))


def test_ids_are_none_of_the_special_ones() -> None:
    model: Any = build("llama", task="causal")
    model.config.pad_token_id, model.config.bos_token_id = 3, 10
    ids = sample_ids(model.config, torch.device("cpu"))
    assert ids.shape == (2, COLUMNS)
    assert ids.unique().numel() == 2 * COLUMNS
    assert not {3, 10} & set(ids.flatten().tolist())
