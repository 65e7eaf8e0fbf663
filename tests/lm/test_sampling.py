"""The sampler: what it may draw is what transformers' warpers leave, and it draws in the right proportions."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import gaudicc
from gaudicc.lm import CompiledLM
from gaudicc.lm.sampling import Choice, kept, penalized, sample
from tests.lm.conftest import Reference


def choice(temperature: float, top_k: int, top_p: float, uniform: torch.Tensor, min_p: float = 0.0) -> Choice:
    rows = uniform.shape[0]
    return Choice(
        torch.full((rows,), temperature),
        torch.full((rows,), top_k),
        torch.full((rows,), top_p),
        torch.full((rows,), min_p),
        uniform,
    )


def theirs(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Probabilities as transformers' sampling loop has them before it draws."""
    ids = torch.zeros(1, 1, dtype=torch.int64)
    for warper in (
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(top_k),
        TopPLogitsWarper(top_p),
        MinPLogitsWarper(min_p),
    ):
        logits = warper(ids, logits)
    return logits.softmax(-1)


@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.2, 3.0),
    top_k=st.integers(1, 30),
    top_p=st.floats(0.05, 0.999),
    min_p=st.sampled_from((0.0, 0.05, 0.3, 1.0)),
)
def test_what_is_kept_equals_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = torch.randn(1, 25, generator=torch.Generator().manual_seed(seed)) * 3
    expected = theirs(logits, temperature, top_k, top_p, min_p)
    ordered, tokens = torch.sort(logits / temperature, descending=True)
    weights = kept(ordered, torch.tensor([top_k]), torch.tensor([top_p]), torch.tensor([min_p]))
    ours = torch.zeros_like(logits).scatter(1, tokens, weights / weights.sum())
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)


@given(seed=st.integers(0, 10_000), length=st.integers(1, 12), penalty=st.sampled_from((1.0, 1.05, 2.0, 0.5)))
def test_the_penalty_equals_transformers(seed: int, length: int, penalty: float) -> None:
    """Bit for bit; what stands behind a row's tokens is not counted."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 9, generator=generator) * 3
    tokens = torch.randint(9, (2, length), generator=generator)
    lengths = torch.randint(1, length + 1, (2,), generator=generator)
    ours = penalized(logits, tokens, torch.arange(length) < lengths[:, None], torch.full((2,), penalty))
    process = RepetitionPenaltyLogitsProcessor(penalty)
    for row, count in enumerate(lengths):
        assert torch.equal(ours[row], process(tokens[None, row, :count], logits[None, row])[0])


@given(seed=st.integers(0, 10_000), top_k=st.integers(1, 12), top_p=st.floats(0.1, 1.0))
def test_draws_have_the_kept_proportions(seed: int, top_k: int, top_p: float) -> None:
    """Evenly spread uniform numbers hit each token as often as its probability says, to within one each."""
    draws = 2000
    row = torch.randn(1, 12, generator=torch.Generator().manual_seed(seed))
    uniform = (torch.arange(draws) + 0.5) / draws
    tokens = sample(row.expand(draws, -1), choice(1.3, top_k, top_p, uniform))
    share = torch.bincount(tokens, minlength=12) / draws
    ordered, order = torch.sort(row / 1.3, descending=True)
    weights = kept(ordered, torch.tensor([top_k]), torch.tensor([top_p]), torch.zeros(1))
    expected = torch.zeros_like(row).scatter(1, order, weights / weights.sum())[0]
    assert (share - expected).abs().max() <= 1.5 / draws + 1e-5


def test_the_largest_random_number_draws_a_kept_token() -> None:
    below_one = torch.nextafter(torch.tensor([1.0]), torch.tensor([0.0]))
    for seed in range(50):
        logits = torch.randn(1, 100, generator=torch.Generator().manual_seed(seed)) * 5
        token = sample(logits, choice(1.0, 3, 1.0, below_one))
        assert token.item() in logits.topk(3).indices[0].tolist()


def test_a_seed_decides_whoever_shares_the_batch(
    lm: CompiledLM, reference: Reference, prompts: list[list[int]]
) -> None:
    how: dict[str, Any] = {"max_new_tokens": 12, "do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.95}
    together = [lm.submit(prompts[1], seed=seed, **how) for seed in (5, 6)]
    greedy = lm.submit(prompts[0], max_new_tokens=12)
    lm.run()
    alone = lm.submit(prompts[1], seed=6, **how)
    lm.run()
    assert alone.tokens == together[1].tokens
    assert together[0].tokens != together[1].tokens
    assert greedy.tokens == reference(prompts[0], 12)


def test_generate_samples_each_row_with_a_seed_of_its_own(lm: CompiledLM, prompts: list[list[int]]) -> None:
    how: dict[str, Any] = {"max_new_tokens": 10, "do_sample": True, "temperature": 2.0}
    rows = lm.generate(torch.tensor([prompts[1]] * 3), seed=5, **how)
    again = lm.generate(torch.tensor([prompts[1]]), seed=7, **how)
    assert isinstance(rows, torch.Tensor)
    assert isinstance(again, torch.Tensor)
    assert torch.equal(rows[2], again[0])
    assert len({tuple(row) for row in rows.tolist()}) == 3


def test_a_repetition_penalty_gives_the_tokens_of_transformers(
    lm: CompiledLM, llama: Any, prompts: list[list[int]]
) -> None:
    """Greedy, in a batch with others, and over two turns of a session: what was said before counts."""
    how: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "repetition_penalty": 1.6}
    rows = [lm.submit(prompt, **how) for prompt in prompts[:2]]
    plain = lm.submit(prompts[0], max_new_tokens=12)
    lm.run()
    for request, prompt in zip(rows, prompts, strict=False):
        theirs = llama.generate(torch.tensor([prompt]), **how, pad_token_id=0)
        assert request.tokens == theirs[0, len(prompt) :].tolist()
    assert plain.tokens != rows[0].tokens
    with lm.session() as session:
        first = session.generate(prompts[0], **how)
        second = session.generate(prompts[1], **how)
    said = [*prompts[0], *first, *prompts[1]]
    assert second == llama.generate(torch.tensor([said]), **how, pad_token_id=0)[0, len(said) :].tolist()


def test_a_penalty_of_the_models_own_config_is_taken(llama: Any, prompts: list[list[int]]) -> None:
    theirs = llama.generate(torch.tensor([prompts[0]]), max_new_tokens=8, repetition_penalty=1.6, pad_token_id=0)
    before, llama.generation_config.repetition_penalty = llama.generation_config.repetition_penalty, 1.6
    try:
        ours = gaudicc.compile_lm(llama, max_batch=1, max_context=16)
        ours.warm_up()
        records = ours.stats.records
        assert torch.equal(torch.as_tensor(ours.generate(torch.tensor([prompts[0]]), max_new_tokens=8)), theirs)
        assert ours.stats.records == records
    finally:
        llama.generation_config.repetition_penalty = before
