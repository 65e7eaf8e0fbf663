"""What the tests of LM inference share: a tiny Llama compiled once per process, and transformers' own answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import gaudicc
from gaudicc.lm import CompiledLM
from gaudicc.models.transformers_models import build

Reference = Callable[..., list[int]]


@pytest.fixture(scope="session")
def llama() -> Any:
    model: Any = build("llama", task="causal")
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="session")
def compiled(llama: Any) -> CompiledLM:
    """Four slots of 128 tokens; greedy graphs are recorded by whoever needs them first."""
    return gaudicc.compile_lm(llama, max_batch=4, max_context=128)


@pytest.fixture
def lm(compiled: CompiledLM) -> CompiledLM:
    """The compiled model, which every test leaves idle."""
    assert not compiled.step()
    return compiled


@pytest.fixture(scope="session")
def reference(llama: Any) -> Reference:
    """`reference(prompt, count)`: the new tokens that transformers' greedy `generate` gives for one prompt alone."""

    def generate(prompt: list[int], count: int) -> list[int]:
        with torch.no_grad():
            result = llama.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False, pad_token_id=0)
        tokens: list[int] = result[0, len(prompt) :].tolist()
        return tokens

    return generate


@pytest.fixture
def prompts() -> list[list[int]]:
    """Six prompts of different lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 90, (length,), generator=generator).tolist() for length in (7, 20, 3, 11, 30, 9)]
