"""Sparse attention whose indexer chooses the keys of each query (DeepSeek V3.2): its keys are kept beside the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gaudicc
from gaudicc.lm import CompiledLM, Generation
from gaudicc.lm.attention import attention
from gaudicc.models.transformers_models import build

PROMPTS = ([5, 17, 9, 3, 21, 40, 8], [8, 4, 33])


@pytest.fixture(scope="module", params=["deepseek_v32", pytest.param("glm_moe_dsa", marks=pytest.mark.sweep)])
def sparse(request: pytest.FixtureRequest) -> tuple[Any, CompiledLM]:
    """A model that attends to four keys of each query."""
    model: Any = build(request.param, task="causal", index_topk=4)
    model.generation_config.eos_token_id = None
    return model, gaudicc.compile_lm(model, max_batch=2, max_context=32)


def test_tokens_and_logits_are_the_models_own(sparse: tuple[Any, CompiledLM]) -> None:
    model, lm = sparse
    ids = torch.tensor([PROMPTS[0], [0] * 4 + PROMPTS[1]])
    result = lm.generate(ids, (ids > 0).long(), max_new_tokens=8, return_dict_in_generate=True, output_logits=True)
    assert isinstance(result, Generation)
    for row, prompt in enumerate(PROMPTS):
        tokens = result.sequences[row, 7 - len(prompt) :]
        with torch.no_grad():
            own = model(input_ids=tokens[None, :-1], use_cache=False).logits[0, -8:]
        assert torch.equal(own.argmax(-1), tokens[-8:])
        torch.testing.assert_close(torch.stack([step[row] for step in result.logits]), own, atol=1e-4, rtol=0)


@pytest.mark.sweep
def test_a_session_goes_on_with_the_indexers_keys(sparse: tuple[Any, CompiledLM]) -> None:
    model, lm = sparse
    with lm.session() as session:
        said = [*PROMPTS[0], *session.generate(PROMPTS[0], max_new_tokens=5), *PROMPTS[1]]
        second = session.generate(PROMPTS[1], max_new_tokens=5)
    whole = torch.tensor([[*said, *second]])
    with torch.no_grad():
        own = model(input_ids=whole[:, :-1], use_cache=False).logits[0, -5:]
    assert own.argmax(-1).tolist() == second


@pytest.mark.parametrize("masked", ["none", "bool", "added"])
def test_only_chosen_keys_are_attended_to(masked: str) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    indices = torch.tensor([[[0, 1], [1, 4], [2, 3]]], dtype=torch.int32)
    allowed = torch.ones(3, 5, dtype=torch.bool).tril(2)
    added = torch.zeros(3, 5).masked_fill(~allowed, torch.finfo(torch.float32).min)
    mask = {"none": None, "bool": allowed[None, None], "added": added[None, None]}[masked]
    result, _ = attention(torch.nn.Identity(), query, key, value, mask, indices=indices)
    for row, chosen in enumerate(indices[0].tolist()):
        keys = [k for k in chosen if mask is None or allowed[row, k]]
        weights = (query[0, :, row, None] @ key[0, :, keys].transpose(1, 2) / 2).softmax(-1)
        torch.testing.assert_close(result[0, row], (weights @ value[0, :, keys])[:, 0])
