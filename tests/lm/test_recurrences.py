"""Models whose layers carry the state of a recurrence from token to token, beside layers that attend or instead of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gaudicc
from gaudicc.lm import CompiledLM, Generation
from gaudicc.lm.steps import carried_by
from gaudicc.lm.transformers_model import TransformersModel
from gaudicc.models.transformers_models import build

FAMILIES = (
    "mamba",
    "mamba2",
    "jamba",
    "qwen3_next",
    "falcon_h1",
    "granitemoehybrid",
    "nemotron_h",
    "zamba2",
    "kimi_linear",
    "lfm3",
)
LENGTHS = (5, 17, 1, 9)


@pytest.fixture(scope="module")
def model() -> Any:
    """A short convolution that is carried, and attention."""
    made: Any = build("lfm2", task="causal", layer_types=["conv", "full_attention", "conv"], layers=3)
    made.generation_config.eos_token_id = None
    return made


@pytest.fixture(scope="module")
def lm(model: Any) -> CompiledLM:
    return gaudicc.compile_lm(model, max_batch=4, max_context=64)


def prompts(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 90, (length,), generator=generator) for length in LENGTHS]


def alone(model: Any, prompt: torch.Tensor, count: int) -> list[int]:
    """What transformers generates from one prompt by itself."""
    with torch.no_grad():
        result = model.generate(prompt[None], max_new_tokens=count, do_sample=False, pad_token_id=0)
    tokens: list[int] = result[0, len(prompt) :].tolist()
    return tokens


def ragged(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = torch.zeros(2, len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    for row, prompt in enumerate(prompts(seed)):
        ids[row, -len(prompt) :], mask[row, -len(prompt) :] = prompt, 1
    return ids, mask


def agrees(model: Any, lm: CompiledLM) -> None:
    """A ragged batch: tokens as transformers', logits within 1e-4 at each step, nothing recorded the second time."""
    ids, mask = ragged()
    wanted: dict[str, Any] = {"max_new_tokens": 20, "return_dict_in_generate": True, "output_logits": True}
    ours = lm.generate(ids, mask, **wanted)
    assert isinstance(ours, Generation)
    with torch.no_grad():
        theirs = model.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=0, **wanted)
    assert torch.equal(ours.sequences, theirs.sequences)
    for mine, other in zip(ours.logits, theirs.logits, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=0)
    records = lm.stats.records
    assert torch.equal(torch.as_tensor(lm.generate(ids, mask, max_new_tokens=20)), ours.sequences)
    assert lm.stats.records == records


def test_a_ragged_batch_equals_transformers(model: Any, lm: CompiledLM) -> None:
    agrees(model, lm)


@pytest.mark.sweep
@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_equal_transformers(family: str) -> None:
    other: Any = build(family, task="causal")
    other.generation_config.eos_token_id = None
    agrees(other, gaudicc.compile_lm(other, max_batch=4, max_context=64))


def test_requests_that_come_and_go_do_not_move_the_others_on(model: Any, lm: CompiledLM) -> None:
    """Slots are taken again, so that what an earlier request carried must be gone; ended rows must not be moved on."""
    given = [*prompts(1), *prompts(2)]
    counts = [3, 25, 9, 14, 20, 1, 12, 6]
    requests = [lm.submit(given[0], max_new_tokens=counts[0]), lm.submit(given[1], max_new_tokens=counts[1])]
    lm.step()
    requests += [lm.submit(prompt, max_new_tokens=count) for prompt, count in zip(given[2:], counts[2:], strict=True)]
    lm.run(requests)
    assert [request.tokens for request in requests] == [
        alone(model, prompt, count) for prompt, count in zip(given, counts, strict=True)
    ]


def test_a_session_goes_on_as_one_prompt_would(model: Any, lm: CompiledLM) -> None:
    """Beside another request, and with a turn that is cancelled."""
    first, second, third, other = (prompt.tolist() for prompt in prompts(4))
    with lm.session() as session:
        beside = lm.submit(other, max_new_tokens=9)
        assert session.generate(first, max_new_tokens=6) == alone(model, torch.tensor(first), 6)
        for _ in session.stream(second, max_new_tokens=9):
            break
        answer = session.generate(third, max_new_tokens=5)
    said = session.tokens[:-5]
    assert said[: len(first)] == first
    assert said[-len(third) :] == third
    assert answer == alone(model, torch.tensor(said), 5)
    lm.run([beside])
    assert beside.tokens == alone(model, torch.tensor(other), 9)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_eager_every_family_agrees_with_itself(family: str) -> None:
    """The rehearsal: prompts of two lengths, with a pad on the left."""
    assert carried_by(TransformersModel(build(family, task="causal")))
