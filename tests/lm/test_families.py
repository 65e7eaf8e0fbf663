"""Ragged batches of several families: tokens equal to transformers', logits within 1e-4 at each step."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

import gaudicc
from gaudicc.errors import UnsupportedInputError
from gaudicc.lm import Generation
from gaudicc.models import cuda_style_llm
from gaudicc.models.transformers_models import build

LENGTHS = (5, 17, 9, 30)
FAST = ("llama", "gpt2")
MORE = (
    *("mistral", "qwen3", "gemma3_text", "gemma2", "mixtral", "phi3", "qwen2", "olmo2", "gpt_neox", "opt", "gpt_oss"),
    *("codegen", "gptj", "gpt_neo", "falcon", "bloom", "deepseek_v3", "glm4_moe", "granite_swa", "gemma4_text"),
)


def ragged() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    width = max(LENGTHS)
    ids, mask = torch.zeros(4, width, dtype=torch.int64), torch.zeros(4, width, dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        ids[row, width - length :] = torch.randint(3, 90, (length,), generator=generator)
        mask[row, width - length :] = 1
    return ids, mask


@pytest.mark.parametrize("family", [*FAST, *(pytest.param(name, marks=pytest.mark.sweep) for name in MORE)])
def test_a_ragged_batch_equals_transformers(family: str) -> None:
    model: Any = build(family, task="causal")
    model.generation_config.eos_token_id = None
    ids, mask = ragged()
    lm = gaudicc.compile_lm(model, max_batch=4, max_context=100)
    wanted: dict[str, Any] = {
        "max_new_tokens": 64,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    ours = lm.generate(ids, mask, **wanted)
    with torch.no_grad():
        theirs = model.generate(ids, attention_mask=mask, pad_token_id=0, **wanted)
    assert isinstance(ours, Generation)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert len(ours.logits) == len(theirs.logits) == 64
    for mine, other in zip(ours.logits, theirs.logits, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=0)
    assert ours.reasons == ("length",) * 4
    assert lm.stats.host_ops == 0
    records = lm.stats.records
    assert torch.equal(torch.as_tensor(lm.generate(ids, mask, max_new_tokens=64)), theirs.sequences)
    assert lm.stats.records == records


def test_the_cuda_style_stack_equals_its_own_generate() -> None:
    model = cuda_style_llm.build("tiny", n_layer=2)
    ids, mask = ragged()
    prompts = [row[marks > 0].tolist() for row, marks in zip(ids, mask, strict=True)]
    lm = gaudicc.compile_lm(model, max_batch=4, max_context=100)
    requests = [lm.submit(prompt, max_new_tokens=40) for prompt in prompts]
    lm.run(requests)
    assert [request.tokens for request in requests] == cuda_style_llm.generate(model, prompts, 40)


def test_a_stack_whose_rows_depend_on_each_other_is_refused() -> None:
    with pytest.raises(UnsupportedInputError, match="leaves its layers early"):
        gaudicc.compile_lm(cuda_style_llm.build("tiny", early_exit=0.5))


def test_a_model_that_keeps_no_keys_is_refused() -> None:
    with pytest.raises(UnsupportedInputError, match="not keys and values or a recurrence's state"):
        gaudicc.compile_lm(build("rwkv", task="causal"))


def test_an_encoder_is_refused() -> None:
    with pytest.raises(UnsupportedInputError, match="no output embedding"):
        gaudicc.compile_lm(cast(torch.nn.Module, build("bert", task="encoder").base_model))
